"""Recovery likelihood against closed forms: the chain's slope and law, Tweedie's mean, and where the loss has its minimum."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.parts import Denoiser
from ebbtide.core.registry import make
from ebbtide.core.state import Pred
from ebbtide.denoise.exact import Gaussian, GaussianMixture
from ebbtide.learn.recovery import Energies, RecoveryLikelihood, tweedie
from ebbtide.measure.metrics import energy_test
from ebbtide.process.affine import Affine
from ebbtide.process.gaussian import VPLinear
from ebbtide.solve.recovery import chain

PROCESSES = ["vp-linear", "vp-cosine", "ve", "flow"]


def noise(n: int, salt: int = 0) -> Noise:
    return Noise(keys(range(n)), torch.zeros(n, dtype=torch.int64), salt)


def at(t: float, n: int) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


def mixture(process: Affine) -> GaussianMixture:
    return GaussianMixture(process, [1, 2, 1], [[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]], [0.05, 0.1, 0.05])


class Known(nn.Module):
    """The log-density of a mixture times a factor, and a draft that is the posterior mean plus a shift."""

    def __init__(self, truth: GaussianMixture, factor: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.truth = truth
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))

    def energy(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.factor * self.truth.log_prob(x, t)

    def draft(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.truth(x, t, {}).mean + self.shift


@pytest.mark.parametrize("name", PROCESSES)
def test_the_chain_climbs_the_log_density_of_x_s_given_x_t(name: str) -> None:
    """A chain of vanishing noise and length moves along grad log p_s(y) + grad log q(x_t | y), by Bayes' rule."""
    truth = mixture(make("process", {"name": name}))
    p, n = truth.process, 50
    s, t = at(0.35, n), at(0.6, n)
    x, y = p.corrupt(truth.sample(n), t, noise(n), {}), p.corrupt(truth.sample(n, seed=99), s, noise(n, 1), {})
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    here = y.clone().requires_grad_()
    up = p.move(here, None, s, t, 1.0, Still(keys(range(n)), torch.zeros(n, dtype=torch.int64)), {})
    forward = p.weights(s, t, 1.0).noise
    assert isinstance(up, Tensor)
    log = truth.log_prob(here, s) - (x - up).square().sum(1) / (2 * forward**2)
    (slope,) = torch.autograd.grad(log.sum(), here)
    w, h = p.weights(t, s, 1.0), 1e-7
    quiet = w._replace(noise=1e-300)  # nil noise would say that these units have arrived
    moved = chain(p, quiet, y, x, lambda v: truth(v, s, {}).mean, noise(n), {}, 1, h)
    assert torch.allclose((moved - y) / h / w.noise**2, slope, rtol=1e-4, atol=1e-4)


class Still(Noise):
    """Draws of nothing."""

    def normal(self, like: Tensor, salt: int = 0) -> Tensor:
        return torch.zeros_like(like)


def test_a_long_chain_draws_the_conditional_of_a_gaussian() -> None:
    p = VPLinear()
    data, n, s, t = Gaussian(p, torch.tensor([0.7]), 0.3), 40_000, 0.3, 0.7
    w = p.weights(at(t, 1), at(s, 1), 1.0)
    high = torch.full((n, 1), -0.4, dtype=torch.float64)
    start = torch.full_like(high, 3.0)
    y = chain(p, w, start, high, lambda v: data(v, at(s, n), {}).mean, noise(n), {}, 150, 0.05)
    a, c = (torch.stack([f(at(v, 1))[0] for v in (s, t)]) for f in (p.a, p.c))
    var = a**2 * 0.3 + c**2
    across = a[1] / a[0] * var[0]  # x_t = (a_t / a_s) x_s + noise
    mean = a[0] * 0.7 + across / var[1] * (-0.4 - a[1] * 0.7)
    rest = var[0] - across**2 / var[1]
    assert abs(float(y.mean() - mean)) < 4 * float((rest / n).sqrt())
    assert float(y.var() / rest) == pytest.approx(1, abs=0.03)


