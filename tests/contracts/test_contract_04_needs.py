"""Contract 4: what a part declares is true: its chance, its memory, its needs, its error estimate, its look ahead."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import worlds

from ebbtide.core import key, registry
from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Loop
from ebbtide.core.plan import MANY, Plan, features
from ebbtide.core.registry import Entry
from ebbtide.core.state import State
from ebbtide.core.tree import leaves


def moved(a: State, b: State) -> bool:
    """Whether two states hold other samples."""
    one, two = leaves(a.x), leaves(b.x)
    return any(one[k].shape != two[k].shape or not torch.equal(one[k], two[k]) for k in one)


@worlds.inhabited("needs", forms=False)
def test_without_declared_chance_no_noise_is_drawn(case: worlds.Case, monkeypatch: pytest.MonkeyPatch):
    world = case.world()
    state, drawn = world.after(1), []
    for name in ("normal", "uniform"):
        real = getattr(key, name)
        monkeypatch.setattr(key, name, lambda *a, real=real, **k: drawn.append(a) or real(*a, **k))
    end = worlds.finish(world.loop, state)
    other = worlds.finish(world.loop, replace(state, key=state.key + 1))
    if "stochastic" not in world.features:
        assert not drawn, f"{world.name} draws noise that nothing in its plan declares"
        assert not moved(end, other)
    elif world.loop.process.gives & {"continuous"} and getattr(world.part, "stochastic", False):
        assert drawn, f"{world.name} declares itself stochastic and draws nothing"
        assert moved(end, other), f"{world.name} declares itself stochastic and its draws change nothing"


def read(world: worlds.World, slot: str, count: int) -> tuple[bool, bool]:
    """Whether a slot of memory holds something after some steps, and whether a run without it goes another way.

    What is remembered may change the samples, or spare calls. Particles are compared by what they remember, so half of each
    request forgets: if all did, they might compare alike.
    """
    state = world.after(count)
    way = worlds.steps(world.loop, state)
    without = replace(state, memory={k: v for k, v in state.memory.items() if k != slot})
    if slot == "steer":
        some = torch.arange(0, worlds.ELEMENTS, 2)
        without = state.put(some, without.take(some))
    held = any(bool((v != 0).any()) for v in leaves(state.memory.get(slot, {})).values())
    other = worlds.steps(world.loop, without)
    changed = len(other) != len(way) or any(
        moved(a.state, b.state) or a.calls != b.calls for a, b in zip(way, other, strict=True)
    )
    return held and bool(way), changed


@worlds.inhabited("needs", forms=False)
def test_memory_is_kept_only_where_it_is_read(case: worlds.Case):
    """A run whose slots are emptied half way goes another way, and only because of the slots that held something."""
    world = case.world()
    for slot in world.after(2).memory:
        if slot == "grid":
            continue  # a grid without its memory knows no times
        held, changed = read(world, slot, 2)
        assert held or not changed, f"{world.name}: slot {slot} is empty yet read"
        # what spares work may have had nothing to spare just then, and weights may turn no lot
        used = changed or any(all(read(world, slot, k)) for k in (1, 3))
        assert used or not held, f"{world.name}: slot {slot} is kept and never read"


@pytest.mark.parametrize(
    ("entry", "need"),
    [pytest.param(e, n, id=f"{worlds.title(e)}-{n}") for e in worlds.parts() for n in sorted(e.needs)],
)
def test_a_plan_without_what_a_part_needs_is_refused(entry: Entry, need: str):
    """In one sentence that names the part or the need, before anything runs."""
    world = worlds.cases(entry)[0].world()
    bare: dict[str, Any] = {"grid": "linear", "solve": "euler", "start": "prior"}
    slots = {k: v for k, v in world.plan.to_dict().items() if k in registry.SLOTS}
    for slot, default in bare.items():
        if slot != entry.slot and any(need in features(p) for p in world.plan.parts(slot)):
            slots[slot] = default
    for slot in ("guide", "network", "correct"):
        kept = [s for s in slots.get(slot, []) if need not in features(registry.make(slot, s))]
        slots[slot] = kept
    lacking = [k for k in worlds.KINDS.values() if need not in features(registry.make("process", k))]
    for kind in lacking[:3]:
        process = registry.make("process", kind)
        with pytest.raises(EbbError, match=f"{need}|{re.escape(entry.name)}") as told:
            Plan(**slots).check(process, frozenset())
        assert "\n" not in str(told.value)
    assert lacking


@pytest.mark.parametrize(
    ("entry", "feature"),
    [pytest.param(e, f, id=f"{worlds.title(e)}-{f}") for e in worlds.parts() for f in sorted(e.refuses)],
)
def test_a_plan_with_what_a_part_refuses_is_refused(entry: Entry, feature: str):
    world = worlds.cases(entry)[0].world()
    clashes = 0
    for other in worlds.parts():
        if other.slot in ("process", entry.slot):
            continue
        for spec in worlds.variants(other):
            built = registry.make(other.slot, spec)
            if feature not in features(built):
                continue
            clashes += 1
            spec = [spec] if other.slot in MANY else spec
            with pytest.raises(EbbError):
                world.plan.replace(**{other.slot: spec}).check(world.model.process, frozenset({"null", "module"}))
    processes = [registry.make("process", k) for k in worlds.KINDS.values()]
    for process in (p for p in processes if feature in features(p)):
        clashes += 1
        with pytest.raises(EbbError):
            world.plan.check(process, frozenset({"null", "module"}))
    assert clashes, f"nothing gives {feature!r}, so refusing it means nothing"


@worlds.inhabited("needs", "solve")
def test_the_error_estimate_is_there_when_declared(case: worlds.Case):
    """err: one number a unit, float64 on the CPU, nil where the unit waits, falling with the length of the step.

    It is there where the grid asks for it, and only there.
    """
    world = case.world()
    state = world.after(1)

    def err(share: float, loop: Loop) -> torch.Tensor | None:
        ask, memory = loop.ask(state, "solve"), state.memory.get("solve", {})
        return loop.solve.step(state, memory, state.t * (1 - share), ask, loop.process)[0].err

    if "err" not in features(world.part):
        assert err(0.2, world.loop) is None
        return
    assert err(0.2, world.changed(grid="linear").loop) is None
    long, short, still = (err(share, world.changed(grid="adaptive").loop) for share in (0.2, 0.02, 0.0))
    assert long is not None
    assert short is not None
    assert still is not None
    for e in (long, short, still):
        assert (e.shape, e.dtype, e.device.type) == (state.t.shape, torch.float64, "cpu")
        assert bool(e.isfinite().all())
        assert bool((e >= 0).all())
    assert not bool(still.any())
    if world.loop.solve.order > 1:
        assert bool((short < long).all())
    else:
        assert not bool(long.any())


@worlds.inhabited("needs", "grid")
def test_a_grid_knows_its_times_ahead(case: worlds.Case):
    """ahead(k) is where the units are after k steps, unless the grid decides by what it sees on the way."""
    world = case.world()
    state = world.begin()
    assert torch.equal(state.t, world.loop.ask(state).ahead(0))
    if "err" in case.entry.needs:  # later times depend on errors not yet seen
        assert bool((world.loop.ask(state).ahead(1) < state.t).all())
        return
    seen = [world.loop.ask(state).ahead(k) for k in range(2 * worlds.STEPS)]
    for k, expected in enumerate(seen):
        assert torch.equal(state.t, expected), f"{world.name}: after {k} steps"
        assert bool((expected <= seen[max(k - 1, 0)]).all())
        state = world.loop.step(state).state
