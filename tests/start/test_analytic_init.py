"""Analytic starts: the moments of the start are those of x_M, and the fit is the nearest Gaussian there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.denoise.exact import Gaussian, GaussianMixture
from ebbtide.denoise.model import Model, process
from ebbtide.start import table
from ebbtide.start.analytic import best_fit

N = 20_000
MEANS = torch.tensor([[2.0, -0.5, 0.3], [-1.0, 1.5, 0.3]], dtype=torch.float64)
VAR = torch.tensor([[0.25, 0.04, 1.0], [0.09, 0.5, 0.2]], dtype=torch.float64)


def model(name: str = "vp-linear") -> Model:
    """A mixture of two Gaussians, in shares of 1 to 3."""
    return ebb.load(GaussianMixture(process(name), [1, 3], MEANS, VAR), like=torch.zeros(3, dtype=torch.float64))


def start(m: Model, fraction: float, n: int = N, **moments: Any) -> Tensor:
    """Draws of the start at M = fraction."""
    plan = ebb.Plan(
        grid={"name": "linear", "steps": 4}, start={"name": "analytic-init", "fraction": fraction, **moments}
    )
    _, state = begin(m, plan, n=n)
    assert bool((state.t == fraction).all())
    return state.x


def law(m: Model, t: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_t for each number, from the mixture by hand."""
    w = torch.tensor([[0.25], [0.75]], dtype=torch.float64)
    mean = (w * MEANS).sum(0)
    var = (w * (VAR + MEANS**2)).sum(0) - mean**2
    p: Any = m.process
    a, c = (f(torch.tensor([t], dtype=torch.float64)) for f in (p.a, p.c))
    return a * mean, a**2 * var + c**2


@pytest.mark.parametrize("name", ["vp-linear", "flow", "ve"])
@pytest.mark.parametrize("at", [0.94, 0.4])
def test_with_moments_of_each_channel_it_has_those_of_the_marginal(name: str, at: float):
    m = model(name)
    clean = law(m, 0.0)
    x = start(m, at, table={"mean": [clean[0].tolist()], "var": [clean[1].tolist()]})
    mean, var = law(m, at)
    assert ((x.mean(0) - mean).abs() < 5 * (var / N).sqrt()).all()
    assert ((x.var(0) / var - 1).abs() < 5 * (2 / N) ** 0.5).all()


def test_one_variance_for_all_is_the_nearest_of_its_kind():
    """No other mean or variance gives the start a lower KL divergence from the marginal: more likelihood for its draws."""
    m, at = model("flow"), 0.5
    p: Any = m.process
    g: Any = m.denoiser
    data = g.sample(4000)
    fit = best_fit(data)
    t = torch.full((4000,), at, dtype=torch.float64)
    x = p.a(t)[:, None] * data + p.c(t)[:, None] * torch.randn(data.shape, generator=torch.Generator().manual_seed(1))

    def likelihood(mean: Tensor, var: Tensor) -> float:
        v = 0.25 * var + 0.25
        return float((-((x - 0.5 * mean) ** 2) / (2 * v) - v.log() / 2).mean())

    best = likelihood(fit["mean"], fit["var"])
    for mean, var in ((0.3, 1.0), (-0.3, 1.0), (0.0, 1.3), (0.0, 0.75)):
        assert likelihood(fit["mean"] + mean, fit["var"] * var) < best - 1e-3


def test_exact_scores_of_an_isotropic_gaussian_carry_it_to_the_data():
    mean = torch.tensor([0.8, -0.4, 0.1], dtype=torch.float64)
    m = ebb.load(Gaussian(process("vp-linear"), mean, 0.3), like=torch.zeros(3, dtype=torch.float64))
    grid = {"name": "log-snr", "steps": 40, "first": 0.5}
    init = {"name": "analytic-init", "fraction": 1.0, "var": 0.3, "table": {"mean": [mean.tolist()], "var": [0.3]}}
    x = ebb.sample(m, ebb.Plan(solve="heun", grid=grid, start=init), n=N).x
    assert ((x.mean(0) - mean).abs() < 5 * (0.3 / N) ** 0.5).all()
    assert ((x.var(0) / 0.3 - 1).abs() < 0.06).all()
    plain = ebb.sample(m, ebb.Plan(solve="heun", grid=grid), n=N).x
    assert ((plain.mean(0) - mean).abs() > 0.05).any()


