"""Strips: what strips see, and that two processes give what one gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.network.pcpp import PCPP
from ebbtide.parallel import strips

STEPS = 6
GRID = {"name": "linear", "steps": STEPS}


def plan(**how: Any) -> ebb.Plan:
    return ebb.Plan(grid=GRID, network=[{"name": "pcpp", **how}])


def here(**how: Any) -> Tensor:
    p = ebb.Plan(grid=GRID) if not how else plan(**how)
    return ebb.sample("digits", p, cond=[3, 7], n=2).x


@pytest.fixture(scope="module")
def gloo() -> None:
    if not strips.available():
        pytest.skip("this torch has no gloo")


def test_a_strip_sees_the_rows_next_to_it() -> None:
    part = PCPP(strips=4, share=0.5)
    assert part.spans(64) == [(0, 16), (16, 32), (32, 48), (48, 64)]
    assert part.seen_of(1, 0, 64) == (8, 16)
    assert part.seen_of(1, 2, 64) == (32, 40)
    assert part.seen_of(1, 3, 64) == (48, 48)
    assert part.sent(64) == 6 * 8
    assert part.sent(64, whole=True) == 4 * 48
    assert PCPP(strips=4, share=1.0, reach=3).sent(64) == 4 * 48
    assert PCPP(strips=4, share=0.0).sent(64) == 0


def test_strips_cover_all_tokens_once() -> None:
    for count in (49, 50, 4):
        for strips_ in (1, 2, 3, 8):
            spans = PCPP(strips=strips_).spans(count)
            assert [j for a, b in spans for j in range(a, b)] == list(range(count))


def test_without_staleness_it_is_the_network() -> None:
    """All steps whole, and with one strip; the other steps are something else, the less is seen the more."""
    whole = here()
    assert torch.equal(here(strips=1), whole)
    loop, state = begin(ebb.load("digits"), plan(strips=2, whole=STEPS), [3, 7], 2)
    while not loop.done(state):
        state = loop.step(state).state
    assert (state.x - whole).abs().max() <= 1e-6
    gaps = [float((here(strips=4, whole=1, **how) - whole).norm()) for how in FEWER]
    assert gaps[0] <= gaps[1] < gaps[2]


FEWER: list[dict[str, Any]] = [{"share": 1.0, "reach": 3}, {"share": 0.5}, {"share": 0.0}]


@pytest.mark.usefixtures("gloo")
def test_two_processes_give_what_one_gives() -> None:
    """Two steps whole, two of strips that see half of each other as it was; under guidance, so of two queries."""
    p = plan(strips=2, whole=2, share=0.5).replace(guide=[{"name": "cfg", "scale": 1.5}], grid={**GRID, "steps": 4})
    one = ebb.sample("digits", p, cond=[3, 7], n=2)
    two = strips.sample("digits", p, processes=2, cond=[3, 7], n=2, seconds=100)
    assert (two.x - one.x).abs().max() <= 1e-6
    assert two.calls == one.calls
    assert min(two.sent) > 0


def test_plans_that_do_not_fit_the_processes_say_so() -> None:
    with pytest.raises(EbbError, match="processes share"):
        strips.sample("digits", plan(strips=3), processes=2)
    with pytest.raises(EbbError, match="no strips"):
        strips.sample("digits", ebb.Plan(), processes=2)
    out = strips.sample("digits", plan(strips=2, whole=1), processes=1, cond=3)
    assert out.sent == (0,)
