"""My clamp: keep the prediction of the data inside its range.

    x0 <- min(max(x0, -bound), bound)

Shapes   x0 (B, ...), each number for itself: no element sees another.
Paper    Saharia et al. 2022, "Photorealistic text-to-image diffusion models" (arXiv 2205.11487), section 2.3, "static"
Off      bound = None is the inner prediction, bit for bit.
Differs  nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Inner, Layer
from ebbtide.core.registry import part
from ebbtide.core.state import Pred, Query
from ebbtide.core.tree import Memory, tree_map


@part("guide", "my-clamp", paper="2205.11487", needs={"continuous"}, off={"bound": None})
class MyClamp(Layer):
    """My clamp: keep the prediction of the data inside its range."""

    bound: Annotated[float, Field(gt=0)] | None = 1.0

    def many(
        self, queries: Sequence[Query], memory: Memory, inner: Inner, ask: Ask, before: Memory
    ) -> tuple[list[Pred], Memory]:
        preds, bound = inner(queries), self.bound
        if bound is None:
            return preds, memory
        ask.note("my-clamp", sum(len(q.t) for q in queries))
        return [p._replace(mean=tree_map(lambda v: v.clamp(-bound, bound), p.mean)) for p in preds], memory
