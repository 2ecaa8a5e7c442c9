"""Truncated starts: exact where the fit is, off where it is not, and the tables that tell them what they know."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.registry import make
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model, process
from ebbtide.measure.metrics import energy_test
from ebbtide.start import table

MEANS = torch.tensor([[3.0, 0.0], [-3.0, 1.0]], dtype=torch.float64)
VAR = torch.tensor([[0.25, 0.04], [0.09, 1.0]], dtype=torch.float64)
TABLE = {"mean": MEANS.tolist(), "std": VAR.sqrt().tolist(), "weight": [1.0, 3.0]}


def model(name: str = "vp-linear") -> Model:
    g = GaussianMixture(process(name), [1, 3], MEANS, VAR, labels=[0, 1])
    return ebb.load(g, like=torch.zeros(2, dtype=torch.float64))


def noised(m: Model, n: int, t: float) -> torch.Tensor:
    """Exact draws of x_t."""
    time = torch.full((n,), t, dtype=torch.float64)
    g: Any = m.denoiser
    p: Any = m.process
    z = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    return p.a(time)[:, None] * g.sample(n, seed=10_000) + p.c(time)[:, None] * z


@pytest.mark.parametrize("name", ["vp-linear", "flow", "ve"])
def test_a_table_of_the_true_mixture_starts_in_the_true_law(name: str):
    m, n = model(name), 800
    plan = ebb.Plan(grid={"name": "linear", "steps": 4}, start={"name": "truncated", "strength": 0.5, "table": TABLE})
    _, state = begin(m, plan, n=n)
    assert bool((state.t == 0.5).all())
    assert energy_test(state.x, noised(m, n, 0.5)).p > 0.01
    _, prior = begin(m, plan.replace(start="prior", grid={"name": "linear", "steps": 2, "first": 0.5}), n=n)
    assert energy_test(prior.x, noised(m, n, 0.5)).p < 0.01, "pure noise at t = 0.5 is another law"


def test_labels_choose_their_row():
    plan = ebb.Plan(grid={"name": "linear", "steps": 10}, start={"name": "truncated", "strength": 0.1, "table": TABLE})
    _, state = begin(model(), plan, cond={"label": torch.tensor([0, 1] * 50)}, n=100)
    nearest = torch.cdist(state.x, MEANS).argmin(1)
    assert torch.equal(nearest, torch.tensor([0, 1] * 50))


def test_the_error_of_a_gaussian_fit_falls_with_its_time():
    """Moments of the whole, for data in two modes: wrong at low noise, drowned at high noise."""
    m, n = model(), 1500
    mean = (MEANS * torch.tensor([[0.25], [0.75]])).sum(0)
    second = ((VAR + MEANS**2) * torch.tensor([[0.25], [0.75]])).sum(0)
    fit = {"mean": [mean.tolist()], "std": [(second - mean**2).sqrt().tolist()]}
    gaps = []
    for strength in (0.1, 0.4, 0.7):
        start = {"name": "truncated", "strength": strength, "table": fit}
        _, state = begin(m, ebb.Plan(grid={"name": "linear", "steps": 10}, start=start), n=n)
        gaps.append(energy_test(state.x, noised(m, n, strength), draws=9).distance)
    assert gaps[0] > 4 * gaps[1] > 8 * gaps[2]


def test_numbers_are_a_table_of_one_row():
    plan = ebb.Plan(grid={"name": "linear", "steps": 4}, start={"name": "truncated", "mean": 0.3, "std": 2.0})
    same = plan.replace(start={"name": "truncated", "table": {"mean": 0.3, "std": [2.0]}})
    assert torch.equal(begin(model(), plan, n=5)[1].x, begin(model(), same, n=5)[1].x)


def test_a_start_on_a_grid_that_begins_low_needs_no_share():
    """strength 1 takes the grid as it is, one that finds its times on the way too."""
    start = {"name": "truncated", "strength": 1.0}
    plan = ebb.Plan(grid={"name": "adaptive", "first": 0.4}, start=start, solve="heun")
    assert bool((begin(model(), plan, n=3)[1].t == 0.4).all())


def test_spread_is_added_to_the_noise_in_squares():
    n = 40_000
    plan = ebb.Plan(grid={"name": "linear", "steps": 2}, start={"name": "truncated", "strength": 0.5, "std": 2.0})
    _, state = begin(model("flow"), plan, n=n)
    assert abs(float(state.x.std()) / math.hypot(0.5 * 2.0, 0.5) - 1) < 5 / (4 * n) ** 0.5


# ---------------------------------------------------------------- tables


def test_a_file_says_what_the_plan_says(tmp_path: Path):
    tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in TABLE.items()}
    said = table.write(tmp_path / "law.safetensors", **tensors)
    plan = ebb.Plan(grid={"name": "linear", "steps": 4}, start={"name": "truncated", "table": TABLE})
    filed = plan.replace(start={"name": "truncated", "table": said})
    assert torch.equal(begin(model(), plan, n=5)[1].x, begin(model(), filed, n=5)[1].x)
    table.write(tmp_path / "law.safetensors", **{**tensors, "mean": tensors["mean"] + 1})
    table._file.cache_clear()
    with pytest.raises(EbbError, match="is not the table that the plan means"):
        begin(model(), filed, n=5)
    with pytest.raises(EbbError, match="cannot be read as a table"):
        begin(model(), plan.replace(start={"name": "truncated", "table": {**said, "file": "nowhere"}}), n=5)
    short = table.write(tmp_path / "short.safetensors", mean=tensors["mean"])
    with pytest.raises(EbbError, match="holds no 'std'; it holds mean"):
        begin(model(), plan.replace(start={"name": "truncated", "table": short}), n=5)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"mean": [0.0]}, "lacks std"),
        ({"mean": [0.0], "std": [1.0], "colour": [1.0]}, "has colour too"),
        ({"mean": "far", "std": [1.0]}, "mean is a list of numbers"),
        ({"file": "x.safetensors"}, "lacks mean, std"),
    ],
)
def test_a_table_that_is_none_is_told_before_anything_runs(bad: dict[str, Any], words: str):
    with pytest.raises(EbbError, match=f"start 'truncated', table: .*{words}"):
        make("start", {"name": "truncated", "table": bad})


def test_rows_that_do_not_fit_are_told():
    start: dict[str, Any] = {"name": "truncated", "table": {"mean": [[0.0] * 3], "std": [1.0]}}
    with pytest.raises(EbbError, match=r"rows of the table are \(3,\) where samples are \(2,\)"):
        begin(model(), ebb.Plan(start=start), n=2)
    start = {"name": "truncated", "table": TABLE}
    with pytest.raises(EbbError, match="labels 0 to 1, not for 7"):
        begin(model(), ebb.Plan(start=start), cond={"label": torch.tensor([0, 7])}, n=2)
