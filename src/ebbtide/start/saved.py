"""Saved start: go on from x_t that a table holds, a row a seed.

    x = table.x[row whose seed is the element's],   `left` steps of the grid to go (None: all)

So a plan file repeats what a search found, noise or a place on the way, without the search. `tune.search` writes it.

Shapes   x like the rows of the table (K, ...), any units; a row that is a number is a constant. No call, no draw.
Source   Ma et al. 2025 (arXiv 2501.09732), section 3: a sample is found by its noise
Off      the baseline is `prior`, which draws.
Differs  `given` takes x_t from the condition, which a plan file does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Start
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.tree import Tree
from ebbtide.start.held import later
from ebbtide.start.table import check, chosen, read


@part("start", "saved", paper="2501.09732", refuses={"joint"}, baseline="prior")
class Saved(Start):
    """Saved start: go on from x_t that a table holds, a row a seed.

    table   rows `x` and their `seed`: see `start.table`
    left    how many steps of the grid are to go; None: all
    """

    examples = (
        {"table": {"x": [0.3, 1.2, 0.7, 1.6], "seed": [11, 2, 303, 4]}},
        {"table": {"x": [0.3, 1.2, 0.7, 1.6], "seed": [11, 2, 303, 4]}, "left": 2},
    )
    table: dict[str, Any]
    left: Annotated[int, Field(ge=1)] | None = None

    @field_validator("table")
    @classmethod
    def _leaves(cls, table: dict[str, Any]) -> dict[str, Any]:
        check(table, ("x", "seed"))
        return table

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        """Raises EbbError for a seed that has no row, and for rows that are not shaped like the samples."""
        found = read(self.table, ("x", "seed"))
        known = [int(v) for v in found["seed"].tolist()]
        for seed in seeds:
            if seed not in known:
                told = ", ".join(map(str, known[:8])) + (", ..." if len(known) > 8 else "")
                raise EbbError(f"start {self.called!r} holds nothing for the seed {seed}; it has {told}.")
        x = chosen(found["x"], torch.tensor([known.index(s) for s in seeds]), like)
        state = replace(ask.state, x=x.clone())
        return replace(state, t=ask.ahead(0)) if self.left is None else later(state, ask, self.left)
