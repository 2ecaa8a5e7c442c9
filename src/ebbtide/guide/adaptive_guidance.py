"""Adaptive guidance: stop asking for the unconditional prediction of an element once it agrees with the conditional one.

    x0 = x0_null + scale (x0_cond - x0_null)   until   cos(x0_cond, x0_null) >= bar,   x0_cond from the next step on

Every element has its own latch, which stays set until a jump up in time: from then on it costs one call a query. What is
decided in a step holds from the next one, so the queries of a step are all guided, or none is.

Shapes   x0 (B, ...), logits (B, ..., V); the cosine of an element is over all of its numbers, of logits over the
         probabilities p(x0 | x_t). Memory: done (B,) boolean.
Paper    Castillo et al. 2023, "Adaptive guidance: training-free acceleration of conditional diffusion models"
         (arXiv 2312.12487), section 5
Off      bar = None, which no cosine reaches, is `cfg` of that scale, bit for bit.
Differs  the cosine is that of the predictions of the data: that of noise predictions is near 1 at t = 1 too, where they are
         all x_t, and a latch on it is set at once. Of the fields of a joint state the least cosine counts. LinearAG, the
         regression that stands in for unconditional predictions before the latch, is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Inner, Layer
from ebbtide.core.registry import part
from ebbtide.core.state import NULL, OWN, Pred, Query
from ebbtide.core.tree import Memory, leaves, tree_map
from ebbtide.guide.cfg import guided


@part(
    "guide",
    "adaptive-guidance",
    paper="2312.12487",
    needs={"null"},
    off={"bar": None},
    baseline="cfg",
    exempt={"calls": "how often it asks depends on the predictions; tests/guide/test_adaptive_guidance.py counts"},
)
class AdaptiveGuidance(Layer):
    """Adaptive guidance: stop asking for the unconditional prediction of an element once it agrees with the conditional one.

    bar   the cosine from which the two agree; None: never
    """

    scale: float = 3.0
    bar: Annotated[float, Field(ge=-1, le=1)] | None = 0.99

    @property
    def calls(self) -> int:
        """At most."""
        return 1 if self.scale == 1.0 else 2

    def many(
        self, queries: Sequence[Query], memory: Memory, inner: Inner, ask: Ask, before: Memory
    ) -> tuple[list[Pred], Memory]:
        if self.scale == 1.0:
            return inner(queries), memory
        n = len(ask.state)
        done: Tensor = before.get("done", torch.zeros(n, dtype=torch.bool))
        rows = [(~done[q.owners(n)]).nonzero()[:, 0] for q in queries]  # which of each query's are still guided
        some = [k for k, r in enumerate(rows) if len(r)]
        nulls = []
        for k in some:
            q = queries[k]._replace(cond=NULL, tag=f"{queries[k].tag}/null")
            nulls.append(q if len(rows[k]) == len(q.t) else q.rows(rows[k]))
        answers = inner([*queries, *nulls])
        preds = answers[: len(queries)]
        spared = sum(len(q.t) - len(r) for q, r in zip(queries, rows, strict=True))
        if spared:
            ask.note("adaptive-guidance", spared)
        latch: Tensor = memory.get("done", done)
        for k, none in zip(some, answers[len(queries) :], strict=True):
            q, here = queries[k], rows[k]
            cond = preds[k] if len(here) == len(q.t) else preds[k].map(_picker(here))
            preds[k] = _written(guided(cond, none, self.scale), here, preds[k])
            if self.bar is not None and q.cond is OWN and q.role in ("point", "stage"):
                latch = latch.index_fill(0, q.owners(n)[here[_cosine(cond, none) >= self.bar]], True)
        return preds, memory if self.bar is None else {"done": latch}


def _picker(rows: Tensor) -> Any:
    return lambda v: v[rows.to(v.device)]


def _written(some: Pred, rows: Tensor, whole: Pred) -> Pred:
    """Means and logits of some rows, written over those of all."""

    def put(new: Any, old: Any) -> Any:
        if new is None or len(rows) == len(next(iter(leaves(old).values()))):
            return new
        return tree_map(lambda b, a: a.index_copy(0, rows.to(a.device), b), new, old)

    return whole._replace(mean=put(some.mean, whole.mean), logits=put(some.logits, whole.logits))


def _cosine(cond: Pred, null: Pred) -> Tensor:
    """How far two predictions of the data agree, (rows,) on the CPU; 0 where one of them is all zeros."""
    pairs = []
    for name in ("mean", "logits"):
        one, two = ({} if getattr(p, name) is None else leaves(getattr(p, name)) for p in (cond, null))
        pairs += [(one[k].double(), two[k].double(), name) for k in one]
    each = []
    for a, b, name in pairs:
        a, b = ((v.softmax(-1) if name == "logits" else v).flatten(1) for v in (a, b))
        size = ((a * a).sum(1) * (b * b).sum(1)).sqrt()
        each.append(torch.where(size > 0, (a * b).sum(1) / torch.where(size > 0, size, 1.0), 0.0))
    return torch.stack(each).amin(0).cpu()
