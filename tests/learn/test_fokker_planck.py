"""The Fokker-Planck residual against closed forms: densities that flow, and potentials that do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.registry import make
from ebbtide.denoise.exact import Gaussian, GaussianMixture
from ebbtide.learn.fokker_planck import FokkerPlanck, Score, centred, diffusion, residual, terms
from ebbtide.process.affine import Affine

PROCESSES = ["vp-linear", "vp-cosine", "ve", "flow"]


def noise(n: int, step: int = 0) -> Noise:
    return Noise(keys(range(n)), torch.full((n,), step))


def process(name: str) -> Affine:
    made = make("process", {"name": name})
    assert isinstance(made, Affine)
    return made


def mixture(name: str) -> GaussianMixture:
    return GaussianMixture(process(name), [1, 2, 1], [[1.0, 0, 2], [-1, 1, 0], [0, -2, 1]], [0.2, 0.5, 0.1])


def points(truth: GaussianMixture, n: int = 200) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0.02, 0.95, n, dtype=torch.float64)
    return truth.process.corrupt(truth.sample(n), t, noise(n), {}), t  # type: ignore[return-value]


class Quadratic(nn.Module):
    """u = -(1 + t) x^T A x / 2 + h(t): everything about it is known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[2.0, 0.7, -0.3], [0.7, 1.0, 0.4], [-0.3, 0.4, 3.0]], dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -(1 + t) * ((x @ self.a) * x).sum(1) / 2 + (7 * t).sin()


@pytest.mark.parametrize("name", PROCESSES)
def test_the_true_log_density_leaves_no_residual(name: str) -> None:
    truth = mixture(name)
    x, t = points(truth)
    found = terms(truth.log_prob, truth.process, x, t)
    size = torch.stack([v.abs() for v in found[:3]]).amax(0)
    assert ((residual(found) / size.clamp_min(1)).abs() < 1e-10).all()
    assert torch.allclose(found.score, truth.score(x, t), rtol=1e-10, atol=1e-10)
    assert size.median() > 0.1


@pytest.mark.parametrize("name", PROCESSES)
def test_a_wrong_density_leaves_one(name: str) -> None:
    truth = mixture(name)
    x, t = points(truth)
    wider = Gaussian(truth.process, torch.zeros(3), 9.0)
    blend = residual(terms(lambda x, t: (truth.log_prob(x, t) + wider.log_prob(x, t)) / 2, truth.process, x, t))
    assert blend.abs().mean() > 0.01


@pytest.mark.parametrize("name", PROCESSES)
def test_the_diffusion_moves_signal_and_noise_as_the_process_says(name: str) -> None:
    """a and c^2 solve da = rate a dt and dc^2 = (2 rate c^2 + g^2) dt, by Runge-Kutta over an interval."""
    p = process(name)

    def slope(t: float, a: float, v: float) -> tuple[float, float]:
        rate, g2 = (float(w) for w in diffusion(p, torch.tensor([t], dtype=torch.float64)))
        return rate * a, 2 * rate * v + g2

    start, end, n = 0.2, 0.8, 400
    at = lambda t: torch.tensor([t], dtype=torch.float64)  # noqa: E731
    a, v, h = float(p.a(at(start))), float(p.c(at(start))) ** 2, (end - start) / n
    for k in range(n):
        t = start + k * h
        first = slope(t, a, v)
        half = slope(t + h / 2, a + h / 2 * first[0], v + h / 2 * first[1])
        again = slope(t + h / 2, a + h / 2 * half[0], v + h / 2 * half[1])
        last = slope(t + h, a + h * again[0], v + h * again[1])
        a, v = (
            y + h / 6 * (p1 + 2 * p2 + 2 * p3 + p4)
            for y, p1, p2, p3, p4 in zip((a, v), first, half, again, last, strict=True)
        )
    assert a == pytest.approx(float(p.a(at(end))), rel=1e-7)
    assert v == pytest.approx(float(p.c(at(end))) ** 2, rel=1e-7)


def test_the_terms_of_a_quadratic_are_those_worked_out_by_hand() -> None:
    p, u = process("vp-linear"), Quadratic()
    x, t = points(mixture("vp-linear"))
    found = terms(u, p, x, t)
    rate, g2 = diffusion(p, t)
    form = ((x @ u.a) * x).sum(1)
    assert torch.allclose(found.change, -form / 2 + 7 * (7 * t).cos())
    assert torch.allclose(found.drift, rate * (3 - (1 + t) * form))
    assert torch.allclose(found.spread, g2 / 2 * (-(1 + t) * u.a.trace() + ((1 + t) ** 2) * (x @ u.a).square().sum(1)))


