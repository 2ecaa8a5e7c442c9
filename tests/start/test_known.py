"""Known units: they come back as they were given, and the others are drawn from their law given them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.denoise.exact import Gaussian
from ebbtide.denoise.model import Model, process

MEAN = torch.tensor([[0.5], [-0.3], [0.1]], dtype=torch.float64)
COV = torch.tensor([[1.0, 0.7, 0.3], [0.7, 1.0, 0.6], [0.3, 0.6, 0.8]], dtype=torch.float64)


def model(units: int = 1) -> Model:
    """Three frames of one number each that depend on one another."""
    return ebb.load(Gaussian(process("flow"), MEAN, COV), like=torch.zeros(3, 1, dtype=torch.float64), units=units)


def plan(frames: Any, steps: int = 20) -> ebb.Plan:
    grid = {"name": "linear", "steps": steps}
    return ebb.Plan(solve="heun", grid=grid, start={"name": "known", "frames": frames})


@pytest.mark.parametrize("frames", [[0], [0, -1]])
def test_the_others_have_their_law_given_the_known(frames: list[int]):
    n, given = 160, torch.tensor([[1.5], [-1.0], [-0.9]], dtype=torch.float64)
    x = ebb.sample(model(), plan(frames), cond={"source": given.expand(n, 3, 1)}, n=n).x[..., 0]
    known = sorted(f % 3 for f in frames)
    rest = [f for f in range(3) if f not in known]
    assert torch.equal(x[:, known], given[known, 0].expand(n, -1))
    gain = COV[rest][:, known] @ torch.linalg.inv(COV[known][:, known])
    mean = MEAN[rest, 0] + gain @ (given - MEAN)[known, 0]
    var = (COV[rest][:, rest] - gain @ COV[known][:, rest]).diagonal()
    assert ((x[:, rest].mean(0) - mean).abs() < 4 * (var / n).sqrt() + 0.02).all()
    assert ((x[:, rest].var(0) / var - 1).abs() < 4 * (2 / n) ** 0.5 + 0.05).all()


def test_each_element_may_know_other_units():
    known = torch.tensor([[True, False, False], [False, True, True], [False, False, False], [True, True, True]])
    source = torch.randn(4, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = ebb.sample(model(), plan(None), cond={"source": source, "known": known}, n=4).x
    assert torch.equal(x == source, known[..., None])
    alone = ebb.sample(model(), plan([0]), cond={"source": source[:1]}, n=1).x
    assert torch.equal(x[:1], alone)


def test_no_call_is_spent_on_what_is_known():
    source = torch.zeros(2, 3, 1, dtype=torch.float64)
    known = torch.tensor([[True] * 3, [False] * 3])
    drawn = ebb.sample(model(), plan(None), cond={"source": source, "known": known}, n=2)
    assert drawn.calls == ebb.sample(model(), plan(()), n=1).calls


def test_what_cannot_be_known_is_told():
    source = {"source": torch.zeros(2, 3, 1, dtype=torch.float64)}
    with pytest.raises(EbbError, match="names frame 3, but these elements have 3"):
        begin(model(), plan([3]), source, 2)
    with pytest.raises(EbbError, match="load the model with units=1"):
        begin(model(units=0), plan([0]), source, 2)
    with pytest.raises(EbbError, match=r"booleans of shape \(2, 3\)"):
        begin(model(), plan(None), source, 2)
    with pytest.raises(EbbError, match="the units that are known"):
        begin(model(), plan([0]), None, 2)
