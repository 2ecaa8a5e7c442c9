"""Trials of decoding rules: what is good is found good, and each way of being bad is found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core import registry
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.tree import Memory
from ebbtide.denoise.exact import MarkovChain
from ebbtide.denoise.model import Model
from ebbtide.measure.decoding import rules, trial
from ebbtide.process.masked import Masked
from ebbtide.process.uniform import Uniform

V, L = 3, 6
COUNTS = {"name": "counts", "tokens": 2}


def model(process: Any) -> Model:
    chain = MarkovChain(process, [0.4, 0.3, 0.3], [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]], L)
    return ebb.load(chain, like=torch.zeros(L, dtype=torch.int64))


@pytest.fixture
def bad() -> Iterator[list[str]]:
    """Rules for the length of a test: one stops before its last mask, one hides calls, one takes odd places first."""

    @part("solve", "stops-short", needs={"masked"})
    class StopsShort(Solver):
        def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Masked) -> tuple[Move, Pred]:
            pred = ask(state.x, state.t)
            x = torch.where(state.x == process.mask, pred.logits.argmax(-1), state.x)
            x[:, -1] = process.mask
            return Move(x), pred

    @part("solve", "looks-away", needs={"masked"})
    class LooksAway(Solver):
        def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Masked) -> tuple[Move, Pred]:
            pred = ask(state.x, state.t)
            ask(state.x, s, role="look")
            ask.calls -= len(state)
            return Move(torch.where(state.x == process.mask, pred.logits.argmax(-1), state.x)), pred

    @part("solve", "odd-first", needs={"masked"})
    class OddFirst(Solver):
        block: int | None = None

        def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Masked) -> tuple[Move, Pred]:
            pred = ask(state.x, state.t)
            x, order = state.x.clone(), torch.tensor([1, 3, 5, 0, 2, 4])
            place = order[int((x[0] != process.mask).sum())]
            x[:, place] = pred.logits.argmax(-1)[:, place]
            return Move(x), pred

    names = ["stops-short", "looks-away", "odd-first"]
    yield names
    for name in names:
        del registry._registry["solve", name]


def test_every_rule_of_the_registry_is_good_on_every_grid() -> None:
    one = model(Masked(V))
    found = rules(one)
    assert {"ancestral", "euler", "confidence"} <= {spec["name"] for spec in found}
    words = {spec.get("rule") for spec in found if spec["name"] == "confidence"}
    assert words == {"confidence", "margin", "entropy", "left", "random"}
    for spec in found:
        for grid in (COUNTS, {"name": "linear", "steps": 4}):
            done = trial(one, spec, grid, n=5)
            assert done.good, (spec, grid, done)
            assert done.tokens == 5 * L


def test_what_a_model_cannot_run_is_left_out() -> None:
    found = {spec["name"] for spec in rules(model(Uniform(V)))}
    assert {"ancestral", "euler"} <= found
    assert not found & {"confidence", "dpmpp-2m", "heun"}


def test_calls_and_tokens_are_counted() -> None:
    done = trial(model(Masked(V)), {"name": "confidence"}, COUNTS, n=7)
    assert done.true == done.said == 7 * 3  # two tokens of six a step
    assert done.tokens / done.true == 2


def test_order_is_seen() -> None:
    one, single = model(Masked(V)), {"name": "counts", "tokens": 1}
    assert trial(one, {"name": "confidence", "rule": "left"}, single).ordered
    assert trial(one, {"name": "confidence", "rule": "random", "block": 2}, single).ordered
    assert not trial(one, {"name": "confidence", "rule": "random"}, single).ordered


def test_rules_that_are_bad_are_found(bad: list[str]) -> None:
    one = model(Masked(V))
    assert set(bad) <= {spec["name"] for spec in rules(one)}
    short, away = (trial(one, {"name": name}, COUNTS, n=4) for name in bad[:2])
    assert short.masks == 4
    assert short.said == short.true
    assert away.masks == 0
    assert away.true == 2 * away.said
    assert not short.good
    assert not away.good


def test_blocks_that_are_not_finished_in_turn_are_no_blocks(bad: list[str]) -> None:
    one = model(Masked(V))
    spec = {"name": bad[2], "block": 2}
    assert spec in rules(one)
    odd = trial(one, spec, {"name": "counts", "tokens": 1}, n=4)
    assert odd.good
    assert not odd.ordered
    assert trial(one, {**spec, "block": 6}, {"name": "counts", "tokens": 1}, n=4).ordered
