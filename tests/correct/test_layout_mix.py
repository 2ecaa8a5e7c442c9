"""Layout mixing: between img2img and the source's own way down."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model, process

GRID = {"name": "linear", "steps": 10}


def model(name: str) -> Model:
    means = torch.tensor([[2.0, 0.0], [-2.0, 1.0]], dtype=torch.float64)
    g = GaussianMixture(process(name), [1, 1], means, 0.04, labels=[0, 1])
    return ebb.load(g, like=torch.zeros(2, dtype=torch.float64), labels=2)


def source(n: int) -> Tensor:
    return torch.linspace(-1, 1, 2 * n, dtype=torch.float64).reshape(n, 2)


def plan(**mix: Any) -> ebb.Plan:
    return ebb.Plan(
        grid=GRID, start={"name": "encoded", "strength": 0.8}, correct=[{"name": "layout-mix", **mix}] if mix else []
    )


@pytest.mark.parametrize("name", ["flow", "vp-cosine"])
def test_with_none_of_its_own_steps_it_walks_the_source_down(name: str):
    """nu = 0 is the straight way of the source and the start's noise, up to where the mixing ends."""
    m, x = model(name), source(3)
    steps = list(ebb.run(m, plan(nu=0.0, first=0.9, last=0.35), cond={"label": 1, "source": x}, n=3))
    p: Any = m.process
    start = ebb.api.begin(m, plan(), cond={"label": 1, "source": x}, n=3)[1]
    t = start.t[:1]
    eps = (start.x - p.a(t) * x) / p.c(t)
    mixed = [s.state for s in steps if 0.35 <= float(s.state.t[0]) < 0.9]
    assert len(mixed) == 4
    for state in mixed:
        a, c = p.a(state.t[:1]), p.c(state.t[:1])
        assert float((state.x - a * x - c * eps).abs().max()) < 1e-12
    assert float((steps[-1].state.x - x).abs().max()) > 0.1  # below `last` it goes its own way


def test_a_run_without_a_source_is_refused_and_one_that_never_mixes_too():
    with pytest.raises(EbbError, match="'layout-mix' needs 'source'"):
        plan(nu=0.5).replace(start="prior")
    with pytest.raises(EbbError, match="did nothing in this run"):
        ebb.sample(model("flow"), plan(nu=0.5, first=0.95, last=0.9), cond={"label": 1, "source": source(2)}, n=2)
    with pytest.raises(EbbError, match="last lies below first"):
        plan(nu=0.5, first=0.2, last=0.4)
