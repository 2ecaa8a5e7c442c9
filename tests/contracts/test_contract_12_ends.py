"""Contract 12: one step, two steps, no step; from t = 1 exactly to 0 exactly; nothing that is not a number, anywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import worlds

from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.registry import Entry
from ebbtide.core.state import State
from ebbtide.core.tree import leaves


def finite(name: str, state: State, pred: Any = None) -> None:
    __tracebackhide__ = True
    tree = {"x": state.x, "t": state.t, "memory": state.memory}
    for key, leaf in leaves(tree).items():
        assert not leaf.is_floating_point() or bool(leaf.isfinite().all()), f"{name}: {key} is not finite"
    if pred is not None and pred.mean is not None:
        for key, leaf in leaves(pred.mean).items():
            assert bool(leaf.isfinite().all()), f"{name}: the prediction {key} is not finite"


def grids(length: int | None) -> list[dict[str, Any]]:
    """A spec of every grid that can be `length` steps long, or (None) of those that have no such choice."""
    out = []
    for entry in worlds.parts("grid"):
        spec = worlds.examples(entry)[0]
        if "steps" in entry.cls.__pydantic_fields__:
            out += [] if length is None else [{**spec, "steps": length}]
        elif length is None:
            out.append(spec)
    if length is not None:
        out.append({"name": "explicit", "times": {1: [1.0, 0.0], 2: [1.0, 0.4, 0.0]}[length]})
    return out


PLAIN = ("euler", "heun", "dpmpp-2m", "confidence")
USUAL = ("flow", "vp-cosine", "bridge", "masked", "uniform")


def pairs() -> list[Any]:
    """Every process under every solver; its parameters changed under plain solvers; variants of solvers in usual ones."""
    out = []
    for solver in worlds.parts("solve"):
        for process in worlds.parts("process"):
            for j, spec in enumerate(worlds.variants(process)):
                for k, how in enumerate(worlds.variants(solver)):
                    # what varies is tried where it is likeliest to matter, or the pairs outgrow the suite
                    if (j and (k or solver.name not in PLAIN)) or (k and process.name not in USUAL):
                        continue
                    name = f"{solver.name}-{worlds.ident(how)}-{process.name}-{worlds.ident(spec)}"
                    out.append(worlds.marked("ends", solver, (process, spec, how), name))
    return out


@pytest.mark.parametrize("pair", pairs())
def test_every_process_solver_and_grid_that_go_together(pair: tuple[Entry, dict[str, Any], dict[str, Any]]):
    entry, spec, how = pair
    world = worlds.make(entry, spec, "own").cast(torch.float32)
    ran = refused = 0
    for length in (1, 2, None):
        for grid in grids(length):
            try:
                one = world.changed(solve=how, grid=grid)
                state = one.begin()
            except EbbError:
                refused += 1  # they do not go together, and say so before anything runs
                continue
            name = f"{entry.name} {how} {grid}"
            finite(name, state)
            count = 0
            for step in one.loop.run(state):
                state = step.state
                finite(name, state, step.pred)
                count += 1
            assert not bool(state.t.any()), f"{name} does not land on the data"
            assert length is None or count == length, f"{name} takes {count} steps"
            for key, leaf in leaves(state.x).items():
                process = one.loop.process.parts[key] if key else one.loop.process
                if "masked" in process.gives:
                    assert not bool((leaf == process.mask).any()), f"{name} leaves masks behind"
            ran += 1
    assert ran or refused


@worlds.inhabited("ends")
def test_nothing_happens_at_the_end(case: worlds.Case):
    """A state that has arrived has no steps left, and a step leaves it as it is, without a call."""
    world = case.world()
    state = world.run()
    assert world.loop.done(state)
    assert worlds.steps(world.loop, state) == []
    step = world.loop.step(state)
    assert step.calls == 0
    for a, b in zip(leaves(step.state.x).values(), leaves(state.x).values(), strict=True):
        assert torch.equal(a, b), world.name
    assert torch.equal(step.state.t, state.t)
    assert torch.equal(step.state.i, state.i)


@worlds.inhabited("ends")
def test_no_number_of_a_run_is_not_finite(case: worlds.Case):
    for dtype in (torch.float32, torch.float64):
        world = case.world().cast(dtype)
        state = world.begin()
        finite(world.name, state)
        for step in world.loop.run(state):
            state = step.state
            finite(world.name, state, step.pred)


@worlds.each("ends", "start")
def test_a_start_begins_on_the_grid(entry: Entry):
    for case in worlds.cases(entry):
        world = case.world()
        state = world.begin()
        times = torch.stack([world.loop.ask(state).ahead(k) for k in range(worlds.STEPS + 1)])
        assert bool((times == state.t).any(0).all()), world.name


def test_the_ends_are_really_met():
    """The pairs above hold processes whose data weighs exactly 0 at t = 1, and one without noise there."""
    made = [registry.make("process", s) for e in worlds.parts("process") for s in worlds.variants(e)]
    affine = [p for p in made if "affine" in p.gives]
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert sum(float(p.a(one)) == 0 for p in affine) >= 4
    assert any(float(p.c(one)) == 0 for p in affine)
    assert all(float(p.c(zero)) == 0 and float(p.a(zero)) == 1 for p in affine)
