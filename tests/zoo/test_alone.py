"""A sample of a shipped model depends on its seed and its condition, never on who is sampled beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import ebbtide as ebb
from ebbtide import zoo

SAMPLED = [
    name for name in zoo.names() if "process" in json.loads((zoo.folder(name) / "recipe.json").read_text("utf-8"))
]


def told(model: Any, n: int) -> list[Any] | None:
    """Labels or prompts, as many as there are."""
    few = model.info.get("prompts", None if model.labels is None else list(range(model.labels)))
    return None if few is None else [few[k % len(few)] for k in range(n)]


@pytest.mark.parametrize("name", SAMPLED)
def test_the_same_alone_and_among_eight(name: str) -> None:
    """With guidance where there is something to be guided to, and a solver that draws noise."""
    model = ebb.load(name)
    cond = told(model, 8)
    guide = [] if cond is None else [{"name": "cfg", "scale": 2.0}]
    text = model.medium == "text"
    plan = ebb.Plan() if text else ebb.Plan(solve="ancestral", grid={"name": "linear", "steps": 4}, guide=guide)
    many: Any = ebb.sample(model, plan, cond=cond, n=8, seed=5).x
    for k in (0, 3, 7):
        alone = ebb.sample(model, plan, cond=None if cond is None else [cond[k]], n=1, seed=5 + k).x
        torch.testing.assert_close(alone[0], many[k], rtol=0, atol=0 if text else 1e-5)
    assert not torch.equal(many[0], many[1])
