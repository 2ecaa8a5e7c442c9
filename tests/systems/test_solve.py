"""Solver systems: the exact restorer against the joint law of both pictures, and heavy ball against its own recurrence."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.distributions import MultivariateNormal

import ebbtide as ebb
from ebbtide.process.flow import Flow
from ebbtide.process.mean_reverting import MeanReverting
from ebbtide.systems.solve import bottleneck_sampling as neck
from ebbtide.systems.solve import ghvb, mr_sampler


@pytest.mark.parametrize("time", [0.05, 0.5, 0.95])
def test_the_restorer_is_tweedies_mean_of_the_joint_law_of_x_t_and_mu(time: float):
    """log p(x_t, y) of the mixture in 16 dimensions, differentiated: E[x0 | x_t, y] = (x_t - b y + c^2 score) / a."""
    process = MeanReverting()
    g = mr_sampler.Blurred(process)
    t = torch.full((5,), time, dtype=torch.float64)
    a, b, c = (float(f(t)[0]) for f in (process.a, process.b, process.c))
    x0, y = g.pairs(5, 3)
    x = (a * x0 + b * y + c * mr_sampler.normal(4, 5, mr_sampler.D)).requires_grad_()
    eye = torch.eye(mr_sampler.D, dtype=torch.float64)
    blur = (eye + eye.roll(1, 0) + eye.roll(-1, 0)) / 3
    both = torch.cat([a * eye + b * blur, blur])  # of x0 in (x_t, y)
    noise = torch.cat([torch.cat([b * eye, eye]) * mr_sampler.NOISE, torch.cat([c * eye, 0 * eye])], 1)
    cov = mr_sampler.WIDTH**2 * both @ both.T + noise @ noise.T
    seen = torch.cat([x, y], 1)
    log = torch.stack([MultivariateNormal(both @ m, cov).log_prob(seen) for m in g.means]).logsumexp(0)
    (score,) = torch.autograd.grad(log.sum(), x)
    mean = g(x.detach(), t, {"y": y}).mean
    torch.testing.assert_close(mean, (x - b * y + c**2 * score).detach() / a, rtol=1e-8, atol=1e-8)


def test_pairs_of_the_restorer_have_the_law_that_it_is_exact_for():
    g = mr_sampler.Blurred(MeanReverting())
    x, y = g.pairs(6000, 11)
    eye = torch.eye(mr_sampler.D, dtype=torch.float64)
    rest = y - x @ ((eye + eye.roll(1, 0) + eye.roll(-1, 0)) / 3)
    torch.testing.assert_close(rest.T @ rest / len(x), mr_sampler.NOISE**2 * eye, rtol=0, atol=3e-4)


def test_heavy_ball_is_its_recurrence():
    """v = (1 - beta) v + beta (3 eps_n - eps_(n-1)) / 2 from v = eps_0, and x moves along v."""
    beta, mu, sigmas = 0.6, 0.7, torch.linspace(1, 0.4, 9, dtype=torch.float64)
    model = ebb.load(ghvb.Decay(), like=torch.zeros(1, dtype=torch.float64))
    plan = ebb.Plan(
        solve={"name": "ghvb", "terms": 2, "beta": beta, "form": "hb"},
        grid={"name": "explicit", "times": sigmas.tolist()},  # EDM's time is sigma
    )
    trace = ebb.sample(model, plan, cond={"mu": torch.full((1, 1), mu, dtype=torch.float64)}, seed=3, trace=True).trace
    x = ebb.api.begin(model, plan, cond={"mu": torch.full((1, 1), mu, dtype=torch.float64)}, seed=3)[1].x
    v = last = None
    for (s, to), found in zip(itertools.pairwise(sigmas.tolist()), trace, strict=True):
        eps = mu * x
        v = eps if v is None else (1 - beta) * v + beta * (1.5 * eps - 0.5 * last)
        x, last = x + (to - s) * v, eps
        torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


def field() -> torch.Tensor:
    """The covariance of the field by sums of cosines, (S^2, S^2)."""
    row = torch.fft.ifft2(neck.spectrum()).real
    place = torch.cartesian_prod(*(torch.arange(neck.SIDE),) * 2)
    apart = place[:, None] - place
    return row[apart[..., 0] % neck.SIDE, apart[..., 1] % neck.SIDE]


@pytest.mark.parametrize("side", [neck.SIDE, neck.SIDE // 2])
def test_the_field_is_known_in_both_sizes(side: int):
    """By the conditional of a joint Gaussian, its covariance resized pixel by pixel for the half."""
    cov = field()
    if side < neck.SIDE:
        whole = torch.eye(neck.SIDE**2, dtype=torch.float64).reshape(-1, 1, neck.SIDE, neck.SIDE)
        down = torch.nn.functional.interpolate(whole, (side, side), mode="bilinear", antialias=True).flatten(1)
        cov = down.T @ cov @ down
    t = torch.full((2,), 0.6, dtype=torch.float64)
    x = mr_sampler.normal(4, 2, side**2)
    a, c = Flow().a(t)[0], Flow().c(t)[0]
    eye = torch.eye(side**2, dtype=torch.float64)
    wanted = torch.linalg.solve(a**2 * cov + c**2 * eye, (a * cov) @ x.T).T
    found = neck.Knows()(x.reshape(2, 1, side, side), t).flatten(1)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_pixels_of_the_field_have_variance_one():
    assert float(field().diagonal().mean()) == pytest.approx(1)
    assert float(torch.linalg.eigvalsh(field()).min()) > 0
