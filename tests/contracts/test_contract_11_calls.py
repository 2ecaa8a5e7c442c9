"""Contract 11: the network is called as often as declared, and as few times as shapes allow."""

from __future__ import annotations

import pytest
import torch
import worlds

from ebbtide.core import registry
from ebbtide.core.plan import features
from ebbtide.core.registry import Entry

LONG = 12


def counted(world: worlds.World) -> tuple[list[int], list[int], list[int]]:
    """What each step says it computed, the rows that the network saw, and how often it was called."""
    watched = world.told(worlds.Wrapped)
    said, rows, calls = [], [], []
    state = watched.begin()
    seen = watched.model.denoiser.rows
    seen.clear()
    for step in watched.loop.run(state):
        said.append(step.calls)
        rows.append(sum(seen))
        calls.append(len(seen))
        seen.clear()
    return said, rows, calls


@worlds.inhabited("calls")
def test_steps_tell_the_truth(case: worlds.Case):
    world = case.world()
    said, rows, _ = counted(world)
    assert said == rows, world.name


@worlds.inhabited("calls", "solve", forms=False)
def test_a_solver_calls_as_often_as_it_declares(case: worlds.Case):
    """At interior steps: past any start-up, before the landing."""
    world = case.world()
    own = frozenset().union(*(features(p) for p in world.plan.parts("grid"))) & case.entry.needs
    world = world if own else world.changed(grid={"name": "linear", "steps": LONG})  # it may need a grid of its own
    said, _, _ = counted(world)
    interior = slice(0, -1) if own else slice(LONG // 2, LONG - 1)
    declared = world.part.calls
    assert sum(said[interior]) == declared * worlds.ELEMENTS * len(said[interior]), f"{world.name}: {said}"
    assert max(said) <= max(declared, 4) * worlds.ELEMENTS * 4, "a start-up costs a few steps, not a run"


@worlds.inhabited("calls", "guide", forms=False)
def test_a_guide_asks_as_often_as_it_declares(case: worlds.Case):
    world = case.world()
    world = world.changed(grid={"name": "linear", "steps": LONG})
    said, _, _ = counted(world)
    plain, _, _ = counted(world.changed(guide=[]))
    assert sum(said) == world.part.calls * sum(plain), world.name


@pytest.mark.parametrize("solve", ["euler", "heun", "dpmpp-2m"])
def test_guidance_doubles_the_rows_not_the_calls(solve: str):
    entry = registry.find("guide", "cfg")
    for scale, factor in ((3.0, 2), (1.0, 1)):
        world = worlds.make(entry, {"name": "cfg", "scale": scale}).changed(solve=solve)
        said, rows, calls = counted(world)
        plain = counted(world.changed(guide=[]))
        assert rows == [factor * n for n in plain[1]] == said
        assert calls == plain[2], "both predictions of guidance are one call"


@worlds.each("calls", "grid")
def test_only_what_moves_is_computed(entry: Entry):
    """Elements that have arrived cost nothing while others go on."""
    for case in worlds.cases(entry, forms=False):
        world = case.world().told(worlds.Wrapped)
        ahead = worlds.finish(world.loop, world.begin([0, 1]))
        pool = ahead.cat(world.begin([2, 3]))
        seen = world.model.denoiser.rows
        seen.clear()
        first = world.loop.step(pool)
        alone = world.loop.step(world.begin([2, 3]))
        assert first.calls == alone.calls, world.name
        assert torch.equal(first.state.t[:2], ahead.t)
