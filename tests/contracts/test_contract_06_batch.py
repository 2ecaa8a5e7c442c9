"""Contracts 6, 7 and 8: a sample depends on its seed, its condition and its plan, never on its neighbours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from torch import Tensor

from ebbtide.core import registry
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.time import right, spread
from ebbtide.core.tree import Memory, leaves


def alone(world: worlds.World) -> list[State]:
    """Every request run by itself to its end."""
    return [worlds.finish(world.loop, world.begin(rows)) for rows in world.requests()]


@worlds.inhabited("batch")
def test_alone_in_a_batch_and_streamed_are_the_same_bits(case: worlds.Case):
    world = case.world()
    # bits agree in either precision; units of other forms take float32, where the weights are rounded once more
    world = world.cast(torch.float32) if world.exact and case.form != "element" else world
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
    later = world.loop.step(state).state
    mixed, rest = state.put(some, later.take(some)), torch.tensor([r for rows in world.requests()[:-1] for r in rows])
    world.same(mixed.take(some), later.take(some), "put")
    world.same(mixed.take(rest), state.take(rest), "put beside")


@worlds.inhabited("take", forms=False)
def test_clones_diverge_when_there_is_chance_and_only_then(case: worlds.Case):
    world = case.world()
    if case.entry.slot == "steer":
        return
    state = world.after(1)
    for generation in ([0, 0, 1, 2, 3], [0, 0, 1, 1, 2, 4], [0, 1, 1, 2, 2, 3]):
        state = state.take(torch.tensor(generation))
        assert len(state.key.unique()) == state.key.numel(), f"{world.name}: two that live share a key"
    state = world.after(1).take(torch.tensor([0, 0, 1, 1, 1]))
    end = worlds.finish(world.loop, state)
    x = torch.cat([v.flatten(1).double() for v in leaves(end.x).values()], 1)
    near = 0.0 if world.exact else 1e-4
    same = all(bool(((x[a] - x[b]).abs() <= near).all()) for a, b in ((0, 1), (2, 3), (3, 4)))
    if "stochastic" not in world.features:
        assert same, f"{world.name}: clones differ though nothing here is declared stochastic"
    elif x.dtype.is_floating_point and "continuous" in world.features and case.entry.slot == "solve":
        assert not same, f"{world.name}: clones are alike though the solver is declared stochastic"


@worlds.inhabited("resume")
def test_a_run_goes_on_from_a_file(case: worlds.Case, tmp_path: Path):
    world = case.world()
    ended = worlds.finish(world.loop, world.begin())
    for count in (0, 2):
        state = world.after(count)
        state.save(tmp_path / "run.safetensors", {"at": count})
        back, about = State.load(tmp_path / "run.safetensors")
        assert about == {"at": count}
        world.same(back, state)
        # in a plan bound anew: nothing that matters may live outside the state
        world.same(worlds.finish(world.fresh(), back), ended, f"stopped at {count}")


# ---------------------------------------------------------------- the same arithmetic for one time and for many

TIMES = [
    1.0,
    0.97,
    0.911,
    0.87,
    0.83,
    0.7713,
    0.7,
    0.66,
    0.6071,
    0.53,
    0.47,
    0.4,
    0.37,
    0.313,
    0.23,
    0.17,
    0.09,
    0.03,
    0.0,
]


def numbers() -> list[Any]:
    return [
        worlds.marked("batch", e, worlds.Case(e, spec, kind), worlds.Case(e, spec, kind).id)
        for e in worlds.parts("solve")
        for spec in worlds.variants(e)
        for kind in ("flow", "vp", "bridge")
        if worlds.goes(e, spec, kind)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", numbers())
def test_shared_times_and_times_of_its_own_are_the_same_bits(case: worlds.Case, dtype: torch.dtype):
    """Alone, an element's weights are floats; among others at other times they are tensors. Many odd times, either way."""
    world = case.world().changed(grid={"name": "explicit", "times": TIMES}).cast(dtype)
    pool = world.begin([0])
    for row in (1, 2, 3):
        pool = world.loop.step(world.loop.step(pool).state).state
        pool = pool.cat(world.begin([row]))
    pool = worlds.finish(world.loop, pool)
    for row in range(worlds.ELEMENTS):
        world.same(pool.take(torch.tensor([row])), worlds.finish(world.loop, world.begin([row])), f"row {row}")


@pytest.mark.parametrize(
    "spec",
    [
        worlds.marked("batch", e, s, f"{e.name}-{worlds.ident(s)}")
        for e in worlds.parts("process")
        for s in worlds.variants(e)
    ],
)
def test_schedules_round_alike_alone_and_together(spec: dict[str, Any]):
    """Some of torch's functions round by the length of the tensor (pow, sigmoid, hypot): no schedule may use those."""
    process = registry.make("process", spec)
    t = torch.cat([torch.tensor([0.0, 1.0]), torch.rand(21, generator=torch.Generator().manual_seed(1))]).double()
    s = t.flip(0)
    asked: dict[str, Any] = {}
    if "affine" in process.gives:
        asked = {"a": process.a, "c": process.c, "lam": process.lam, "time": lambda t: process.time(4 - 8 * t)}
        asked |= {"b": process.b} if process.ended else {}
        for eta in (0.5, 1.0):
            for k, name in enumerate(process.weights(t, s)._fields):
                asked[f"weight {name} {eta}"] = lambda t, k=k, eta=eta: spread(process.weights(t, 1 - t, eta)[k], t)
        for kind in ("eps", "v", "flow", "score"):
            for k in range(3):
                asked[f"{kind} {k}"] = lambda t, k=k, kind=kind: spread(process.kinds(kind, t)[k], t)
    elif "discrete" in process.gives:
        asked = {"alpha": process.alpha, "rate": process.rate, "kept": lambda t: process.kept(t / 2, t)}
    for name, f in asked.items():
        together = f(t).nan_to_num()
        alone = torch.cat([f(t[k : k + 1]) for k in range(len(t))]).nan_to_num()
        other = torch.cat([f(t[:7]), f(t[7:])]).nan_to_num()
        assert torch.equal(together, alone), f"{name} rounds differently alone, by {(together - alone).abs().max():.2g}"
        assert torch.equal(together, other), f"{name} rounds differently in another length"


class Forgetful(Solver):
    """Moves as Euler does, remembers every second step only, and says in x how often it remembered."""

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Any) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        known = memory["step"] if memory else torch.zeros_like(state.t)
        x = process.move(state.x, pred, state.t, s, 0.0, ask.noise, state.cond) + right(known, state.x) / 8
        odd = bool((state.i % 2 == 1).all())
        return Move(x, {} if odd else {"step": state.t}), pred


def test_memory_that_a_solver_lets_go_is_gone_whoever_else_is_there():
    """An element alone, and the same among others that have arrived, forget alike."""
    world = worlds.make(registry.find("solve", "euler"), {"name": "euler"})
    loop = replace(world.loop, solve=Forgetful())
    alone = worlds.finish(loop, world.begin([1]))
    ahead = worlds.finish(loop, world.begin([0]))
    pool = worlds.finish(loop, ahead.cat(world.begin([1])))
    world.same(pool.take(torch.tensor([1])), alone, "beside one that has arrived")
