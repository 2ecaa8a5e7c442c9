"""Contract 5: switched off, a technique leaves the baseline bit for bit; switched on, it does something."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import worlds

from ebbtide.core import registry
from ebbtide.core.plan import MANY
from ebbtide.core.registry import Entry
from ebbtide.core.state import Step
from ebbtide.core.tree import leaves

SWITCHED = ("guide", "network", "solve", "correct", "steer")


@worlds.each("off", *SWITCHED)
def test_every_technique_can_be_switched_off(entry: Entry):
    assert entry.off is not None or entry.baseline is not None, (
        f"{worlds.title(entry)} declares neither off nor baseline: say how it is switched off, or why it cannot be"
    )


def baseline(world: worlds.World, entry: Entry, spec: dict[str, Any]) -> worlds.World:
    """The plan without the part: its baseline in its place, with the parameters they share, or nothing."""
    if entry.baseline is None:
        assert entry.slot in MANY or entry.slot == "steer", f"{worlds.title(entry)} has an off switch but no baseline"
        return world.changed(**{entry.slot: [] if entry.slot in MANY else None})
    known = registry.find(entry.slot, entry.baseline).cls.__pydantic_fields__
    plain = {"name": entry.baseline, **{k: v for k, v in spec.items() if k in known}}
    return world.changed(**{entry.slot: [plain] if entry.slot in MANY else plain})


def trail(world: worlds.World) -> list[Step]:
    return worlds.steps(world.loop, world.begin())


def alike(a: Step, b: Step) -> bool:
    """The same samples, times and calls, bit for bit."""
    one, two = (leaves({"x": s.state.x, "t": s.state.t, "i": s.state.i, "key": s.state.key}) for s in (a, b))
    return a.calls == b.calls and all(torch.equal(one[k], two[k]) for k in one)


def switched(form: bool) -> Any:
    found = [
        c
        for e in worlds.parts()
        if e.off is not None
        for c in worlds.cases(e)
        if c.spec == worlds.examples(e)[0] and (form or c.form == "element")
    ]
    return pytest.mark.parametrize("case", [worlds.marked("off", c.entry, c, c.id) for c in found])


@switched(form=True)
def test_off_is_the_baseline_bit_for_bit(case: worlds.Case):
    for dtype in (torch.float64, torch.float32):
        world = worlds.make(case.entry, {**case.spec, **(case.entry.off or {})}, case.kind, case.form)
        world = world.cast(dtype) if world.exact else world
        plain = baseline(world, case.entry, world.spec)
        off, base = trail(world), trail(plain)
        assert len(off) == len(base)
        for k, (a, b) in enumerate(zip(off, base, strict=True)):
            assert alike(a, b), f"{world.name}: step {k}"


@worlds.each("off", *registry.SLOTS)
def test_on_is_something_else(entry: Entry):
    """And a guide or a patch that did something says so, as runs refuse those that never do."""
    on = worlds.examples(entry)[0]
    if entry.off is None or entry.off.items() <= on.items():
        return
    changed = False
    for case in worlds.cases(entry):
        if case.spec != on:
            continue
        world = case.world()
        off = worlds.make(case.entry, {**on, **entry.off}, case.kind, case.form)
        here, there = trail(world), trail(off)
        differs = len(here) != len(there) or not all(alike(a, b) for a, b in zip(here, there, strict=True))
        changed = changed or differs
        if differs and entry.slot in ("guide", "network"):
            assert sum(s.info.get(entry.name, 0) for s in here) > 0, f"{world.name} does not note what it did"
        if entry.slot in ("guide", "network"):
            assert not any(s.info.get(entry.name, 0) for s in there), f"{world.name} notes something while off"
    assert changed or entry.off == {} or entry.baseline == entry.name, f"{worlds.title(entry)} changes nothing"
