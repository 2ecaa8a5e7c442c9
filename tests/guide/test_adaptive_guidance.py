"""Adaptive guidance: each element by itself, from the step after its predictions agree, and never back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import NULL, Pred, Query
from ebbtide.core.tree import Tree
from ebbtide.denoise.exact import GaussianMixture, MarkovChain
from ebbtide.measure.decoding import Counted
from ebbtide.process.flow import Flow
from ebbtide.process.masked import Masked

SCALE, STEPS = 3.0, 12
GRID = {"name": "linear", "steps": STEPS}


class Turning(Denoiser):
    """Two predictions at an angle that an element's condition sets for each tenth of time: cosines at will."""

    def __init__(self) -> None:
        self.process = Flow()

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.full_like(leaf, -1.0) if name == "cosines" else None

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        table = cond["cosines"]
        at = table.gather(1, (t * STEPS).round().long().clamp(0, STEPS)[:, None])[:, 0]
        none = (table < -0.5).all(1)
        c = torch.where(none, 1.0, at)
        return Pred(mean=torch.stack([2 * c, 2 * (1 - c * c).clamp_min(0).sqrt()], 1))


def model() -> Any:
    return ebb.load(Counted(Turning()), like=torch.zeros(2, dtype=torch.float64))


def tables(*crossings: int) -> Tensor:
    """Cosines that reach 0.9 first after this many steps, and fall back to 0.1 one step later."""
    out = torch.full((len(crossings), STEPS + 1), 0.1, dtype=torch.float64)
    for row, k in enumerate(crossings):
        out[row, STEPS - k] = 0.95
    return out


def adaptive(bar: float | None, **slots: Any) -> ebb.Plan:
    guide = [{"name": "adaptive-guidance", "scale": SCALE, "bar": bar}]
    return ebb.Plan(**{"guide": guide, "grid": GRID, **slots})


def test_an_element_is_guided_up_to_the_step_that_agrees_and_not_after_it() -> None:
    one, crossings = model(), (0, 3, 7, STEPS - 1)
    steps = list(ebb.run(one, adaptive(0.9), cond={"cosines": tables(*crossings)}, n=4, seed=0))
    assert [s.calls for s in steps] == [4 + sum(k <= c for c in crossings) for k in range(STEPS)]
    assert [s.info.get("adaptive-guidance", 0) for s in steps] == [8 - s.calls for s in steps]


@pytest.mark.parametrize("solve", ["heun", "dpmpp-2s"])
def test_the_queries_of_one_step_are_all_guided_or_none_is(solve: str) -> None:
    plain = list(ebb.run(model(), ebb.Plan(solve=solve, grid=GRID), cond={"cosines": tables(4)}, n=1))
    steps = list(ebb.run(model(), adaptive(0.9, solve=solve), cond={"cosines": tables(4)}, n=1))
    ratios = [a.calls / b.calls for a, b in zip(steps, plain, strict=True)]
    assert set(ratios) == {1.0, 2.0}
    assert ratios == sorted(ratios, reverse=True)
    assert ratios.count(2.0) in (4, 5)  # a stage may see what the step after it would have seen


def test_what_is_guided_is_guided_as_cfg_does_and_the_rest_is_the_conditional_model() -> None:
    one = model()
    cond = one.condition({"cosines": tables(0, 5, 9)}, 3)
    loop = one.loop(adaptive(0.9), cond)
    state = loop.begin(torch.zeros(3, 2, dtype=torch.float64), cond, range(3))
    state = replace(state, memory={**state.memory, "guide/0": {"done": torch.tensor([True, False, True])}})
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twice = torch.tensor([1, 0, 1])
    queries = [Query(x, state.t), Query(x[twice], state.t[twice], role="look", of=twice)]
    mine = loop.ask(state).many(queries)
    guided = one.loop(ebb.Plan(guide=[{"name": "cfg", "scale": SCALE}], grid=GRID), cond).ask(state).many(queries)
    bare = one.loop(ebb.Plan(grid=GRID), cond).ask(state).many(queries)
    for q, a, g, b in zip(queries, mine, guided, bare, strict=True):
        rows = (q.owners(3) == 1)[:, None]
        assert torch.equal(a.mean, torch.where(rows, g.mean, b.mean))
        assert not torch.equal(g.mean, b.mean)


