"""Analytic start: begin below full noise, from the Gaussian that is nearest to the law of x_t there.

    x_M ~ N(a E[x0], c^2 + a^2 v),   v = E |x0 - E[x0]|^2 / d,   a and c at M = fraction t_0

Of all Gaussians with one variance it has the least KL divergence from the law of x_M; only mean and variance of the data are
needed. At full noise a model has never seen what it is asked there, and an image-to-video model answers with what it was
given, a still: so M is a little lower, where noise still hides the data. The grid's times shrink with it.

Shapes   x (B, ...), any units, t_0 the grid's first time. `table`: mean and var, each (1,) a number, (1, C) one a
         channel, or (1, ...) shaped like an element. No call.
Paper    Zhao et al. 2024, "Identifying and solving conditional image leakage in image-to-video diffusion model" (arXiv
         2406.15735), "Analytic-Init"
Off      mean = var = 0 and fraction = 1 is `prior`, bit for bit.
Differs  each channel may have a variance of its own. `truncated` has the same law for numbers, and rows of classes; it
         leaves steps out, where this makes as many, closer together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, field_validator
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Start
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.time import right
from ebbtide.core.tree import Tree
from ebbtide.process.affine import Affine
from ebbtide.start.held import points
from ebbtide.start.table import check, read


@part(
    "start",
    "analytic-init",
    paper="2406.15735",
    needs={"affine"},
    refuses={"end"},
    off={"mean": 0.0, "var": 0.0, "table": None, "fraction": 1.0},
    baseline="prior",
)
class AnalyticInit(Start):
    """Analytic start: begin below full noise, from the Gaussian that is nearest to the law of x_t there.

    mean, var   of the data, the same for every number
    table       their rows, in place of both: see `start.table`; `best_fit` makes one
    fraction    M as a share of the grid's first time
    axis        of the channels, counted as in x: 0 is the batch
    """

    examples = ({}, {"table": {"mean": [0.4], "var": [0.3]}})
    mean: float = 0.0
    var: Annotated[float, Field(ge=0)] = 1.0
    table: dict[str, Any] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.94
    axis: Annotated[int, Field(ge=1)] = 1

    @field_validator("table")
    @classmethod
    def _leaves(cls, table: dict[str, Any] | None) -> dict[str, Any] | None:
        if table is not None:
            check(table, ("mean", "var"))
        return table

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        """Raises EbbError for moments that do not fit the samples, and for a grid that has no list of times to shrink."""
        process, state = ask.process, ask.state
        assert isinstance(process, Affine)
        assert isinstance(like, Tensor)
        if self.fraction < 1:
            state = state.remember("grid", {**state.memory["grid"], "points": points(ask) * self.fraction})
        t = ask.loop.grid.ahead(state, state.memory["grid"], 0)
        if self.table is None and self.mean == 0 and self.var == 0:
            return replace(state, x=process.prior(like, t, ask.noise, cond), t=t)
        found = read(self.table or {"mean": self.mean, "var": self.var}, ("mean", "var"))
        mean, var = (self._spread(found[k], like) for k in ("mean", "var"))
        a, c = (right(w, like).to(like.device) for w in (process.a(t), process.c(t)))
        x = a * mean + (a**2 * var + c**2).sqrt() * ask.noise.normal(like).double()
        return replace(state, x=x.to(like), t=t)

    def _spread(self, rows: Tensor, like: Tensor) -> Tensor:
        """The one row in a form that goes with x (B, ...), float64: a number, one a channel, or a whole element."""
        row, one = rows[0], (1,) * (like.ndim - 1 - self.axis)
        if self.axis < like.ndim and row.shape == (like.shape[self.axis],):
            row = row.reshape(-1, *one)
        elif row.shape not in ((), like.shape[1:]):
            raise EbbError(
                f"the moments of start 'analytic-init' are {tuple(row.shape)} where samples are "
                f"{tuple(like.shape[1:])}: give a number, one a channel (along `axis`), or a whole element."
            )
        return row.to(like.device)


def best_fit(x: Tensor, channels: int | None = None, whole: bool = False) -> dict[str, Tensor]:
    """The moments of data x (N, ...) that this start wants, float64; write them with `start.table.write`.

    channels   the axis whose places have moments of their own, counted as in x; None: the same for every number
    whole      whether the mean is that of every number, (1, ...), and the variance what is left about it
    """
    x = x.double()
    over = [k for k in range(x.ndim) if k != channels]
    mean = x.mean(0, keepdim=True) if whole else x.mean(over, keepdim=True)
    var = (x - mean).square().mean(over)
    return {"mean": mean if whole else mean.reshape(1, *var.shape), "var": var[None]}
