"""Pipelined sweeps: one worker a level, blocks of frames flow through them, and a clip takes N + n - 1 moves of time, not N n.

    tick k    worker j moves block b = k - j from level j to level j + 1, and hands it to worker j + 1

The grid is `sweeps` in level-first order: (j, b) waits for (j, b - 1), of the same worker, and for (j - 1, b), of the one
before, and for nothing else where no frame looks at a later one. Each worker holds a state of the whole clip as it stands
when its own level is swept: blocks that have passed are one level on, blocks to come are not read. So every move is the move
of the sequential run, to the last bit.

Shapes   units (B, F); what a worker hands on is the units of a block: x, time, step, key and the solver's memory
Paper    Zou et al. 2026, "HiAR: Efficient autoregressive long video generation via hierarchical denoising"
         (arXiv 2603.08703)
Off      batched = False makes the moves of a tick one after another, as workers of their own would; else they are one call
Differs  memory of guides and patches stays with a worker, where a run hands it from level to level: parts that remember are
         refused. Workers are states, in one process; `State.flat` is what goes between several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Loop
from ebbtide.core.plan import Plan
from ebbtide.core.state import State
from ebbtide.core.tree import Tree, tree_map
from ebbtide.denoise.model import Model

Tick = Sequence[tuple[int, int]]
"""The moves (level, block) that are made at once."""


class Swept(NamedTuple):
    """A block that has arrived.

    block  which one
    x      its frames (B, frames, ...)
    tick   when, counted from 1 in moves
    calls  rows that the network has computed by then
    """

    block: int
    x: Tree
    tick: int
    calls: int


def wavefront(levels: int, blocks: int) -> list[list[tuple[int, int]]]:
    """The moves of every tick, one worker a level."""
    return [[(j, k - j) for j in range(levels) if 0 <= k - j < blocks] for k in range(levels + blocks - 1)]


def one_by_one(levels: int, blocks: int) -> list[list[tuple[int, int]]]:
    """The same moves in level-first order, one a tick."""
    return [[(j, b)] for j in range(levels) for b in range(blocks)]


def check(schedule: Sequence[Tick], levels: int, blocks: int) -> None:
    """Raises EbbError where a move comes before those that it needs, or is missing or made twice."""
    made: set[tuple[int, int]] = set()
    for k, tick in enumerate(schedule):
        for j, b in tick:
            for need in ((j, b - 1), (j - 1, b)):
                if min(need) >= 0 and need not in made:
                    raise EbbError(
                        f"tick {k} moves block {b} from level {j} before block {need[1]} has moved from level {need[0]}: "
                        "the schedule must wait for it."
                    )
            if (j, b) in made or tick.count((j, b)) > 1:
                raise EbbError(f"tick {k} moves block {b} from level {j} a second time.")
        made |= set(tick)
    if made != {(j, b) for j in range(levels) for b in range(blocks)}:
        raise EbbError(f"the schedule must move each of {blocks} blocks from each of {levels} levels once.")


def pipelined(
    model: Model,
    plan: Plan,
    *,
    cond: Any = None,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    batched: bool = True,
    schedule: Sequence[Tick] | None = None,
) -> Iterator[Swept]:
    """The blocks of `n` clips, as they arrive.

    plan      its grid is `sweeps`, level-first
    batched   whether the moves of a tick are one network call
    schedule  the moves of every tick; by default `wavefront`

    Raises EbbError for another grid, for a schedule that cannot be, and for a model whose frames share a time.
    """
    loop, state = begin(model, plan, cond, n, seed)
    width = _width(plan, state)
    spans = [list(range(f, min(f + width, state.t.shape[1]))) for f in range(0, state.t.shape[1], width)]
    levels = state.memory["grid"]["points"].shape[-1] - 1
    made = wavefront(levels, len(spans)) if schedule is None else list(schedule)
    check(made, levels, len(spans))
    workers = [_worker(loop, state, j) for j in range(levels)]
    calls = 0
    for k, tick in enumerate(made, 1):
        groups = [list(tick)] if batched else [[move] for move in tick]
        for group in groups:
            pool = workers[group[0][0]]
            for j, _ in group[1:]:
                pool = pool.cat(workers[j])
            step = loop.step(pool)
            calls += step.calls
            for row, (j, _) in enumerate(group):
                workers[j] = step.state.take(torch.arange(row * n, (row + 1) * n))
        for j, b in tick:
            block = workers[j].units(spans[b])
            if j + 1 < levels:
                index = [-1 if f in spans[b] else f for f in range(state.t.shape[1])]
                workers[j + 1] = workers[j + 1].units(index, block)
            else:
                yield Swept(b, block.x, k, calls)


def _worker(loop: Loop, state: State, level: int) -> State:
    """What the worker of a level holds before any block has come: nothing that will be read, at the level's time."""
    at = replace(state, i=torch.full_like(state.i, level))
    return replace(at, t=loop.grid.ahead(at, at.memory["grid"], 0), x=tree_map(lambda v: v.clone(), state.x))


def _width(plan: Plan, state: State) -> int:
    """Frames in a block."""
    (grid,) = plan.parts("grid")
    if grid.called != "sweeps" or grid.order != "level" or grid.head:
        raise EbbError("sweeps are pipelined in level-first order: give grid={'name': 'sweeps'}, with no head.")
    if state.t.ndim != 2:
        raise EbbError("sweeps need frames with times of their own: load the model with units=1.")
    if bool((state.i > 0).any()):
        raise EbbError("pipelined sweeps begin at the first level for all frames: leave the start out.")
    kept = [s for s in state.memory if s not in ("grid", "solve")]
    if kept or plan.steer is not None or plan.correct:
        raise EbbError(f"pipelined sweeps keep no memory but the solver's: leave {kept or 'steer and correct'} out.")
    return int(grid.block or state.t.shape[1])
