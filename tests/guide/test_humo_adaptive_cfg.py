"""HuMo's guidance: `cfg` where all weights are equal, each condition by its weight, the calls of the code, rows apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import NULL, Pred, Query
from ebbtide.core.tree import Tree
from ebbtide.process.flow import Flow
from ebbtide.process.masked import Masked

N, NAMES = 4, ("image", "text", "audio")
GRID = {"name": "linear", "steps": 8}
OWN: dict[str, Any] = {"image": [1, 2, 3, 4], "text": [5, 6, 7, 8], "audio": [9, 1, 2, 3]}


class Ledger(Denoiser):
    """A prediction that says what it was told: a number a condition, 0 where there is none."""

    def __init__(self, variance: bool = False) -> None:
        self.process, self.variance = Flow(), variance

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.zeros_like(leaf) if name in NAMES else None

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        mean = torch.stack([cond[k].to(x) for k in NAMES], 1).reshape(len(x), 3, *(1,) * (x.ndim - 2)).expand(x.shape)
        return Pred(mean=mean.clone(), var=mean + 1 if self.variance else None)


class Shut(Denoiser):
    """Tokens of which one can not be where no text is told."""

    def __init__(self) -> None:
        self.process = Masked(3)

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.zeros_like(leaf) if name == "text" else None

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        none = (cond["text"] == 0).reshape(-1, 1, 1) & (torch.arange(3) == 1)
        return Pred(logits=torch.where(none, -torch.inf, 0.0).double().expand(*x.shape, 3).clone())


def model(units: int = 0, **kind: Any) -> Any:
    """Three numbers, or three frames of three."""
    like = torch.zeros((3, 3) if units else 3, dtype=torch.float64)
    return ebb.load(Ledger(**kind), like=like, units=units)


def told() -> dict[str, Tensor]:
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in OWN.items()}


def guided(**params: Any) -> ebb.Plan:
    return ebb.Plan(guide=[{"name": "humo-adaptive-cfg", "order": list(NAMES), **params}], grid=GRID)


def asked(plan: ebb.Plan, t: Any, units: int = 0, **query: Any) -> tuple[Pred, int]:
    """What the plan's guide answers at these times, and the rows computed."""
    loop, state = begin(model(units), plan, cond=told(), n=N)
    ask = loop.ask(state)
    times = torch.as_tensor(t, dtype=torch.float64)
    return ask.many([Query(state.x, times.expand(state.t.shape).clone(), **query)])[0], ask.calls


def test_a_condition_is_scaled_by_its_weight_alone() -> None:
    """Where the prediction is additive in what it is told, guidance is each condition times its weight."""
    plan = guided(early=[2.0, 3.0, 5.0], late=[0.5, 1.0, 4.0], switch=0.5)
    for t, weights in ((0.9, (2.0, 3.0, 5.0)), (0.5, (0.5, 1.0, 4.0)), (0.1, (0.5, 1.0, 4.0))):
        want = torch.stack([w * v for w, v in zip(weights, told().values(), strict=True)], 1)
        assert torch.allclose(asked(plan, t)[0].mean, want, rtol=1e-14)


@pytest.mark.parametrize(
    ("weights", "rows"),
    [
        ((1.0, 5.0, 5.5), 3),  # what the code of the publication calls, early
        ((3.0, 3.0, 5.5), 3),  # and late
        ((2.0, 3.0, 4.0), 4),
        ((1.0, 1.0, 1.0), 1),
        ((2.0, 0.0, 0.0), 2),
        ((0.0, 0.0, 0.0), 1),
        ((2.0, 2.0, 2.0), 2),
    ],
)
def test_only_predictions_that_count_are_computed(weights: tuple[float, ...], rows: int) -> None:
    pred, calls = asked(guided(early=weights, late=weights), 0.7)
    assert calls == rows * N
    want = torch.stack([w * v for w, v in zip(weights, told().values(), strict=True)], 1)
    assert torch.allclose(pred.mean, want, rtol=1e-14, atol=1e-14)


def test_units_and_elements_in_different_phases_are_each_as_if_alone() -> None:
    """Frames at times of their own get weights of their own; an element with none in a phase pays nothing for it."""
    plan = guided(early=[1.0, 1.0, 1.0], late=[3.0, 3.0, 5.5], switch=0.5)
    t = torch.tensor([[0.9, 0.8, 0.7], [0.9, 0.4, 0.1], [0.3, 0.2, 0.1], [0.6, 0.6, 0.6]], dtype=torch.float64)
    mixed, calls = asked(plan, t, units=1)
    assert calls == 1 + 3 + 3 + 1  # frames that are early want one prediction, those that are late three
    late, _ = asked(plan, 0.1, units=1)
    early, _ = asked(plan, 0.9, units=1)
    assert torch.equal(mixed.mean, torch.where((t > 0.5)[..., None], early.mean, late.mean))