def test_looks_ahead_and_conditions_of_their_own_decide_nothing() -> None:
    one = model()
    cond = one.condition({"cosines": tables(*range(4))}, 4)
    loop = one.loop(adaptive(-1.0), cond)
    state = loop.begin(torch.zeros(4, 2, dtype=torch.float64), cond, range(4))
    ask = loop.ask(state)
    ask.many([Query(state.x, state.t, role="look"), Query(state.x, state.t, cond=NULL, tag="free")])
    assert not bool(ask.memory["guide/0"]["done"].any())
    ask(state.x, state.t)
    assert bool(ask.memory["guide/0"]["done"].all())


def test_the_cosine_is_of_the_data_not_of_the_noise() -> None:
    """At t = 1 the noise that both imply is x itself, so theirs is 1; a latch on it would be set at once."""
    means = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    g = GaussianMixture(Flow(), [1.0, 1.0], means, 0.01, [0, 1])
    one = ebb.load(g, like=torch.zeros(2, dtype=torch.float64), labels=2)
    state = next(iter(ebb.run(one, adaptive(0.99), cond=0, n=50))).state
    assert not bool(state.memory["guide/0"]["done"].any())
    end = list(ebb.run(one, adaptive(0.99), cond=0, n=50))
    assert end[-1].calls == 50


def test_tokens_agree_once_they_tell_the_label() -> None:
    """Two languages without a common word: one token that shows says which it is, and guidance ends."""
    process = Masked(4)
    law = [[[0.5, 0.5, 0, 0]] * 4, [[0, 0, 0.5, 0.5]] * 4]
    first = [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    chain = MarkovChain(process, (torch.tensor(first) + 1e-9).tolist(), torch.tensor(law) + 1e-9, 5, weights=[1.0, 1.0])

    class Nullable(Denoiser):
        def __init__(self) -> None:
            self.process = process

        def null(self, name: str, leaf: Tensor) -> Tensor | None:
            return torch.full_like(leaf, -1)

        def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
            return chain(x, t, cond)

    one = ebb.load(Nullable(), like=torch.zeros(5, dtype=torch.int64), labels=2)
    n, known = 40, torch.zeros(40, dtype=torch.bool)
    shown = torch.zeros(n, dtype=torch.bool)
    for step in ebb.run(one, adaptive(0.9, solve="euler"), cond=[0, 1] * 20, n=n, seed=0):
        assert torch.equal(step.state.memory["guide/0"]["done"], known | shown)
        known = step.state.memory["guide/0"]["done"]
        shown = (step.state.x != process.mask).any(1)
    assert bool(known.any())


class Shifted(Denoiser):
    """Logits that differ from those of the null by a constant, which probabilities do not see, or by more."""

    def __init__(self) -> None:
        self.process = Masked(3)

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.full_like(leaf, -1)

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        own = cond["label"][:, None, None]
        base = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64).expand(*x.shape, 3)
        other = base + torch.tensor([0.0, 3.0, 0.0], dtype=torch.float64) * (own == 1)
        return Pred(logits=other + 50.0 * (own == 0))


def test_tokens_are_compared_by_probability() -> None:
    one = ebb.load(Shifted(), like=torch.zeros(4, dtype=torch.int64), labels=2)
    state = next(iter(ebb.run(one, adaptive(0.999999, solve="euler"), cond=[0, 1], n=2))).state
    assert state.memory["guide/0"]["done"].tolist() == [True, False]


def test_a_jump_up_in_time_sets_the_latch_free() -> None:
    one = model()
    cond = {"cosines": tables(0, 0)}
    steps = list(ebb.run(one, adaptive(0.9, grid={"name": "explicit", "times": [0.9, 0.5, 0.0]}), cond=cond, n=2))
    loop = one.loop(adaptive(0.9), one.condition(cond, 2))
    state = replace(steps[0].state, memory={"guide/0": {"done": torch.tensor([True, True])}})
    after = loop._void(state, torch.tensor([True, False])).memory["guide/0"]["done"]
    assert after.tolist() == [False, True]


def test_a_bar_that_is_never_reached_is_told_and_one_out_of_range_refused() -> None:
    with pytest.raises(EbbError, match="'adaptive-guidance' is switched on but did nothing"):
        ebb.sample(model(), adaptive(0.99), cond={"cosines": tables(0, 1)}, n=2)
    with pytest.raises(EbbError, match="bar"):
        adaptive(1.5).parts("guide")
    with pytest.raises(EbbError, match="null"):
        ebb.sample(ebb.load(Turning(), like=torch.zeros(2).double()), adaptive(0.9), n=2)