def test_long_steps_need_the_chain() -> None:
    """From exact draws at t: refined, they are exact draws at s; the posterior step alone, with one hill, is not."""
    truth = mixture(VPLinear())
    model = ebb.load(truth, like=torch.zeros(2, dtype=torch.float64))
    n, low, high = 1500, 0.2, 0.75
    exact = truth.process.corrupt(truth.sample(n, seed=10_000), at(low, n), noise(n, 5), {})
    assert isinstance(exact, Tensor)
    found = {}
    for count in (0, 150):
        plan = ebb.Plan(
            solve={"name": "recovery", "langevin": count, "stride": 0.1},
            grid={"name": "explicit", "times": [high, low]},
        )
        loop, state = begin(model, plan, n=n)
        x = truth.process.corrupt(truth.sample(n), state.t, noise(n, 3), {})
        found[count] = energy_test(loop.step(replace(state, x=x)).state.x, exact, draws=199).p
    assert found[150] > 0.02
    assert found[0] <= 0.005


@pytest.mark.parametrize("name", PROCESSES)
def test_the_gradient_of_an_energy_is_a_denoiser(name: str) -> None:
    truth = mixture(make("process", {"name": name}))
    x, t = truth.sample(40), torch.linspace(0.05, 0.95, 40, dtype=torch.float64)
    known = Known(truth)
    assert torch.allclose(tweedie(known, truth.process, x, t), truth(x, t, {}).mean, rtol=1e-8, atol=1e-8)
    pred = Energies(known, truth.process)(x, t, {})
    assert torch.allclose(pred.mean, pred.aux["draft"], rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        assert not Energies(known, truth.process)(x, t, {}).mean.requires_grad
    here = x.requires_grad_()
    bends = [torch.autograd.grad(d(here, t, {}).mean.sum(), here)[0] for d in (Energies(known, truth.process), truth)]
    assert torch.allclose(*bends, rtol=1e-7, atol=1e-7)


def test_where_the_data_weigh_nothing_the_draft_stands_for_the_mean() -> None:
    truth = mixture(make("process", {"name": "flow"}))
    x = truth.sample(4)
    pred = Energies(Known(truth, shift=0.5), truth.process)(x, torch.tensor([1.0, 0.5, 1.0, 0.5]).double(), {})
    assert pred.mean.isfinite().all()
    same = (pred.mean == pred.aux["draft"]).all(1)
    assert same.tolist() == [True, False, True, False]


class Drafted(Denoiser):
    """A denoiser with a draft of its own; or with that draft as its mean."""

    def __init__(self, truth: GaussianMixture, swapped: bool) -> None:
        self.truth, self.process, self.swapped = truth, truth.process, swapped

    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Pred:
        mean = self.truth(x, t, cond).mean
        return Pred(mean=-mean) if self.swapped else Pred(mean=mean, aux={"draft": -mean})


def test_the_draft_alone_is_ancestral_sampling_of_the_initialiser_up_to_the_landing() -> None:
    truth = mixture(VPLinear())
    grid = {"name": "linear", "steps": 6}

    def trail(swapped: bool, solve: object) -> list[Tensor]:
        model = ebb.load(Drafted(truth, swapped), like=torch.zeros(2, dtype=torch.float64))
        loop, state = begin(model, ebb.Plan(solve=solve, grid=grid), n=5)
        return [step.state.x for step in loop.run(state)]

    ours = trail(False, {"name": "recovery", "langevin": 0})
    theirs = trail(True, "ancestral")
    assert all(torch.equal(a, b) for a, b in zip(ours[:-1], theirs[:-1], strict=True))
    assert torch.allclose(ours[-1], -theirs[-1])  # it lands on the mean, of which the draft is the opposite


def objective(**given: object) -> RecoveryLikelihood:
    return RecoveryLikelihood(levels=(0.15, 0.3, 0.6, 1.0), langevin=40, stride=0.15, **given)  # type: ignore[arg-type]


def gradients(factor: float, shift: float, n: int = 6000) -> tuple[float, float]:
    truth = mixture(VPLinear())
    known = Known(truth, factor, shift)
    objective().loss(known, truth.sample(n, seed=500), None, noise(n)).backward()
    assert known.factor.grad is not None
    assert known.shift.grad is not None
    return float(known.factor.grad), float(known.shift.grad)


def test_the_truth_is_where_the_loss_stands_still() -> None:
    """An energy too flat is made steeper, one too steep flatter; a draft to one side is drawn back."""
    steep, level, flat = gradients(1.3, 0.4), gradients(1.0, 0.0), gradients(0.7, -0.4)
    assert flat[0] < -5 * abs(level[0])
    assert steep[0] > 5 * abs(level[0])
    assert steep[1] > 5 * abs(level[1])
    assert flat[1] < -5 * abs(level[1])


def test_the_initialiser_is_taught_by_the_chain_and_not_by_the_data() -> None:
    """Where the energy is wrong the draft that fits it stands still, though the data lie elsewhere."""
    p, n = VPLinear(), 6000
    wrong = Known(Gaussian(p, torch.tensor([0.6, 0.6]), 0.5))
    away = Known(Gaussian(p, torch.tensor([0.6, 0.6]), 0.5), shift=0.4)
    data = Gaussian(p, torch.tensor([-0.6, -0.6]), 0.5).sample(n)
    for known in (wrong, away):
        objective().loss(known, data, None, noise(n)).backward()
    assert wrong.shift.grad is not None
    assert away.shift.grad is not None
    assert float(away.shift.grad) > 5 * abs(float(wrong.shift.grad))


def test_without_drafts_no_initialiser_is_taught_and_chains_start_from_x_t() -> None:
    truth = mixture(VPLinear())
    known, x0 = Known(truth), truth.sample(32)
    objective(draft=False).loss(known, x0, None, noise(32)).backward()
    assert known.shift.grad is None
    assert known.factor.grad is not None


def test_pairs_are_of_the_forward_chain_and_of_every_level() -> None:
    truth, n = mixture(VPLinear()), 30_000
    low, high, s, t = objective().pairs(truth.sample(n), noise(n))
    p, levels = truth.process, objective().levels
    for first, then in itertools.pairwise(levels):
        here = s == first
        assert bool((t[here] == then).all())
        assert float(here.double().mean()) == pytest.approx(1 / 3, abs=1e-3)
        scale = p.a(at(then, 1)) / p.a(at(first, 1))
        rest = high[here] - scale * low[here]
        spread = (p.c(at(then, 1)) ** 2 - (scale * p.c(at(first, 1))) ** 2).sqrt()
        assert float(rest.std() / spread) == pytest.approx(1, abs=0.02)
        together = torch.stack([rest[:, 0], low[here][:, 0]]).corrcoef()[0, 1]
        assert abs(float(together)) < 0.04


def test_labels_are_dropped_as_often_as_asked() -> None:
    seen = []

    class Listening(Known):
        def draft(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            seen.append(labels)
            return super().draft(x, t, labels)

    truth = mixture(VPLinear())
    labels = torch.ones(2000, dtype=torch.int64)
    replace(objective(drop=0.25, null=7), langevin=1).loss(Listening(truth), truth.sample(2000), labels, noise(2000))
    assert set(seen[0].tolist()) == {1, 7}
    assert float((seen[0] == 7).double().mean()) == pytest.approx(0.25, abs=0.04)


def test_what_cannot_be_is_refused() -> None:
    for levels in ((0.5,), (0.5, 0.2), (0.0, 0.5), (0.5, 1.5)):
        with pytest.raises(EbbError, match="rising"):
            RecoveryLikelihood(levels)
    with pytest.raises(EbbError, match="Langevin"):
        make("solve", {"name": "recovery", "draft": False, "langevin": 0})
