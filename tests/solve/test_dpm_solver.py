"""DPM-Solver: the schedule called fast, the estimate of its error, and steps chosen by it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model
from ebbtide.solve.dpm_solver import fast

ROWS = 6
VP: Any = registry.make("process", {"name": "vp-linear"})
# section 3.4 of the paper, written out
ORDERS = {
    1: (1,),
    2: (2,),
    3: (2, 1),
    6: (3, 2, 1),
    7: (3, 3, 1),
    8: (3, 3, 2),
    9: (3, 3, 2, 1),
    12: (3, 3, 3, 2, 1),
}


def model() -> Model:
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.2, -1.0]], dtype=torch.float64)
    return ebb.load(GaussianMixture(VP, [1, 2, 1], means, 0.2), like=torch.zeros(2, dtype=torch.float64))


def even(steps: int) -> list[float]:
    """Times even in log-SNR, none of them the data's."""
    first, last = VP.lam(torch.tensor([1.0, 1e-3], dtype=torch.float64)).tolist()
    return VP.time(torch.linspace(first, last, steps + 1, dtype=torch.float64)).tolist()


def explicit(times: list[float], **solve: Any) -> ebb.Plan:
    return ebb.Plan(solve={"name": "dpm-solver", **solve}, grid={"name": "explicit", "times": times})


@pytest.mark.parametrize("space", ["noise", "data"])
@pytest.mark.parametrize("calls", sorted(ORDERS))
def test_fast_is_a_row_of_steps_of_the_orders_of_the_paper(calls: int, space: str) -> None:
    steps, tail = fast(calls)
    times, m = even(steps), model()
    out = ebb.sample(m, explicit(times, space=space, tail=tail), n=ROWS)
    assert out.calls == calls * ROWS == sum(ORDERS[calls]) * ROWS
    x = begin(m, explicit(times), n=ROWS)[1].x
    for order, (t, s) in zip(ORDERS[calls], pairwise(times), strict=True):
        loop, state = begin(m, explicit([t, s], space=space, order=order), n=ROWS)
        x = loop.step(replace(state, x=x)).state.x
    assert torch.equal(out.x, x)


def test_a_landing_is_one_call_whatever_the_tail() -> None:
    times = [*even(3), 0.0]
    for tail, calls in (
        ((), 3 + 3 + 3 + 1),
        ((1,), 3 + 3 + 3 + 1),
        ((2, 2), 3 + 3 + 2 + 1),
        ((1, 2, 1, 1, 2), 2 + 1 + 1 + 1),
    ):
        assert ebb.sample(model(), explicit(times, tail=tail), n=ROWS).calls == calls * ROWS, tail


def test_a_tail_lowers_orders_and_raises_none() -> None:
    m, times = model(), even(3)
    assert torch.equal(ebb.sample(m, explicit(times, order=1, tail=(2, 2)), n=ROWS).x,
                       ebb.sample(m, explicit(times).replace(solve="euler"), n=ROWS).x)  # fmt: skip
    assert torch.equal(ebb.sample(m, explicit(times, order=2, tail=(2, 2)), n=ROWS).x,
                       ebb.sample(m, explicit(times, order=2), n=ROWS).x)  # fmt: skip
    with pytest.raises(EbbError, match="tail"):
        explicit(times, tail=(3,))


class Two(Denoiser):
    """Numbers that are -1 or 1, each by itself, at times of their own."""

    process = VP

    def __call__(self, x: Any, t: Tensor, cond: Any) -> Pred:
        a, c = (f(t).reshape(t.shape + (1,) * (x.ndim - t.ndim)) for f in (VP.a, VP.c))
        return Pred(mean=(a * x / c**2).tanh())


def test_units_that_are_at_different_steps_take_their_own_orders() -> None:
    """Frames that wait for each other end where frames that walk together do."""
    m = ebb.load(Two(), like=torch.zeros(3, 2, dtype=torch.float64))
    ends = []
    for delay in (0, 1, 2):
        plan = ebb.Plan(
            solve={"name": "dpm-solver", "tail": (2, 1)},
            grid={"name": "staggered", "steps": 5, "first": 0.9, "delay": delay},
        )
        loop = m.loop(plan, {})
        state = loop.begin(torch.zeros(2, 3, 2, dtype=torch.float64), {}, [0, 1], (3,))
        for step in loop.run(state):
            state = step.state
        ends.append(state.x)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


# ---------------------------------------------------------------- the estimate, and steps chosen by it


def first_error(order: int, h: float) -> tuple[Tensor, Tensor]:
    """The error that a first adaptive step of length h is said to make, and where it leads."""
    grid = {"name": "adaptive", "tol": 1e9, "first": 0.7, "h": h}
    plan = ebb.Plan(solve={"name": "dpm-solver", "order": order}, grid=grid)
    loop, state = begin(model(), plan, n=ROWS)
    target = loop.grid.ahead(state, state.memory["grid"], 1)
    move, _ = loop.solve.step(state, {}, target, loop.ask(state, "solve"), loop.process)
    assert move.err is not None
    return move.err, move.x


def test_the_estimate_of_order_2_is_the_distance_to_ddim() -> None:
    said, x = first_error(2, 0.2)
    loop, state = begin(model(), explicit([0.7, 0.5]).replace(solve="euler"), n=ROWS)
    ddim = loop.step(state).state.x
    size = x.square().mean(1).sqrt().clamp_min(1)
    assert torch.allclose(said, (x - ddim).square().mean(1).sqrt() / size, rtol=1e-9)


@pytest.mark.parametrize("order", [2, 3])
def test_the_estimate_is_the_local_error_of_one_order_less(order: int) -> None:
    coarse, fine = (float(first_error(order, h)[0].mean()) for h in (0.004, 0.002))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("order", [2, 3])
def test_adaptive_steps_meet_their_tolerance(order: int) -> None:
    """At the end, against the same run with tiny steps: within twice the tolerance, and in proportion to it."""
    solve, m = {"name": "dpm-solver", "order": order}, model()
    fine = {"name": "log-snr", "steps": 60, "first": 1.0, "last": 1e-3}
    ref = ebb.sample(m, ebb.Plan(solve={"name": "runge-kutta", "tableau": "dopri5"}, grid=fine), n=ROWS).x
    calls = []
    for tol in (1e-2, 2e-3, 4e-4):
        out = ebb.sample(m, ebb.Plan(solve=solve, grid={"name": "adaptive", "tol": tol}), n=ROWS)
        assert float((out.x - ref).square().mean().sqrt()) < 2 * tol
        calls.append(out.calls)
    assert calls == sorted(calls)


def test_adaptive_steps_have_no_tail() -> None:
    plan = ebb.Plan(solve={"name": "dpm-solver", "tail": (2, 1)}, grid="adaptive")
    assert torch.equal(ebb.sample(model(), plan).x, ebb.sample(model(), plan.replace(solve="dpm-solver")).x)


def test_a_tolerance_that_cannot_be_met_names_the_smallest_step() -> None:
    plan = ebb.Plan(solve={"name": "dpm-solver", "order": 2}, grid={"name": "adaptive", "tol": 1e-19})
    with pytest.raises(EbbError, match=r"1e-19 cannot be met: the smallest step reached, [1-4].*e-07 at t = 1,"):
        ebb.sample(model(), plan)


def test_a_step_of_order_1_has_nothing_to_compare_with() -> None:
    plan = ebb.Plan(solve={"name": "dpm-solver", "order": 1}, grid="adaptive")
    with pytest.raises(EbbError, match="order 2 or more"):
        ebb.sample(model(), plan)
