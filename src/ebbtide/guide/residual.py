"""Residual guidance: go away from what a negative prediction would be, which costs one call a run or none.

    eps = delta eps_r + scale (eps_c - delta eps_r),   eps_r = (x_t - a x0_r) / c
    x0  = scale x0_c + (1 - scale) delta x0_r + (1 - scale)(1 - delta) x_t / a

    self   x0_r is the source that the run began from: no call
    once   x0_r is the unconditional prediction at the element's first step, used at all later ones: one call

With delta = 1 it is `cfg` with x0_r for the unconditional prediction. A smaller delta weakens the virtual noise eps_r.

Shapes   x0 (B, ...), any units; cond["source"] like x where x0_r is the source. Memory of `once`: x0_r (B, ...), and known
         (B,) boolean.
Paper    Kodaira et al. 2023, "StreamDiffusion" (arXiv 2312.12491), section 3.2
Off      scale = 1 asks the inner prediction alone, bit for bit, with one call.
Differs  said for predictions of the data, so it goes with any Gaussian process; where a = 0 there is no x_t / a, and the term
         is left out. Queries under a condition of their own, or of some units, are passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Inner, Layer
from ebbtide.core.registry import part
from ebbtide.core.state import NULL, OWN, Pred, Query
from ebbtide.core.time import Weight, combine, ratio
from ebbtide.core.tree import Memory


@part(
    "guide",
    "residual-guidance",
    paper="2312.12491",
    needs={"gaussian"},
    off={"scale": 1.0},
    exempt={"calls": "'once' asks for one more at the first step of a run only; tests/guide/test_residual.py counts"},
)
class ResidualGuidance(Layer):
    """Residual guidance: go away from what a negative prediction would be, which costs one call a run or none.

    scale     how far to go: 1 is the conditional prediction
    delta     the share of the negative noise that is believed
    negative  "self" the source of the run, "once" the unconditional prediction at the first step
    """

    scale: float = 1.2
    delta: Annotated[float, Field(ge=0)] = 1.0
    negative: Literal["self", "once"] = "self"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"source"}) if self.on and self.negative == "self" else frozenset()

    def many(
        self, queries: Sequence[Query], memory: Memory, inner: Inner, ask: Ask, before: Memory
    ) -> tuple[list[Pred], Memory]:
        """Raises EbbError where the source of "self" is missing."""
        if not self.on:
            return inner(queries), memory
        mine = [q.cond is OWN and q.at is None for q in queries]
        if self.negative == "self":
            preds, negatives = inner(queries), self._sources(queries, mine, ask)
        else:
            preds, negatives, memory = self._once(queries, mine, memory, inner, ask)
        ask.note("residual-guidance", sum(len(q.t) for q, own in zip(queries, mine, strict=True) if own))
        out = []
        for q, pred, negative in zip(queries, preds, negatives, strict=True):
            out.append(pred if negative is None else self._guided(q, pred, negative, ask))
        return out, memory

    def _guided(self, query: Query, pred: Pred, negative: Tensor, ask: Ask) -> Pred:
        away = 1.0 - self.scale
        rest = away * (1.0 - self.delta)
        terms: list[tuple[Weight, Tensor]] = [(self.scale, pred.mean), (away * self.delta, negative)]
        if rest:
            a = ask.process.a(query.t)  # type: ignore[attr-defined]
            terms.append((ratio(torch.full_like(a, rest), a), query.x))
        return pred._replace(mean=combine(*terms))

    def _sources(self, queries: Sequence[Query], mine: list[bool], ask: Ask) -> list[Tensor | None]:
        source = ask.state.cond.get("source")
        if not isinstance(source, Tensor) or source.shape != ask.state.x.shape:
            raise EbbError(
                "guide 'residual-guidance' goes away from the source: give cond={'source': tensor shaped like x}, or "
                "negative='once'."
            )
        source = source.to(ask.state.x)
        each = (source if q.of is None else source[q.of.to(source.device)] for q in queries)
        return [s if own else None for s, own in zip(each, mine, strict=True)]

    def _once(
        self, queries: Sequence[Query], mine: list[bool], memory: Memory, inner: Inner, ask: Ask
    ) -> tuple[list[Pred], list[Tensor | None], Memory]:
        """The predictions, what each is to go away from, and the memory with what was asked for that now."""
        n = len(ask.state)
        known = memory.get("known", torch.zeros(n, dtype=torch.bool))
        kept = memory["x0"] if memory else torch.zeros_like(ask.state.x)
        new = [(~known[q.owners(n)]).nonzero()[:, 0] for q in queries]
        some = [k for k, own in enumerate(mine) if own and len(new[k])]
        nulls = []
        for k in some:
            null = queries[k]._replace(cond=NULL, tag=f"{queries[k].tag}/null")
            nulls.append(null if len(new[k]) == len(null.t) else null.rows(new[k]))
        answers = inner([*queries, *nulls])
        asked = dict(zip(some, answers[len(queries) :], strict=True))
        negatives: list[Tensor | None] = []
        for k, q in enumerate(queries):
            owners = q.owners(n)
            base = kept[owners.to(kept.device)] if mine[k] else None
            if base is not None and k in asked:
                base = base.index_copy(0, new[k].to(base.device), asked[k].mean)
            negatives.append(base)
        for k in (k for k in some if queries[k].role == "point" and queries[k].of is None):
            kept = kept.index_copy(0, new[k].to(kept.device), asked[k].mean)
            known = known.index_fill(0, new[k], True)
        return answers[: len(queries)], negatives, {"x0": kept, "known": known}
