"""Contract 9: a step is a pure function. The second run equals the first and nothing outside has changed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from torch import nn

from ebbtide.core.registry import Entry
from ebbtide.core.tree import leaves


def outside(world: worlds.World) -> dict[str, Any]:
    """All that a run must leave as it found it."""
    module = getattr(world.model.denoiser, "module", None)
    modules = list(module.modules()) if isinstance(module, nn.Module) else []
    loop = world.loop
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "threads": torch.get_num_threads(),
        "modules": [{k: id(v) for k, v in m.__dict__.items()} for m in modules],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in modules],
        "weights": [(id(p), p._version, p.grad is None) for m in modules for p in m.parameters(recurse=False)],
        "parts": [repr(p) for p in (loop.start, loop.grid, loop.solve, *loop.layers[:-1], *loop.correct, loop.steer)],
        "like": [v.clone().tolist() for v in leaves({"x": world.like, "cond": world.cond}).values()],
    }


@worlds.inhabited("pure", forms=False)
def test_the_second_run_equals_the_first_and_leaves_no_trace(case: worlds.Case):
    world = case.world()
    before = outside(world)
    first = worlds.finish(world.loop, world.begin())
    world.same(worlds.finish(world.loop, world.begin()), first, "the second run")
    fresh = world.fresh()
    world.same(worlds.finish(fresh, world.begin(loop=fresh)), first, "bound anew")
    assert outside(world) == before, world.name


@worlds.inhabited("pure")
def test_a_step_leaves_its_state_as_it_was(case: worlds.Case):
    """Solvers may reuse their own fresh tensors in place, never those of the state or of a prediction."""
    world = case.world()
    state = world.begin()
    while not world.loop.done(state):
        kept = {k: v.clone() for k, v in state.flat().items()}
        step = world.loop.step(state)
        changed = [k for k, v in state.flat().items() if not torch.equal(v, kept[k])]
        assert not changed, f"{world.name}: {changed} written in place"
        world.same(world.loop.step(state).state, step.state, "the same step twice")
        state = step.state


@worlds.inhabited("pure", forms=False)
def test_failure_and_abandonment_leave_no_trace(case: worlds.Case):
    world = case.world()
    good = worlds.finish(world.loop, world.begin())
    before = outside(world)

    run = world.loop.run(world.begin())
    next(run)
    assert torch.is_grad_enabled() == before["grad"], f"{world.name}: a mode leaks through the yield"
    del run
    assert outside(world) == before, f"{world.name}: abandoned"

    count = world.told(worlds.Wrapped)
    worlds.finish(count.loop, count.begin())
    middle = (len(count.model.denoiser.rows) + 1) // 2
    broken = world.told(lambda inner: worlds.Wrapped(inner, fail_at=middle))
    with pytest.raises(RuntimeError, match="the network failed"):
        worlds.finish(broken.loop, broken.begin())
    assert outside(world) == before, f"{world.name}: after an exception"
    world.same(worlds.finish(world.loop, world.begin()), good, "after an exception")


@worlds.each("pure")
def test_the_callers_modes_are_seen_through(entry: Entry):
    """A run under no_grad, and one in a caller that wants gradients, give the same bits and leave the mode alone."""
    world = worlds.cases(entry)[0].world()
    plain = worlds.finish(world.loop, world.begin())
    with torch.no_grad():
        quiet = worlds.finish(world.loop, world.begin())
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    world.same(plain, quiet)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64 if default == torch.float32 else torch.float32)
        other = worlds.finish(world.loop, world.begin())
    finally:
        torch.set_default_dtype(default)
    if world.exact:
        world.same(plain, other, "the default dtype changes the samples")
