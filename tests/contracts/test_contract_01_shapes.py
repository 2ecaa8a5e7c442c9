"""Contract 1: shapes and dtypes stay what they were, for every form of units."""

from __future__ import annotations

import pytest
import torch
import worlds

from ebbtide.core.registry import Entry
from ebbtide.core.state import State, Step
from ebbtide.core.tree import leaves


def check(world: worlds.World, state: State, step: Step | None) -> None:
    n, name = worlds.ELEMENTS, world.name
    wanted = {k: (v.shape, v.dtype) for k, v in leaves(world.like).items()}
    assert {k: (v.shape, v.dtype) for k, v in leaves(state.x).items()} == wanted, name
    units = (n, *world.units)
    assert (state.t.shape, state.t.dtype) == (units, torch.float64), name
    assert (state.i.shape, state.i.dtype) == (units, torch.int64), name
    assert (state.key.shape, state.key.dtype) == (units, torch.int64), name
    assert state.group.shape == (n,), name
    for leaf in (state.t, state.i, state.key, state.group):
        assert leaf.device.type == "cpu", name
    assert bool((state.t >= 0).all()), name
    assert bool((state.t <= 1).all()), name
    for key, leaf in state.flat().items():
        assert len(leaf) == n, f"{name}: {key} has not the batch first"
    for key, leaf in leaves(state.memory.get("solve", {})).items():
        lead = leaf.shape[: len(units)]
        assert len(lead) == len(units), f"{name}: solve memory {key} {tuple(leaf.shape)} belongs to no unit"
        assert all(w in (1, v) for v, w in zip(lead, units, strict=True)), f"{name}: solve memory {key}"
    if step is None:
        return
    assert isinstance(step.calls, int), name
    assert step.accepted is None or (step.accepted.shape, step.accepted.dtype) == (units, torch.bool), name
    if step.pred is not None:
        for key, leaf in leaves(step.pred.mean or {}).items() if isinstance(step.pred.mean, dict) else []:
            assert leaf.shape == leaves(world.like)[key].shape, name
        if isinstance(step.pred.mean, torch.Tensor):
            assert (step.pred.mean.shape, step.pred.mean.dtype) == (world.like.shape, world.like.dtype), name
        if isinstance(step.pred.logits, torch.Tensor):
            assert step.pred.logits.shape[:-1] == world.like.shape, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@worlds.inhabited("shapes")
def test_shapes_and_dtypes_are_kept(case: worlds.Case, dtype: torch.dtype):
    world = case.world()
    world = world.cast(dtype) if world.exact else world
    state = world.begin()
    check(world, state, None)
    for step in worlds.steps(world.loop, state):
        check(world, step.state, step)


@worlds.each("shapes")
def test_every_form_of_units_is_covered(entry: Entry):
    """A part that goes with numbers or tokens goes with elements, frames, sequences and pixels of them."""
    if "module" in entry.needs:
        return
    seen = {(c.kind, c.form) for c in worlds.cases(entry)}
    joint = {"joint", "pair", *(["own"] if entry.name == "joint" else [])}
    wanted = {(k, f) for k in worlds.kinds(entry)[:1] for f in worlds.FORMS if k not in joint or f != "pixels"}
    if entry.name == "symmetric":  # a pair has one time
        wanted -= {("own", "tokens"), ("own", "pixels")}
    assert wanted <= seen, f"{worlds.title(entry)} does not go with {sorted(wanted - seen)}"
