"""What the border does to a language model's logits: a mask of the vocabulary is never what stands under a mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan

V, MASK = 5, 2


def stubborn(x: Tensor, clock: Tensor, **cond: Tensor) -> Tensor:
    """A network that sees masks everywhere, and a 4 where it has to say something else."""
    return torch.tensor([0.0, 0.0, 50.0, 0.0, 9.0]).expand(*x.shape, V)


@pytest.mark.parametrize("solve", ["euler", "confidence"])
@pytest.mark.parametrize("guide", [[], [{"name": "cfg", "scale": 3.0}]])
def test_a_mask_is_never_drawn(solve: str, guide: list[dict[str, object]]) -> None:
    process = {"name": "masked", "vocab": V, "mask": MASK}
    like = torch.zeros(12, dtype=torch.int64)
    model = ebb.load(stubborn, process=process, like=like, predicts="logits", nulls={"topic": 0})
    plan = Plan(solve=solve, grid={"name": "linear", "steps": 4}, guide=guide)
    cond = {"topic": torch.ones(8, dtype=torch.int64)} if guide else None
    x = ebb.sample(model, plan, cond=cond, n=8).x
    assert (x != MASK).all()
    assert (x == 4).double().mean() > 0.9


@pytest.mark.parametrize(
    ("process", "predicts", "mend"),
    [({"name": "masked", "vocab": 3}, "flow", "predicts='logits'"), ("flow", "logits", "one of x0, eps, v, flow")],
)
def test_what_a_network_predicts_must_suit_its_process(process, predicts, mend):
    with pytest.raises(EbbError, match=mend):
        ebb.load(lambda x, clock: x, process=process, predicts=predicts, like=torch.zeros(3))
