"""Contracts 6, 7 and 8: a sample depends on its seed, its condition and its plan, never on its neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import worlds
from ebbtide.core.state import State

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def alone(world: worlds.World) -> list[State]:
    """Every request run by itself to its end."""
    return [worlds.finish(world.loop, world.begin(rows)) for rows in world.requests()]


@DTYPES
@worlds.inhabited("batch")
def test_alone_in_a_batch_and_streamed_are_the_same_bits(case: worlds.Case, dtype: torch.dtype):
    world = case.world()
    world = world.cast(dtype) if world.exact else world
    solo = alone(world)
    whole = worlds.finish(world.loop, world.begin())
    for rows, one in zip(world.requests(), solo, strict=True):
        world.same(whole.take(torch.tensor(rows)), one, f"batch, rows {rows}")

    # requests join one by one, so their elements are at different steps; the first are done before the last begin
    pool = world.begin(world.requests()[0])
    for k, rows in enumerate(world.requests()[1:]):
        for _ in range((1, 2, worlds.STEPS + 3)[k % 3]):
            pool = world.loop.step(pool).state if not world.loop.done(pool) else pool
        pool = pool.cat(world.begin(rows))
    pool = worlds.finish(world.loop, pool)
    for rows, one in zip(world.requests(), solo, strict=True):
        world.same(pool.take(torch.tensor(rows)), one, f"stream, rows {rows}")


@worlds.inhabited("take", forms=False)
def test_take_commutes_with_step(case: worlds.Case):
    order = torch.tensor([2, 0, 3, 1])
    world = case.world()
    if len(world.requests()) < worlds.ELEMENTS:
        order = torch.tensor([2, 3, 0, 1])
    state = world.after(2)
    stepped = world.loop.step(state).state.take(order)
    world.same(world.loop.step(state.take(order)).state, stepped)
    ended = worlds.finish(world.loop, state)
    world.same(worlds.finish(world.loop, state.take(order)), ended.take(order))
    some = torch.tensor(world.requests()[-1])
    gone = worlds.finish(world.loop, state.take(some))
    world.same(gone, ended.take(some), "the others left")
    back = state.put(some, state.take(some))
    world.same(back, state, "put after take")


@worlds.inhabited("take", forms=False)
def test_clones_diverge_when_there_is_chance_and_only_then(case: worlds.Case):
    world = case.world()
    if case.entry.slot == "steer":
        return
    state = world.after(1).take(torch.tensor([0, 0, 1, 1, 1]))
    assert len(state.key.reshape(5, -1)[:, 0].unique()) == 5, f"{world.name}: two live elements share a key"
    assert len(state.key.unique()) == state.key.numel(), f"{world.name}: two live units share a key"
    end = worlds.finish(world.loop, state)
    x = torch.cat([v.flatten(1).double() for v in worlds.leaves(end.x).values()], 1)
    same = bool((x[0] == x[1]).all()) and bool((x[2] == x[3]).all()) and bool((x[3] == x[4]).all())
    if "stochastic" not in world.features:
        assert same, f"{world.name}: clones differ though nothing here is declared stochastic"
    elif x.dtype.is_floating_point and "continuous" in world.features and case.entry.slot == "solve":
        assert not same, f"{world.name}: clones are alike though the solver is declared stochastic"


@worlds.inhabited("resume")
def test_a_run_goes_on_from_a_file(case: worlds.Case, tmp_path: Path):
    world = case.world()
    ended = worlds.finish(world.loop, world.begin())
    for count in (0, 1, 3):
        state = world.after(count)
        state.save(tmp_path / "run.safetensors", {"at": count})
        back, about = State.load(tmp_path / "run.safetensors")
        assert about == {"at": count}
        world.same(back, state)
        # in a plan bound anew: nothing that matters may live outside the state
        world.same(worlds.finish(world.fresh(), back), ended, f"stopped at {count}")