def test_numbers_are_the_law_of_the_truncated_start():
    plan = ebb.Plan(grid={"name": "linear", "steps": 4, "first": 0.7})
    mine = plan.replace(start={"name": "analytic-init", "mean": 0.3, "var": 4.0, "fraction": 1.0})
    theirs = plan.replace(start={"name": "truncated", "mean": 0.3, "std": 2.0, "strength": 1.0})
    assert torch.equal(begin(model(), mine, n=5)[1].x, begin(model(), theirs, n=5)[1].x)


def test_off_at_a_lower_time_is_noise_alone():
    grid = {"name": "linear", "steps": 4, "first": 0.7}
    off = ebb.Plan(grid=grid, start={"name": "analytic-init", "mean": 0.0, "var": 0.0, "fraction": 1.0})
    plain = ebb.Plan(grid=grid)
    assert torch.equal(ebb.sample(model(), off, n=5).x, ebb.sample(model(), plain, n=5).x)


def test_the_grid_makes_as_many_steps_from_lower_down():
    plan = ebb.Plan(grid={"name": "cosine", "steps": 6}, start={"name": "analytic-init", "fraction": 0.5})
    loop, state = begin(model(), plan, n=2)
    times = [state.t, *(step.state.t for step in loop.run(state))]
    whole, first = begin(model(), plan.replace(start="prior"), n=2)
    walked = [first.t, *(step.state.t for step in whole.run(first))]
    assert torch.allclose(torch.stack(times), 0.5 * torch.stack(walked), rtol=1e-12)


# ---------------------------------------------------------------- moments


def test_moments_of_data():
    x = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    one, each, whole = best_fit(x), best_fit(x, channels=1), best_fit(x, whole=True)
    assert (one["mean"].shape, each["var"].shape, whole["mean"].shape) == ((1,), (1, 3), (1, 3, 4, 4))
    assert torch.allclose(one["var"][0], x.double().var(correction=0))
    assert torch.allclose(each["mean"][0], x.double().mean((0, 2, 3)))
    assert torch.allclose(whole["var"][0], x.double().var(0, correction=0).mean())
    total = each["var"].mean() + each["mean"].var(correction=0)
    assert torch.allclose(total, one["var"][0]), "variance within channels and between them"


def test_moments_go_with_samples_by_channel_and_by_element(tmp_path: Path):
    m = ebb.load(Gaussian(process("flow"), torch.zeros(2, 3, 4), 1.0), like=torch.zeros(2, 3, 4))
    rows = {"mean": [[1.0, 2.0, 3.0]], "var": [[0.0, 0.0, 0.0]]}
    x = start(m, 1e-6, n=1, table=rows, axis=2)
    assert torch.allclose(x, torch.tensor([1.0, 2.0, 3.0])[:, None].expand(1, 2, 3, 4), atol=1e-4)
    mean = torch.arange(24.0).reshape(1, 2, 3, 4)
    filed = table.write(tmp_path / "moments.safetensors", mean=mean, var=torch.zeros(1))
    assert torch.allclose(start(m, 1e-6, n=1, table=filed), mean, atol=1e-4)
    with pytest.raises(EbbError, match=r"moments of start 'analytic-init' are \(3,\) where samples are \(2, 3, 4\)"):
        start(m, 0.9, n=1, table=rows, axis=1)
    with pytest.raises(EbbError, match="lacks var"):
        start(m, 0.9, n=1, table={"mean": [0.0]})


def test_a_grid_without_a_list_of_times_cannot_be_shrunk():
    plan = ebb.Plan(grid={"name": "adaptive"}, solve="heun", start={"name": "analytic-init"})
    with pytest.raises(EbbError, match="needs a grid whose times are known beforehand"):
        begin(model(), plan, n=1)
