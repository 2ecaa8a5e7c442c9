"""Likelihood by divergence: closed forms, total probability, unbiased probes, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.denoise.exact import Gaussian, GaussianMixture
from ebbtide.denoise.model import Model, process
from ebbtide.measure.likelihood import log_likelihood

EVEN = ebb.Plan(grid={"name": "linear", "steps": 60})


def mixture(name: str = "flow", **parameters: bool) -> GaussianMixture:
    means = torch.tensor([[1.0, -0.5], [-1.0, 0.8], [0.3, 1.2]])
    covariance = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.05], [-0.05, 0.4]], [[0.2, 0.0], [0.0, 0.3]]])
    return GaussianMixture(process(name, **parameters), [0.5, 0.2, 0.3], means, covariance.double(), labels=[0, 1, 0])


def model(denoiser: Denoiser, event: tuple[int, ...] = (2,), **about: int) -> Model:
    return ebb.load(denoiser, like=torch.zeros(event, dtype=torch.float64), **about)


def data(n: int) -> Tensor:
    return mixture().sample(n, seed=100)


def now(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.float64)


@pytest.mark.parametrize("label", [0, 1, -1])
def test_the_closed_form_under_a_condition(label: int):
    g, x = mixture(), data(16)
    cond = {"label": torch.full((16,), label)}
    found = log_likelihood(model(g, labels=2), x, EVEN, cond=cond)
    assert torch.allclose(found, g.log_prob(x, now(x), cond), atol=1e-5)


def test_the_process_of_the_plan_does_not_matter():
    x, plan = data(16), ebb.Plan(process={"name": "vp-linear", "zero_terminal": True}, grid=EVEN.grid)
    assert torch.allclose(log_likelihood(model(mixture()), x, plan), mixture().log_prob(x, now(x)), atol=1e-5)


def test_it_is_of_order_four():
    """On interior times of a Gaussian; against a fine run."""
    g = Gaussian(process("vp-cosine"), torch.tensor([0.5, -1.0]), torch.tensor([0.3, 0.6]))
    x = g.sample(8)

    def run(steps: int) -> Tensor:
        times = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64).tolist()
        return log_likelihood(model(g), x, ebb.Plan(grid={"name": "explicit", "times": times}))

    coarse, fine, exact = run(6), run(12), run(96)
    assert math.log2(float((coarse - exact).norm() / (fine - exact).norm())) == pytest.approx(4, abs=0.4)


class Learned(Denoiser):
    """The posterior of no law: any velocity that bends, as an imperfect network has it."""

    process = process("flow")

    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Pred:
        t = t[:, None].to(x)
        return Pred(mean=x - t * (torch.sin(2 * x) + t * x / 2))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-7), (torch.float32, 1e-4)])
def test_probabilities_of_any_denoiser_sum_to_one(dtype: torch.dtype, error: float):
    x = torch.linspace(-12, 12, 1500, dtype=dtype)[:, None]
    total = torch.trapezoid(log_likelihood(model(Learned(), (1,)), x).exp(), x[:, 0].double())
    assert float(total) == pytest.approx(1, abs=error)


def test_probes_are_unbiased_and_an_elements_own():
    g, x = mixture(), data(3)
    exact = log_likelihood(model(g), x, EVEN)
    each = log_likelihood(model(g), x.repeat_interleave(400, 0), EVEN, probes=1).reshape(3, 400)
    error = each.std(1) / 20
    assert bool((error > 0).all())
    assert bool(((each.mean(1) - exact).abs() < 4 * error).all())
    seeds = [3, 8, 5]
    together = log_likelihood(model(g), x, EVEN, probes=5, seed=seeds)
    alone = [log_likelihood(model(g), x[j : j + 1], EVEN, probes=5, seed=seeds[j]) for j in range(3)]
    assert torch.equal(torch.cat(alone), together)


def test_units_share_one_time_or_are_refused():
    g = Gaussian(process("flow"), torch.zeros(3, 2), 0.4)
    x = g.sample(4)
    found = log_likelihood(model(g, (3, 2), units=1), x, EVEN)
    assert torch.allclose(found, g.log_prob(x, now(x)), atol=1e-5)
    with pytest.raises(EbbError, match="one time"):
        log_likelihood(model(g, (3, 2), units=1), x, ebb.Plan(grid="staggered"))


def test_what_has_no_density_is_refused():
    bridge = Gaussian(process("bridge"), torch.zeros(2), 1.0)
    with pytest.raises(EbbError, match="starts from a point"):
        log_likelihood(model(bridge), torch.zeros(2, 2).double(), EVEN, cond={"y": torch.ones(2, 2).double()})


@pytest.mark.parametrize("name", ["residual", "resfusion"])
def test_an_end_counts_in_flow_and_prior(name: str):
    """Both processes forget the data at t = 1, so the density does not depend on the end that it passes through."""
    g = Gaussian(process(name), torch.tensor([0.2, -0.4]), torch.tensor([0.5, 0.3]))
    x, y = g.sample(4), torch.tensor([[1.0, 3.0], [0.0, 0.0], [-2.0, 0.5], [5.0, -5.0]]).double()
    assert torch.allclose(log_likelihood(model(g), x, cond={"y": y}), g.log_prob(x, now(x), {"y": y}), atol=1e-4)
