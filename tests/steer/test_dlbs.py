"""Beam search: calls by the formula, best of the children, groups apart, and the plain plan where nothing is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import ebbtide as ebb
from ebbtide.denoise.exact import Gaussian, GaussianMixture, Table
from ebbtide.measure.rewards import reward
from ebbtide.process.gaussian import VPLinear
from ebbtide.process.masked import Masked
from ebbtide.steer import judge

POINT = [1.0, -0.5]
MIX = GaussianMixture(VPLinear(), [0.3, 0.7], [[1.0, 0.0], [-1.0, 0.5]], 0.2)
MODEL = ebb.load(MIX, like=torch.zeros(2, dtype=torch.float64))
NEAR = {"name": "near", "point": POINT}


def plan(steps: int = 8, **steer) -> ebb.Plan:
    spec = {"name": "dlbs", "reward": NEAR, "children": 3, "lookahead": 2, **steer}
    return ebb.Plan(solve="ancestral", grid={"name": "log-snr", "steps": steps}, steer=spec)


def near(x: torch.Tensor) -> torch.Tensor:
    return -(x - torch.tensor(POINT)).square().sum(-1) / 2


@reward("test-one")
def one(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(x))


@pytest.mark.parametrize(("children", "lookahead"), [(2, 1), (3, 2), (4, 6)])
def test_calls_are_those_of_the_formula(children: int, lookahead: int):
    """Each step before the landing: a call for each beam and L for each child; the landing needs no look ahead."""
    beams, steps, requests = 2, 8, 3
    out = ebb.sample(MODEL, plan(steps, children=children, lookahead=lookahead), n=beams * requests, group=beams)
    per_request = (steps - 1) * (beams + beams * children * lookahead) + beams
    assert out.calls == requests * per_request
    some = ebb.sample(MODEL, plan(steps, first=0.5, children=children), n=2, group=2)
    inside = sum(float(t) <= 0.5 for t in _times(steps))
    assert some.calls == 2 * steps + inside * 2 * children * 2


def _times(steps: int) -> list[torch.Tensor]:
    """Where those steps begin that neither begin nor end the run."""
    return [s.state.t[0] for s in ebb.run(MODEL, replace(plan(steps), steer=None))][:-2]


def test_a_reward_that_says_nothing_gives_the_law_of_the_plan():
    """Nobody is preferred: the mean and the spread of one Gaussian stay what plain ancestral steps make them."""
    model = ebb.load(Gaussian(VPLinear(), [0.4], 0.5), like=torch.zeros(1, dtype=torch.float64))
    even = plan(20, reward="test-one", lookahead=1)
    x, base = (ebb.sample(model, p, n=4096, group=4).x for p in (even, even.replace(steer=None)))
    assert float((x.mean() - base.mean()).abs()) < 4 * float(base.std()) * (2 / 4096) ** 0.5
    assert float(x.std() / base.std()) == pytest.approx(1, abs=0.05)


def test_of_two_rows_of_children_the_best_go_on():
    """A step is what its children are, judged by hand: those of each request, best first."""
    from ebbtide.api import begin

    made = plan(lookahead=1)
    loop, state = begin(MODEL, made, n=4, group=2)
    state = loop.step(loop.step(state).state).state
    pred = MIX(state.x, state.t, {})
    index = torch.arange(4).repeat_interleave(3)
    children = loop.advance(state.take(index), given=pred.map(lambda v: v[index])).state
    score = near(MIX(children.x, children.t, {}).mean).reshape(2, 6)
    best = score.topk(2, dim=1).indices + torch.tensor([[0], [6]])
    assert torch.equal(loop.step(state).state.x, children.x[best.flatten()])


def test_where_beams_land_they_stay_apart():
    out = ebb.sample(MODEL, plan(children=4), n=12, group=4)
    assert len(out.x.unique(dim=0)) == 12
    score = near(out.x).reshape(3, 4)
    assert torch.equal(score, score.sort(1, descending=True).values)


def test_search_pays_and_more_of_it_pays_more():
    score = [
        float(near(ebb.sample(MODEL, p, n=256, group=group).x[::group]).mean())
        for p, group in ((plan(children=1), 1), (plan(children=2, lookahead=1), 2), (plan(children=4, lookahead=1), 4))
    ]
    assert score[0] + 0.2 < score[1] < score[2]


def test_the_look_ahead_is_a_run_of_deterministic_steps():
    """Against Euler on the even grid; an element that has landed is what it is, and costs nothing."""
    from ebbtide.api import begin

    loop, state = begin(MODEL, plan(), n=3)
    for _ in range(3):
        state = loop.advance(state).state
    at = float(state.t[0])
    grid = {"name": "explicit", "times": [at * (4 - j) / 4 for j in range(5)]}
    end = ebb.sample(MODEL, ebb.Plan(start="given", grid=grid), cond={"start": state.x}, n=3).x
    done = replace(state, t=state.t * torch.tensor([1.0, 0.0, 1.0]))
    asking = loop.ask(done)
    seen = judge.look(asking, loop.process, 4)
    assert torch.allclose(seen[[0, 2]], end[[0, 2]], atol=1e-12)
    assert torch.equal(seen[1], state.x[1])
    assert asking.calls == 8


def test_requests_are_alone_in_a_batch():
    whole = ebb.sample(MODEL, plan(), n=12, group=4)
    assert torch.equal(ebb.sample(MODEL, plan(), n=12, group=4, batch=4).x, whole.x)
    assert torch.equal(ebb.sample(MODEL, plan(), n=4, group=4, seed=8).x, whole.x[8:])


def test_one_child_is_the_plan_without_it():
    alone = plan(children=1)
    out, base = (ebb.sample(MODEL, p, n=6, group=2) for p in (alone, alone.replace(steer=None)))
    assert torch.equal(out.x, base.x)
    assert out.calls == base.calls


@reward("test-half")
def half(x: torch.Tensor, worst: str) -> torch.Tensor:
    if worst == "raise" and bool((x[:, 0] < 0).any()):
        raise ZeroDivisionError("no such x")
    return torch.where(x[:, 0] < 0, torch.nan, 0.0 * x[:, 0])


@pytest.mark.parametrize("worst", ["raise", "nan"])
def test_children_without_a_score_give_way(worst: str):
    out = ebb.sample(MODEL, plan(reward={"name": "test-half", "worst": worst}), n=32, group=2)
    plain = ebb.sample(MODEL, plan().replace(steer=None), n=32)
    assert int((out.x[:, 0] < 0).sum()) * 3 < int((plain.x[:, 0] < 0).sum())
    assert "gave way" in out.remarks[0]
    assert not out.failed


def test_tokens_are_searched_too():
    """The likeliest word of a coupled table by its number of ones; children of the landing are judged as they are."""
    law = Table(Masked(2), torch.tensor([0.4, 0.1, 0.1, 0.4]).double().reshape(2, 2))
    model = ebb.load(law, like=torch.zeros(2, dtype=torch.int64))
    spec = {"name": "dlbs", "reward": "mean", "children": 4, "lookahead": 1}
    made = ebb.Plan(solve="ancestral", grid={"name": "linear", "steps": 4}, steer=spec)
    x = ebb.sample(model, made, n=512, group=2).x
    assert float(x.double().mean()) > 0.8
    assert float(ebb.sample(model, made.replace(steer=None), n=512).x.double().mean()) < 0.6


def test_layers_remember_the_call_that_children_share():
    """What a guide keeps of the parents' one call is there in the children, as after a step without them."""
    from ebbtide.api import begin

    made = plan().replace(guide=[{"name": "adaptive-guidance", "scale": 2.0}])
    law = GaussianMixture(VPLinear(), [0.5, 0.5], [[1.0, 0.0], [-1.0, 0.5]], 0.2, labels=[0, 1])
    loop, state = begin(ebb.load(law, like=torch.zeros(2, dtype=torch.float64), labels=2), made, cond=1, n=1)
    seen = 0
    for _ in range(7):
        wanted = loop.advance(state).state.memory.get("guide/0", {})
        state = loop.step(state).state
        seen += int(wanted["done"].sum())
        assert torch.equal(state.memory["guide/0"]["done"], wanted["done"])
    assert 0 < seen < 7
