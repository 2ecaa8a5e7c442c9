"""Decoding rules on trial: what every registered solver that runs on masks costs, and whether it keeps its word.

    calls a sequence = rows asked / n,   tokens a call = tokens made / rows asked

A rule is a solver in one of its settings. It decides in order where no block of tokens begins before all blocks on its
left are done: then the keys and values of those may be kept, and attention over them stays exact.

Shapes   a model of tokens (L...), int64, under a masked process
Source   Yu, Li, Wang 2025 (arXiv 2506.13759), a survey of such rules; blocks and caches: Arriola et al. 2025 (2503.09573)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args, get_origin

from torch import Tensor

from ebbtide.api import sample
from ebbtide.core import registry
from ebbtide.core.parts import Denoiser
from ebbtide.core.plan import Plan, Spec, features
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree
from ebbtide.denoise.model import Model


class Counted(Denoiser):
    """A denoiser that counts the rows it answers."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.process, self.rows = denoiser, denoiser.process, 0

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        self.rows += len(t)
        return self.denoiser(x, t, cond)

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return self.denoiser.null(name, leaf)


class Trial(NamedTuple):
    """What one rule did on one grid.

    n, tokens   sequences, and tokens in all of them
    masks       tokens that were masks at the end
    said, true  calls that the run reported, and rows that the model answered
    ordered     whether all was decided in order, block by block (of one token, where the rule has no blocks)
    """

    n: int
    tokens: int
    masks: int
    said: int
    true: int
    ordered: bool

    @property
    def good(self) -> bool:
        """Whether it left no mask and reported its true number of calls."""
        return self.masks == 0 and self.said == self.true


def rules(model: Model) -> list[dict[str, Any]]:
    """The specs of every registered solver that asks for no more than the model's process gives.

    Each comes in all its settings that are a choice of words, and where it knows blocks also with blocks of two.
    """
    given = features(model.process)
    found = []
    for entry in registry.entries("solve"):
        if not entry.needs <= given or entry.refuses & given:
            continue
        kinds: Mapping[str, Any] = {k: f.annotation for k, f in getattr(entry.cls, "__pydantic_fields__", {}).items()}
        words = {
            k: get_args(a) for k, a in kinds.items() if get_origin(a) is Literal and isinstance(get_args(a)[0], str)
        }
        for choice in itertools.product(*words.values()):
            spec = {"name": entry.name, **dict(zip(words, choice, strict=True))}
            found += [spec, {**spec, "block": 2}] if "block" in kinds else [spec]
    return found


def trial(model: Model, rule: Mapping[str, Any], grid: Spec, *, cond: Any = None, n: int = 64, seed: int = 0) -> Trial:
    """Run one rule on one grid; arguments as for `ebb.sample`. Raises EbbError where rule, grid and model do not fit."""
    counted = Counted(model.denoiser)
    out = sample(replace(model, denoiser=counted), Plan(solve=rule, grid=grid), cond=cond, n=n, seed=seed, trace=True)
    mask = getattr(model.process, "mask", None)
    hidden = [(x == mask).reshape(n, -1, rule.get("block") or 1) for x in out.trace]
    ordered = all(bool((h[:, 1:].all(2) >= h[:, :-1].any(2)).all()) for h in hidden)
    return Trial(n, out.x.numel(), int((out.x == mask).sum()), out.calls, counted.rows, ordered)