def test_probes_are_unbiased_and_belong_to_their_rows() -> None:
    p, u = process("vp-linear"), Quadratic()
    x, t = torch.ones(4000, 3, dtype=torch.float64), torch.full((4000,), 0.5, dtype=torch.float64)
    exact = terms(u, p, x, t).spread
    drawn = terms(u, p, x, t, probes=2, noise=noise(4000)).spread
    error = (drawn - exact).mean() / (drawn.std() / math.sqrt(4000))
    assert drawn.std() > 1
    assert error.abs() < 3.5
    some = terms(u, p, x[:7], t[:7], probes=2, noise=noise(7)).spread
    assert torch.equal(some, drawn[:7])


def test_the_mean_square_of_centred_rows_is_the_variance() -> None:
    r = noise(30_000).normal(torch.zeros(30_000, dtype=torch.float64)) * 2 + torch.arange(10_000).repeat_interleave(3)
    assert float(centred(r, 3).square().mean()) == pytest.approx(4, rel=0.04)


def test_a_function_of_time_alone_costs_nothing() -> None:
    truth = mixture("vp-cosine")
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64).repeat_interleave(8)
    x = truth.process.corrupt(truth.sample(64), t, noise(64), {})
    objective = FokkerPlanck(truth.process)
    shifted = lambda x, t: truth.log_prob(x, t) + (9 * t).sin()  # noqa: E731
    assert residual(terms(shifted, truth.process, x, t)).abs().max() > 1
    assert objective.penalty(shifted, x, t) < 1e-20
    assert objective.penalty(Quadratic(), x, t) > 1


class Known(nn.Module):
    """The log-density of a mixture as a network, scaled."""

    def __init__(self, truth: GaussianMixture, scale: float = 1.0) -> None:
        super().__init__()
        self.truth, self.scale = truth, scale

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.scale * self.truth.log_prob(x, t)


def test_the_truth_has_the_least_loss() -> None:
    truth = mixture("vp-linear")
    x0 = truth.sample(2048)
    losses = {
        scale: FokkerPlanck(truth.process, lam=1e-3).loss(Known(truth, scale), x0, None, noise(2048)).item()
        for scale in (0.9, 1.0, 1.1)
    }
    assert losses[1.0] < min(losses[0.9], losses[1.1])
    plain = FokkerPlanck(truth.process).loss(Known(truth), x0, None, noise(2048)).item()
    assert losses[1.0] == pytest.approx(plain, abs=1e-12)  # the truth pays no penalty


@pytest.mark.parametrize("probes", [None, 2])
def test_the_loss_is_the_fit_and_lam_times_the_penalty_and_trains_both(probes: int | None) -> None:
    truth = mixture("vp-linear")
    x0, u = truth.sample(64), Quadratic()

    def loss(lam: float) -> Tensor:
        return FokkerPlanck(truth.process, lam=lam, probes=probes).loss(u, x0, None, noise(64))

    fit, one, two = (loss(lam).item() for lam in (0.0, 1e-3, 2e-3))
    assert one - fit > 1e-3
    assert two - fit == pytest.approx(2 * (one - fit), rel=1e-9)

    loss(1e-3).backward()
    assert u.a.grad is not None
    slope = float(u.a.grad[0, 1])
    h = 1e-5
    with torch.no_grad():
        u.a[0, 1] += h
        up = loss(1e-3).item()
        u.a[0, 1] -= 2 * h
        down = loss(1e-3).item()
    assert slope == pytest.approx((up - down) / (2 * h), rel=1e-6)


def test_the_score_module_answers_inside_and_outside_of_gradients() -> None:
    truth = mixture("vp-linear")
    x, t = points(truth)
    with torch.no_grad():
        quiet = Score(Known(truth))(x, t)
    assert not quiet.requires_grad
    assert torch.allclose(quiet, truth.score(x, t), rtol=1e-10, atol=1e-10)
    assert Score(Quadratic())(x, t).requires_grad


def test_times_are_a_comb_shared_by_rows() -> None:
    objective = FokkerPlanck(points=4, first=0.1)
    t = objective.times(noise(80, step=3)).reshape(20, 4)
    assert (t == t[:, :1]).all()
    assert torch.allclose(t[:, 0].diff(), torch.full((19,), 0.9 / 20, dtype=torch.float64))
    assert t.min() >= 0.1
    assert t.max() <= 1
    assert not torch.equal(t[:, 0], objective.times(noise(80, step=4)).reshape(20, 4)[:, 0])


def test_what_cannot_be_is_refused() -> None:
    x, t = torch.zeros(4, 3), torch.full((4,), 0.5, dtype=torch.float64)
    with pytest.raises(EbbError, match="noise"):
        terms(Quadratic(), process("vp-linear"), x, t, probes=2)
    with pytest.raises(EbbError, match="end"):
        diffusion(process("bridge"), t)
    with pytest.raises(EbbError, match="multiple"):
        FokkerPlanck(points=8).times(noise(12))
