"""Unchanged: ask for nothing where no token has changed since the last time, and use the logits of then.

    p(x0 | x_t) of a masked process is a function of the tokens that show, free of t:   x_s = x_t  =>  the same logits

Short steps mostly show no token at all. n steps of a `linear` schedule over L tokens ask 1 + (n - 1)(1 - (1 - 1/n)^L)
times instead of n, never more than L + 1.

Shapes   x int64 (B, *event), logits (B, *event, V). Memory, for each tag and role: tokens, x + 1 (zeros: nothing yet),
         and logits.
Paper    Ou et al. 2024, "Your absorbing discrete diffusion secretly models the conditional distributions of clean data"
         (arXiv 2406.03736), theorem 1 and section 3.3
Off      keep = false asks the inner prediction, bit for bit.
Differs  exact for networks that are not told the time; others answer with what they said at an earlier one. Queries under
         a condition of their own, of some units, or of several rows an element are passed on. Only logits are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Inner, Layer
from ebbtide.core.registry import part
from ebbtide.core.state import NULL, OWN, Pred, Query
from ebbtide.core.tree import Memory


@part(
    "guide",
    "unchanged",
    paper="2406.03736",
    needs={"masked"},
    off={"keep": False},
    exempt={"calls": "how often it asks depends on the tokens; tests/guide/test_unchanged.py counts"},
)
class Unchanged(Layer):
    """Unchanged: ask for nothing where no token has changed since the last time, and use the logits of then."""

    keep: bool = True

    def many(
        self, queries: Sequence[Query], memory: Memory, inner: Inner, ask: Ask, before: Memory
    ) -> tuple[list[Pred], Memory]:
        if not self.keep:
            return inner(queries), memory
        n = len(ask.state)
        stale = [self._stale(q, memory, n) for q in queries]  # rows that must be asked; None: all, and not to be kept
        asked = [q if rows is None or len(rows) == n else q.rows(rows) for q, rows in zip(queries, stale, strict=True)]
        some = [len(q.t) > 0 for q in asked]
        answers = iter(inner([q for q, any_ in zip(asked, some, strict=True) if any_]) if any(some) else ())
        preds, memory = [], dict(memory)
        for q, rows, any_ in zip(queries, stale, some, strict=True):
            pred = next(answers) if any_ else Pred()
            if rows is not None:
                reused = n - len(rows)
                if reused:
                    ask.note("unchanged", reused)
                    kept = memory[_branch(q)]["logits"]
                    logits = kept.index_copy(0, rows.to(kept.device), pred.logits) if any_ else kept
                    pred = Pred(logits=logits)
                memory[_branch(q)] = {"tokens": q.x + 1, "logits": pred.logits}
            preds.append(pred)
        return preds, memory

    def _stale(self, query: Query, memory: Memory, n: int) -> Tensor | None:
        if query.of is not None or query.at is not None or (query.cond is not OWN and query.cond is not NULL):
            return None
        kept = memory.get(_branch(query), {}).get("tokens")
        if kept is None:
            return torch.arange(n)
        return (kept != query.x + 1).flatten(1).any(1).cpu().nonzero()[:, 0]


def _branch(query: Query) -> str:
    """Where in the memory a query's branch is kept; leaves of files have no dots in their names."""
    return f"{query.tag}/{query.role}".replace(".", "_")