@pytest.mark.parametrize("scale", [3.0, 0.0, 1.7])
def test_equal_weights_are_cfg_bit_for_bit(scale: float) -> None:
    out = [
        ebb.sample(model(), plan, cond=told(), n=N, seed=3)
        for plan in (
            guided(early=[scale] * 3, late=[scale] * 3),
            ebb.Plan(guide=[{"name": "cfg", "scale": scale}], grid=GRID),
        )
    ]
    assert torch.equal(out[0].x, out[1].x)
    assert out[0].calls == out[1].calls if scale else out[0].calls < out[1].calls  # cfg asks at scale 0 too


@pytest.mark.parametrize("switch", [0.0, 0.4, 1.0])
def test_equal_phases_know_no_switch(switch: float) -> None:
    weights = [2.0, 0.3, 4.0]
    here, there = (
        ebb.sample(model(), guided(early=weights, late=weights, switch=v), cond=told(), n=N, seed=3).x
        for v in (switch, 0.7)
    )
    assert torch.equal(here, there)


def test_a_condition_that_is_not_told_and_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EbbError, match="'colour'"):
        ebb.sample(model(), guided(order=["colour"], early=[2.0], late=[2.0]), cond=told(), n=N)
    for wrong in ({"early": [1.0]}, {"order": ["text", "text"], "early": [1.0, 2.0], "late": [1.0, 2.0]}):
        with pytest.raises(EbbError):
            ebb.sample(model(), guided(**{"early": [1.0] * 3, "late": [1.0] * 3, **wrong}), cond=told(), n=N)


def test_a_condition_out_of_order_is_told_always_and_a_negative_one_takes_the_place_of_none() -> None:
    cond = {**told(), "null": {"text": torch.full((N,), -1.0, dtype=torch.float64)}}
    plan = guided(order=["text"], early=[3.0], late=[3.0])
    loop, state = begin(model(), plan, cond=cond, n=N)
    mean = loop.ask(state)(state.x, state.t).mean
    own = told()
    want = torch.stack([own["image"], -1 + 3 * (own["text"] + 1), own["audio"]], 1)
    assert torch.allclose(mean, want, rtol=1e-14)


def test_other_rows_and_other_conditions_are_answered_for_their_owners() -> None:
    plan = guided(early=[2.0, 3.0, 5.0], late=[2.0, 3.0, 5.0])
    loop, state = begin(model(), plan, cond=told(), n=N)
    whole = loop.ask(state)(state.x, state.t).mean
    of = torch.tensor([3, 0, 0])
    assert torch.equal(loop.ask(state)(state.x[of], state.t[of], of=of, role="look").mean, whole[of])
    other = {k: v.flip(0) for k, v in told().items()}
    assert torch.equal(loop.ask(state)(state.x, state.t, cond=other).mean, whole.flip(0))
    ask = loop.ask(state)
    assert torch.equal(ask(state.x, state.t, cond=NULL).mean, torch.zeros(N, 3, dtype=torch.float64))
    assert ask.calls == N


@pytest.mark.parametrize(("late", "known"), [([2.0, 3.0, 5.0], True), ([2.0, 3.0, 0.0], False)])
def test_variance_is_that_under_all_conditions_or_none_throughout(late: list[float], known: bool) -> None:
    plan = guided(early=[2.0, 3.0, 5.0], late=late, switch=0.5)
    loop, state = begin(model(variance=True), plan, cond=told(), n=N)
    for t in (0.9, 0.1):
        var = loop.ask(state)(state.x, torch.full_like(state.t, t)).var
        if known:
            assert torch.equal(var, torch.stack(list(told().values()), 1) + 1)
        else:
            assert var is None


def test_infinite_logits_of_a_prediction_that_a_unit_does_not_want_do_not_reach_it() -> None:
    m = ebb.load(Shut(), like=torch.zeros(3, dtype=torch.int64), units=1)
    plan = guided(order=["text"], early=[1.0], late=[3.0], switch=0.5).replace(solve="ancestral")
    loop, state = begin(m, plan, cond={"text": told()["text"]}, n=N)
    t = torch.tensor([0.9, 0.4, 0.9], dtype=torch.float64).expand(N, 3).clone()
    logits = loop.ask(state)(state.x, t).logits
    assert torch.equal(logits[:, [0, 2]], torch.zeros(N, 2, 3, dtype=torch.float64))
