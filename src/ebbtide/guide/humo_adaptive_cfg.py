"""HuMo's guidance: several conditions, added one after the other, each with a weight that changes once on the way.

    x0 = x0_0 + sum_k w_k (x0_k - x0_(k-1)),   x0_k under the first k conditions of `order`, k = 1 ... n
       = sum_k (w_k - w_(k+1)) x0_k,           w_0 = 1, w_(n+1) = 0;   w = early where t > switch, late elsewhere

Only predictions whose factor w_k - w_(k+1) is not 0 are asked for: a first weight of 1 spares the one under no condition,
equal neighbours spare the one between them, last weights of 0 spare those under the conditions that they belong to.

Shapes   x0 (B, ...), logits (B, ..., V); a time of its own for each unit is a weight of its own. A row is asked for a
         prediction if one of its units wants it.
Paper    Chen et al. 2025, "HuMo: Human-centric video generation via collaborative multi-modal conditioning" (arXiv
         2509.08519), "time-adaptive classifier-free guidance"
Source   Phantom-video/HuMo, which has order = (image, text, audio), early = (1, 5, 5.5), late = (3, 3, 5.5), switch = 0.98
Off      early = late = () is the inner prediction, bit for bit, with one call.
Differs  one order for both phases: theirs, written so, is three predictions a query in each, as there. A condition that
         `order` does not name is told always. Queries under no condition are passed on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Inner, Layer
from ebbtide.core.registry import part
from ebbtide.core.state import NULL, OWN, Pred, Query
from ebbtide.core.time import Weight, combine, weight, where
from ebbtide.core.tree import Memory, Tree, tree_map, write_rows


@part("guide", "humo-adaptive-cfg", paper="2509.08519", needs={"null"}, off={"early": (), "late": ()})
class HumoAdaptiveCFG(Layer):
    """HuMo's guidance: several conditions, added one after the other, each with a weight that changes once on the way.

    order    the conditions, by name, in the order in which they are added
    early    a weight for each while t is above the switch, or none: all 1
    late     a weight for each from there on, or none: all 1
    """

    examples = ({}, {"order": ["style", "label"], "early": [1.0, 5.0], "late": [3.0, 3.0], "switch": 0.5})
    order: Annotated[tuple[str, ...], Field(min_length=1)] = ("label",)
    early: tuple[float, ...] = (5.0,)
    late: tuple[float, ...] = (3.0,)
    switch: Annotated[float, Field(ge=0, le=1)] = 0.98

    def __post_init__(self) -> None:
        if len(set(self.order)) < len(self.order):
            raise ValueError("order names a condition twice")
        if not {len(self.early), len(self.late)} <= {0, len(self.order)}:
            raise ValueError(
                f"early and late are {len(self.order)} numbers each, one for each condition of order, or none"
            )

    @property
    def calls(self) -> int:
        """At most."""
        return max(sum(f != 0.0 for f in factors) for factors in self._factors())

    def many(
        self, queries: Sequence[Query], memory: Memory, inner: Inner, ask: Ask, before: Memory
    ) -> tuple[list[Pred], Memory]:
        if not self.on:
            return inner(queries), memory
        asked: list[Query] = []
        plans: list[list[tuple[Weight, Tensor | None]]] = []
        for q in queries:
            terms = [] if q.cond is NULL else self._terms(q.t)
            plans.append([(w, rows) for w, rows, _ in terms])
            for _, rows, k in terms:
                told = self._told(q, k, ask)
                asked.append(told if rows is None else told.rows(rows))
            if not terms:
                asked.append(q)
        answers = iter(inner(asked))
        preds = []
        for q, plan in zip(queries, plans, strict=True):
            if not plan:
                preds.append(next(answers))
                continue
            found = [(w, _whole(next(answers), rows, len(q.t))) for w, rows in plan]
            preds.append(self._mixed(found))
            ask.note("humo-adaptive-cfg", len(q.t))
        return preds, memory

    def _factors(self) -> list[list[float]]:
        """What x0_0 to x0_n are multiplied by, early and late."""
        ones = (1.0,) * len(self.order)
        each = [(1.0, *(w or ones), 0.0) for w in (self.early, self.late)]
        return [[a - b for a, b in itertools.pairwise(w)] for w in each]

    def _terms(self, t: Tensor) -> list[tuple[Weight, Tensor | None, int]]:
        """The factor, the rows that want it (None: all) and the number of conditions of each prediction to ask for.

        The one under all conditions is first.
        """
        high, out = t > self.switch, []
        for k, (early, late) in reversed(list(enumerate(zip(*self._factors(), strict=True)))):
            w = torch.full_like(t, late).masked_fill(high, early)
            rows = (w != 0).reshape(len(t), -1).any(1)
            if bool(rows.any()):
                out.append((weight(w), None if bool(rows.all()) else rows.nonzero()[:, 0], k))
        return out

    def _told(self, q: Query, k: int, ask: Ask) -> Query:
        """The query under the first k conditions: itself where these are all. Raises EbbError as `_null` does."""
        if k == len(self.order):
            return q
        own, given = ask.state.cond, ask.state.cond.get("null", {})
        if q.of is not None:
            own, given = _rows(own, q.of), _rows(given, q.of)
        cond = {name: leaf for name, leaf in own.items() if name != "null"} if q.cond is OWN else q.cond
        nulls = {name: self._null(name, cond, given, ask) for name in self.order[k:]}
        return q._replace(cond={**cond, **nulls}, tag=f"{q.tag}/first{k}")

    def _null(self, name: str, cond: dict[str, Tree], given: Tree, ask: Ask) -> Tree:
        border: Any = ask.loop.layers[-1]
        leaf = cond.get(name)
        none = given.get(name) if isinstance(given, dict) else None
        if none is None and isinstance(leaf, Tensor):
            none = border.denoiser.null(name, leaf)
        if none is None:
            known = ", ".join(sorted(cond)) or "nothing"
            raise EbbError(
                f"humo-adaptive-cfg takes the condition {name!r} away, which these elements are not told or which this model "
                f"cannot be without; they have {known}. Give cond={{..., 'null': {{{name!r}: ...}}}} or leave it out of order."
            )
        return none

    def _mixed(self, found: list[tuple[Weight, Pred]]) -> Pred:
        """The sum of means and of logits. Variance and extras are those under all conditions, if they are always asked for."""
        first = found[0][1] if all(factors[-1] != 0.0 for factors in self._factors()) else Pred()
        sums = {}
        for name in ("mean", "logits"):
            values = [(w, getattr(p, name)) for w, p in found]
            sums[name] = None if values[0][1] is None else combine(*((w, _wanted(w, v)) for w, v in values))
        return first._replace(**sums)


def _rows(tree: Tree, rows: Tensor) -> Tree:
    return tree_map(lambda v: v[rows.to(v.device)], tree)


def _whole(pred: Pred, rows: Tensor | None, n: int) -> Pred:
    """The prediction of some rows as one of all, with zeros for those not asked for."""
    return pred if rows is None else pred.map(lambda v: write_rows(rows, n)(v, None))


def _wanted(w: Weight, v: Tree) -> Tree:
    """What units of weight 0 do not want is 0, as logits may be infinite."""
    return where(w != 0, v, tree_map(torch.zeros_like, v)) if isinstance(w, Tensor) and bool((w == 0).any()) else v
