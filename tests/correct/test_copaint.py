"""CoPaint and time travel: the gradient step itself, a loss that never rises, and stretches that are walked again."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.state import State
from ebbtide.denoise.exact import Gaussian, GaussianMixture
from ebbtide.process.flow import Flow
from ebbtide.process.gaussian import VPCosine, VPLinear

LIKE = torch.zeros(4, dtype=torch.float64)
MASK = torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)
Y = torch.tensor([0.8, -0.3, 0, 0], dtype=torch.float64)


def law(process: Any = None) -> Gaussian:
    base = torch.tensor([[1.0, 0.5, 0.3, 0.2], [0.5, 1, 0.6, 0.1], [0.3, 0.6, 1, 0.7], [0.2, 0.1, 0.7, 1]])
    return Gaussian(process or VPCosine(), LIKE, base.double())


def run(model: Any, correct: list[Any], n: int = 8, steps: int = 20, solve: Any = "euler") -> tuple[Any, State]:
    plan = ebb.Plan(correct=correct, grid={"name": "linear", "steps": steps}, solve=solve)
    cond = {"measured": Y.expand(n, 4).clone(), "mask": MASK.expand(n, 4).clone()}
    return begin(ebb.load(model, like=LIKE), plan, cond, n)


def loss(loop: Any, state: State) -> Tensor:
    mean = loop.ask(state, "correct")(state.x, state.t, "look").mean
    return ((1 - MASK) * (mean - Y)).square().sum(1)


def test_one_small_step_is_down_the_gradient_in_closed_form() -> None:
    """x0-hat of a Gaussian is K x, so the gradient is 2 K^T (1 - m)(K x - y)."""
    loop, state = run(law(), [{"name": "copaint", "iters": 1, "rate": 1e-4, "growth": 1.0}])
    plain = replace(loop, correct=())
    for step in itertools.islice(plain.run(plain.begin(LIKE.expand(8, 4), state.cond, range(8))), 8):
        state = step.state
    t = state.t[:1]
    a, c = float(VPCosine().a(t)), float(VPCosine().c(t))
    cov = law().axes[0] @ torch.diag(law().spread[0]) @ law().axes[0].mT
    gain = a * cov @ torch.linalg.inv(a**2 * cov + c**2 * torch.eye(4, dtype=torch.float64))
    slope = 2 * ((1 - MASK) * (state.x @ gain.mT - Y)) @ gain
    moved, _ = loop.correct[0](state, {}, None, loop.ask(state, "correct"), loop.process)
    assert torch.allclose(moved.x - state.x, -1e-4 / a * slope, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("rate", [0.02, 5.0])
def test_the_loss_never_rises_whatever_the_rate(rate: float) -> None:
    law_ = GaussianMixture(VPCosine(), [1.0, 1], torch.tensor([[1.0, 1, 1, 1], [-1, -1, 1, -1]]), 0.1)
    loop, state = run(law_, [{"name": "copaint", "rate": rate, "reg": 0.0}])
    plain = replace(loop, correct=())
    state = plain.begin(LIKE.expand(8, 4), state.cond, range(8))
    for step in plain.run(state):
        here = step.state
        there, _ = loop.correct[0](here, {}, None, loop.ask(here, "correct"), loop.process)
        assert bool((loss(loop, there) <= loss(loop, here) + 1e-12).all())
        if float(here.t[0]) == 0:
            assert torch.equal(here.x, there.x)


def test_what_is_known_is_met_and_what_is_hidden_goes_with_it() -> None:
    loop, state = run(law(), [{"name": "copaint", "iters": 4, "rate": 0.2}], n=64, steps=40)
    for step in loop.run(state):
        state = step.state
    assert float((state.x[:, :2] - Y[:2]).abs().max()) < 0.05
    cov = law().axes[0] @ torch.diag(law().spread[0]) @ law().axes[0].mT
    hidden = cov[2:, :2] @ torch.linalg.inv(cov[:2, :2]) @ Y[:2]
    assert torch.allclose(state.x[:, 2:].mean(0), hidden, atol=0.35)
    assert not state.x.requires_grad


def test_its_steps_are_the_same_in_any_gaussian_process() -> None:
    """x / (a^2 + c^2)^1/2 moves by the same amount where a / c is the same."""
    ends = []
    for process in (VPCosine(), Flow(), VPLinear()):
        loop, state = run(law(process), [{"name": "copaint", "growth": 1.0, "reg": 0.5, "reg_growth": 1.0}])
        t = process.time(torch.full((8,), 0.3, dtype=torch.float64))
        size = (process.a(t) ** 2 + process.c(t) ** 2).sqrt()[:, None]
        x = size * torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(8, 4)
        here = replace(state, x=x, t=t, i=torch.ones_like(state.i))
        moved, _ = loop.correct[0](here, {}, None, loop.ask(here, "correct"), loop.process)
        ends.append(moved.x / size)
    assert torch.allclose(ends[0], ends[1], atol=1e-9)
    assert torch.allclose(ends[0], ends[2], atol=1e-9)


def test_caches_refuse_to_go_with_it() -> None:
    for patch in ("deepcache", "int8-dynamic"):
        with pytest.raises(EbbError, match="gradients"):
            ebb.Plan(correct=["copaint"], network=[patch])
    ebb.Plan(correct=[{"name": "copaint", "iters": 0}], network=["deepcache"])


# -------------------------------------------------------------------- time travel


@pytest.mark.parametrize(("length", "again"), [(2, 1), (3, 2), (1, 1)])
def test_every_stretch_but_the_last_is_walked_again(length: int, again: int) -> None:
    steps = 6
    loop, state = run(law(), [{"name": "time-travel", "length": length, "again": again}], steps=steps)
    places = [int(s.state.i[0]) for s in loop.run(state)]
    stretches = (steps - 1) // length
    assert len(places) == steps + again * length * stretches
    assert places[-1] == steps
    assert places.count(0) == again


def test_the_law_survives_the_journey() -> None:
    """Back into the noise and down again is the forward process: the law of the data is what comes out."""
    loop, state = run(law(), [{"name": "time-travel", "length": 5}], n=4000, steps=40, solve="heun")
    for step in loop.run(state):
        state = step.state
    cov = law().axes[0] @ torch.diag(law().spread[0]) @ law().axes[0].mT
    assert torch.allclose(state.x.mT.cov(), cov, atol=0.08)
    assert torch.allclose(state.x.mean(0), LIKE, atol=0.06)
