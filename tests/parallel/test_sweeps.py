"""Sweeps: the order of moves, and that pipelined they are the same moves."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree
from ebbtide.parallel.sweeps import check, one_by_one, pipelined, wavefront
from ebbtide.process.flow import Flow

FRAMES, LEVELS, WIDTH = 7, 4, 2


class Chain(Denoiser):
    """A frame is predicted from itself and from what earlier ones are, the less noisy the more; `both` looks ahead too."""

    def __init__(self, both: bool = False) -> None:
        self.process, self.both = Flow(), both

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        t = t.reshape(len(x), -1).expand(len(x), x.shape[1])
        seen = (x * (1 - t)[..., None]).cumsum(1)
        return Pred(mean=torch.tanh(x + 0.3 * (seen.flip(1) if self.both else seen)))


def model(both: bool = False) -> Any:
    return ebb.load(Chain(both), like=torch.zeros(FRAMES, 3, dtype=torch.float64), units=1)


def plan(solve: Any = "euler", **grid: Any) -> ebb.Plan:
    return ebb.Plan(solve=solve, grid={"name": "sweeps", "steps": LEVELS, "block": WIDTH, **grid})


def moves(p: ebb.Plan) -> list[tuple[int, int]]:
    """(level, block) of every step of a run; all frames of a block move together, and nothing else does."""
    loop, state = begin(model(), p)
    out = []
    for step in loop.run(state):
        moved = (step.state.i != state.i)[0].nonzero()[:, 0].tolist()
        (block,) = {f // WIDTH for f in moved}
        assert moved == [f for f in range(FRAMES) if f // WIDTH == block]
        out.append((int(state.i[0, moved[0]]), block))
        state = step.state
    return out


def test_orders_are_those_of_the_loops_they_are_named_after() -> None:
    blocks = range(-(-FRAMES // WIDTH))
    assert moves(plan()) == [(j, b) for j in range(LEVELS) for b in blocks]
    assert moves(plan(order="block")) == [(j, b) for b in blocks for j in range(LEVELS)]
    head = [(j, b) for b in blocks for j in range(2)]
    assert moves(plan(head=2)) == head + [(j, b) for j in range(2, LEVELS) for b in blocks]


def test_with_one_level_both_orders_are_one() -> None:
    ends = [ebb.sample(model(), plan(steps=1, order=order), n=3).x for order in ("level", "block")]
    assert torch.equal(*ends)
    many = [ebb.sample(model(), plan(order=order), n=3).x for order in ("level", "block")]
    assert not torch.equal(*many)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("solve", ["euler", "dpmpp-2m", "lcm"])
def test_pipelined_is_sequential_to_the_bit(solve: str, batched: bool) -> None:
    whole = ebb.sample(model(), plan(solve), n=3, seed=4)
    out = list(pipelined(model(), plan(solve), n=3, seed=4, batched=batched))
    assert [s.block for s in out] == [0, 1, 2, 3]
    assert torch.equal(torch.cat([s.x for s in out], 1), whole.x)
    assert out[-1].tick == LEVELS + 4 - 1
    assert out[-1].calls == whole.calls
    assert [s.tick for s in out] == [LEVELS + b for b in range(4)]


def test_it_is_so_only_where_no_frame_looks_ahead() -> None:
    whole = ebb.sample(model(both=True), plan(), n=2).x
    out = torch.cat([s.x for s in pipelined(model(both=True), plan(), n=2)], 1)
    assert not torch.equal(out, whole)


def test_schedules_that_cannot_be_are_refused() -> None:
    check(wavefront(4, 5), 4, 5)
    check(one_by_one(4, 5), 4, 5)
    early = [*wavefront(4, 5)]
    early[1] = [*early[1], (1, 1)]
    with pytest.raises(EbbError, match="before block"):
        check(early, 4, 5)
    with pytest.raises(EbbError, match="before block 0 has moved from level 0"):
        check([[(0, 1)], [(0, 0)]], 1, 2)
    with pytest.raises(EbbError, match="once"):
        check(wavefront(4, 4), 4, 5)
    with pytest.raises(EbbError, match="second"):
        check([[(0, 0)], [(0, 0)]], 1, 1)


def test_what_cannot_be_pipelined_says_so() -> None:
    one, run = model(), functools.partial(pipelined, n=1)
    for p, why in (
        (ebb.Plan(), "level-first"),
        (plan(order="block"), "level-first"),
        (plan(head=1), "level-first"),
    ):
        with pytest.raises(EbbError, match=why):
            next(run(one, p))
    flat = ebb.load(Chain(), like=torch.zeros(FRAMES, 3, dtype=torch.float64))
    with pytest.raises(EbbError, match="units=1"):
        next(run(flat, plan()))
