"""Truncated start: leave out the noisiest part of the chain, and draw x_t there from an approximate law of its own.

    x0 ~ sum_k w_k N(m_k, diag s_k^2)   roughly   =>   x_t = a m_k + sqrt(a^2 s_k^2 + c^2) eps

t is where int(strength n) of the grid's n steps are left: the others are never made. At high noise x_t is nearly Gaussian
whatever the data, so few numbers tell its law: mean and spread of the data, or of each class. The error is that of the
fit, and it falls as t grows; where the data weighs nothing, nothing is left of it.

Shapes   x (B, ...), any units. `table`: mean and std (K, ...), weight (K,). With K rows and cond["label"], row k is class k;
         without a label a row is drawn by weight. No call.
Paper    Zheng et al. 2023, "Truncated diffusion probabilistic models" (arXiv 2202.09671), section 3
Off      mean = std = 0 and strength = 1 is `prior`, bit for bit.
Differs  the paper trains a network (a GAN) to draw x_t; these are closed forms, exact for data that is such a mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Start
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.time import right
from ebbtide.core.tree import Tree
from ebbtide.process.affine import Affine
from ebbtide.start.held import later, points
from ebbtide.start.table import by_label, check, chosen, read


@part(
    "start",
    "truncated",
    paper="2202.09671",
    needs={"affine"},
    refuses={"end"},
    off={"mean": 0.0, "std": 0.0, "strength": 1.0},
    baseline="prior",
)
class Truncated(Start):
    """Truncated start: leave out the noisiest part of the chain, and draw x_t there from an approximate law of its own.

    mean, std   of the data, the same for every number
    strength    the share of the grid's steps that are made
    table       their rows, in place of both: see `start.table`
    """

    examples = ({}, {"table": {"mean": [0.4, -0.3, 0.1], "std": [0.5, 0.9, 0.2], "weight": [1.0, 2.0, 1.0]}})
    mean: float = 0.0
    std: Annotated[float, Field(ge=0)] = 1.0
    strength: Annotated[float, Field(ge=0, le=1)] = 0.75
    table: dict[str, Any] | None = None

    @field_validator("table")
    @classmethod
    def _leaves(cls, table: dict[str, Any] | None) -> dict[str, Any] | None:
        if table is not None:
            check(table, ("mean", "std"), ("weight",))
        return table

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        """Raises EbbError for a table that does not fit the samples or their labels."""
        process, state = ask.process, replace(ask.state, t=ask.ahead(0))
        assert isinstance(process, Affine)
        assert isinstance(like, Tensor)
        if self.strength < 1:
            state = later(state, ask, int(self.strength * (points(ask).shape[-1] - 1)))
        if self.table is None and self.mean == 0 and self.std == 0:
            return replace(state, x=process.prior(like, state.t, ask.noise, cond))
        found = read(self.table or {"mean": self.mean, "std": self.std}, ("mean", "std"))
        row = self._row(found, cond, ask)
        mean, std = (chosen(found[k], row, like.double()) for k in ("mean", "std"))
        a, c = (right(w, mean).to(mean.device) for w in (process.a(state.t), process.c(state.t)))
        x = a * mean + (a**2 * std**2 + c**2).sqrt() * ask.noise.normal(like).double()
        return replace(state, x=x.to(like))

    def _row(self, found: dict[str, Tensor], cond: dict[str, Tree], ask: Ask) -> Tensor:
        """The component (B,) of each element: by its label, else by weight."""
        n, count = len(ask.state), len(found["mean"])
        if count == 1:
            return torch.zeros(n, dtype=torch.int64)
        weight = found.get("weight", torch.ones(count, dtype=torch.float64))
        first = replace(ask.noise, key=ask.noise.key.reshape(n, -1)[:, 0], i=ask.noise.i.reshape(n, -1)[:, 0]).fold(0)
        label = by_label(cond.get("label"), count, n)
        return torch.where(label < 0, first.categorical(weight.log().expand(n, -1)), label)
