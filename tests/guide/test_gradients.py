"""Gradients through the denoiser against closed forms; nothing that leaves the guide holds on to a graph."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask, Loop
from ebbtide.core.parts import Inner
from ebbtide.core.state import Pred, Query, State
from ebbtide.core.tree import Memory, leaves
from ebbtide.denoise.exact import Gaussian
from ebbtide.denoise.model import process
from ebbtide.guide.cfg import CFG
from ebbtide.guide.gradients import Pulled, Pulling, through

VAR = 0.7
LIKE = torch.zeros(3, dtype=torch.float64)


def bound(guides: tuple[Pulling, ...] = ()) -> tuple[Loop, State]:
    model = ebb.load(Gaussian(process("vp-cosine"), LIKE, VAR), like=LIKE)
    loop = model.loop(ebb.Plan(grid={"name": "linear", "steps": 4}), {})
    loop = Loop(loop.process, loop.start, loop.grid, (*guides, *loop.layers), loop.solve)
    return loop, loop.begin(LIKE.expand(4, 3), {}, [1, 2, 3, 4])


def gain(loop: Loop, t: torch.Tensor) -> torch.Tensor:
    """d E[x0 | x_t] / dx of a Gaussian."""
    a, c = (f(t)[:, None] for f in (loop.process.a, loop.process.c))  # type: ignore[attr-defined]
    return a * VAR / (a**2 * VAR + c**2)


class Watched(Pulling):
    """Pulls towards 1 and keeps what it was told."""

    def __init__(self) -> None:
        self.seen: list[Pulled] = []

    def many(
        self, queries: Sequence[Query], memory: Memory, inner: Inner, ask: Ask, before: Memory
    ) -> tuple[list[Pred], Memory]:
        self.seen = through(ask, inner, queries, lambda q, p: ((p.mean - 1) ** 2).sum(1))
        return [v.pred._replace(mean=v.pred.mean - v.gradient) for v in self.seen], memory


def test_the_gradient_is_the_closed_form_row_by_row():
    guide = Watched()
    loop, state = bound((guide,))
    step = loop.step(state)
    (seen,) = guide.seen
    mean = gain(loop, state.t) * state.x
    assert torch.allclose(seen.pred.mean, mean, atol=1e-12)
    assert torch.allclose(seen.gradient, 2 * (mean - 1) * gain(loop, state.t), atol=1e-12)
    assert torch.allclose(seen.energy, ((mean - 1) ** 2).sum(1))
    assert not any(v.requires_grad for v in leaves(step.state._tree()).values())
    assert not seen.pred.mean.requires_grad


def test_stacked_guides_differentiate_through_one_another():
    """The outer one sees m' = m - 2 (m - 1) k, so its gradient is 2 (m' - 1) k (1 - 2 k)."""
    outer, inner = Watched(), Watched()
    loop, state = bound((outer, inner))
    step = loop.step(state)
    k = gain(loop, state.t)
    mean = k * state.x - 2 * (k * state.x - 1) * k
    assert torch.allclose(outer.seen[0].gradient, 2 * (mean - 1) * k * (1 - 2 * k), atol=1e-12)
    assert not any(v.requires_grad for v in leaves(step.state._tree()).values())


def test_a_model_without_gradients_and_a_bad_energy_are_told():
    loop, state = bound()
    ask = loop.ask(state)
    query = Query(state.x, state.t)
    with pytest.raises(EbbError, match="carry none"), torch.no_grad():
        through(ask, lambda q: [Pred(mean=q[0].x.detach())], [query], lambda q, p: p.mean.sum(1))
    with pytest.raises(EbbError, match="one number a row"), torch.no_grad():
        through(ask, lambda q: [Pred(mean=2 * q[0].x)], [query], lambda q, p: p.mean)


def test_fields_that_are_unused_and_tokens_have_gradients_of_zero():
    loop, state = bound()
    x = {"a": state.x, "b": state.x, "c": torch.zeros(4, 2, dtype=torch.int64)}
    with torch.no_grad():
        (out,) = through(
            loop.ask(state), lambda q: [Pred(mean=q[0].x)], [Query(x, state.t)], lambda q, p: (p.mean["a"] ** 2).sum(1)
        )
    assert torch.equal(out.gradient["a"], 2 * state.x)
    assert not out.gradient["b"].any()
    assert not out.gradient["c"].any()


def test_caches_refuse_gradients():
    """What is reused inside a network hides a part of the gradient."""
    from ebbtide.core import registry

    refused = {e.name for e in registry.entries("network") if "gradients" in e.refuses}
    assert {"deepcache", "ras", "bac", "int8-dynamic"} <= refused
    assert "gradients" in Watched().gives
    assert "gradients" not in CFG().gives


def test_stacked_guides_differentiate_through_fused_attention():
    """Torch's fused attention has no second derivative; a real network with it can be pulled at twice all the same."""
    data = ebb.load("digits").batch(2)
    plan = ebb.Plan(
        grid={"name": "linear", "steps": 2}, guide=[{"name": "self-guidance", "scale": s} for s in (1.0, 2.0)]
    )
    out = ebb.sample("digits", plan, cond={"label": 3, "observed": data, "level": torch.tensor([0.5, 0.5])}, n=2)
    one = ebb.sample("digits", plan.replace(guide=plan.guide[1:]), cond={"label": 3, "observed": data}, n=2)
    assert bool(out.x.isfinite().all())
    assert not torch.equal(out.x, one.x)
