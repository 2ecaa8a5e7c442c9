"""Logits kept while no token changes: the same tokens, and as few calls as there were changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred, Query
from ebbtide.core.tree import Tree
from ebbtide.denoise.exact import MarkovChain
from ebbtide.guide.unchanged import Unchanged
from ebbtide.measure.decoding import Counted
from ebbtide.process.masked import Masked
from ebbtide.process.uniform import Uniform

V, L, N, STEPS = 3, 5, 7, 24
GRID = {"name": "linear", "steps": STEPS}


class Nullable(Denoiser):
    """Two Markov chains, one a label, and their mixture for none."""

    def __init__(self) -> None:
        self.process = Masked(V)
        rows = torch.tensor([[[0.8, 0.1, 0.1]] * 3, [[0.1, 0.1, 0.8]] * 3]) + torch.eye(3)
        self.inner = MarkovChain(self.process, [[1.0, 2, 1], [1.0, 1, 3]], rows, L, weights=[1.0, 1.0])

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.full_like(leaf, -1)

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        return self.inner(x, t, cond)


def model(denoiser: Any = None) -> Any:
    return ebb.load(Counted(denoiser or Nullable()), like=torch.zeros(L, dtype=torch.int64), labels=2)


def run(one: Any, guide: list[Any], **slots: Any) -> Any:
    return ebb.sample(
        one, ebb.Plan(guide=guide, **{"grid": GRID, **slots}), cond=[0, 1, 0, 1, 1, 0, 1], n=N, trace=True
    )


def test_it_asks_once_after_every_change_and_reports_it() -> None:
    one = model()
    out = run(one, ["unchanged"])
    begin = torch.full((1, N, L), V)
    x = torch.cat([begin, torch.stack(out.trace)])
    changes = int((x[1:-1] != x[:-2]).any(2).sum())
    assert out.calls == one.denoiser.rows == N + changes
    assert N * L / 2 < out.calls < N * (L + 1) + 1
    assert torch.equal(out.x, run(model(), []).x)


def test_every_step_says_what_it_asked_and_what_it_spared() -> None:
    one = model()
    loop = one.loop(ebb.Plan(guide=["unchanged"], grid=GRID), one.condition(0, N))
    state = loop.begin(torch.zeros(N, L, dtype=torch.int64), one.condition(0, N), range(N))
    before = 0
    for step in loop.run(state):
        assert step.calls == one.denoiser.rows - before
        assert step.calls + step.info.get("unchanged", 0) == N
        before = one.denoiser.rows


@pytest.mark.parametrize("order", [("unchanged", "cfg"), ("cfg", "unchanged")])
def test_branches_of_guidance_are_kept_apart(order: tuple[str, str]) -> None:
    guide = [{"name": "cfg", "scale": 2.5} if name == "cfg" else name for name in order]
    out, plain = run(model(), guide), run(model(), [{"name": "cfg", "scale": 2.5}])
    assert torch.equal(out.x, plain.x)
    assert out.calls < plain.calls / 2
    assert not torch.equal(plain.x, run(model(), []).x)


def test_several_queries_at_once_and_rows_of_others_are_answered_each_by_its_own() -> None:
    one = model()
    cond = one.condition([0, 1, 0], 3)
    loop = one.loop(ebb.Plan(guide=["unchanged"], grid=GRID), cond)
    state = loop.begin(torch.zeros(3, L, dtype=torch.int64), cond, range(3))
    x = torch.tensor([[0, 3, 3, 3, 3], [3, 3, 1, 3, 3], [2, 3, 3, 3, 3]])
    state = replace(state, x=x)
    other = x.clone()
    other[1, 0] = 2
    free: dict[str, Tree] = {"label": torch.tensor([1, 1, 1])}
    queries = [
        Query(x, state.t),
        Query(other, state.t, role="look"),
        Query(x, state.t, cond=free, tag="free"),
        Query(x[[1, 1]], state.t[[1, 1]], of=torch.tensor([1, 1])),
    ]
    plain = one.loop(ebb.Plan(grid=GRID), cond).ask(state).many(queries)
    ask = loop.ask(state)
    for again in range(2):
        rows = one.denoiser.rows
        for mine, theirs in zip(ask.many(queries), plain, strict=True):
            assert torch.equal(mine.logits, theirs.logits)
        assert one.denoiser.rows - rows == (11 if again == 0 else 5)  # what has a condition or rows of its own is asked
    changed = other.clone()
    changed[2, 4] = 0
    rows = one.denoiser.rows
    (mine,) = ask.many([Query(changed, state.t, role="look")])
    assert one.denoiser.rows - rows == 1
    (theirs,) = one.loop(ebb.Plan(grid=GRID), cond).ask(state).many([Query(changed, state.t)])
    assert torch.equal(mine.logits, theirs.logits)


class Clocked(Nullable):
    """A model that is told the time, and heeds it."""

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        logits = super().__call__(x, t, cond).logits
        return Pred(logits=logits * (1 + 4 * (1 - t))[:, None, None])


def test_a_model_told_the_time_gets_its_answer_of_an_earlier_one() -> None:
    """What the head of the file warns of is so."""
    assert not torch.equal(run(model(Clocked()), ["unchanged"]).x, run(model(Clocked()), []).x)


def test_it_is_refused_where_answers_depend_on_time_and_where_it_never_helps() -> None:
    uniform = MarkovChain(Uniform(V), [1.0, 1, 1], torch.eye(3) + 0.1, L)
    with pytest.raises(EbbError, match="masked"):
        ebb.sample(ebb.load(uniform, like=torch.zeros(L, dtype=torch.int64)), ebb.Plan(guide=["unchanged"]), n=2)
    with pytest.raises(EbbError, match="did nothing"):
        run(model(), ["unchanged"], solve="confidence", grid={"name": "counts", "tokens": 1})


def test_memory_is_named_for_files() -> None:
    part = Unchanged()
    one = model()
    cond = one.condition(0, 2)
    loop = one.loop(ebb.Plan(guide=["unchanged"], grid=GRID), cond)
    state = loop.begin(torch.zeros(2, L, dtype=torch.int64), cond, range(2))
    ask = loop.ask(state)
    inner = lambda queries: [Pred(logits=torch.zeros(2, L, V)) for _ in queries]  # noqa: E731
    _, memory = part.many([Query(state.x, state.t, tag="v1.5")], {}, inner, ask, {})
    assert list(memory) == ["v1_5/point"]
