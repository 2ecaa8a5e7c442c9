"""Classifier-free guidance: go past the conditional prediction, away from the unconditional one.

    x0 = x0_null + scale (x0_cond - x0_null);   logits likewise

Scale 1 is the conditional model, 0 the unconditional one. Both predictions are asked for together, as one batch.

Shapes   x0 (B, ...), logits (B, ..., V).
Paper    Ho, Salimans 2022, "Classifier-free diffusion guidance" (arXiv 2207.12598), eq. 6 with scale = 1 + w
Off      scale = 1 asks the inner prediction alone, bit for bit, with one call.
Differs  nothing: the combination is linear, so guiding x0 is guiding eps, v or the score.
"""

from __future__ import annotations

from collections.abc import Sequence

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Inner, Layer
from ebbtide.core.registry import part
from ebbtide.core.state import NULL, Pred, Query
from ebbtide.core.time import combine
from ebbtide.core.tree import Memory


@part("guide", "cfg", paper="2207.12598", needs={"null"}, off={"scale": 1.0})
class CFG(Layer):
    """Classifier-free guidance: go past the conditional prediction, away from the unconditional one."""

    scale: float = 3.0

    @property
    def calls(self) -> int:
        return 1 if self.scale == 1.0 else 2

    def many(
        self, queries: Sequence[Query], memory: Memory, inner: Inner, ask: Ask, before: Memory
    ) -> tuple[list[Pred], Memory]:
        if self.scale == 1.0:
            return inner(queries), memory
        nulls = [q._replace(cond=NULL, tag=f"{q.tag}/null") for q in queries]
        answers = inner([*queries, *nulls])
        conds, nones = answers[: len(queries)], answers[len(queries) :]
        ask.note("cfg", sum(len(q.t) for q in queries))
        return [guided(c, n, self.scale) for c, n in zip(conds, nones, strict=True)], memory


def guided(cond: Pred, null: Pred, scale: float) -> Pred:
    """null + scale (cond - null) of means and of logits; variance and extras are those of the conditional one."""
    mix = lambda c, n: None if c is None else combine((scale, c), (1.0 - scale, n))  # noqa: E731
    return cond._replace(mean=mix(cond.mean, null.mean), logits=mix(cond.logits, null.logits))
