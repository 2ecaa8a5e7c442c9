"""GHVB: Adams-Bashforth on a moving average of the noise, which stays stable at steps that the plain rule does not survive.

    v_n = (1 - beta) v_(n-1) + beta eps_n
    order 2   ((2 + beta) v_n - (2 - beta) v_(n-1)) / (2 beta)
    order 3   ((18 + 5 beta) v_n - (24 - 8 beta) v_(n-1) + (6 - beta) v_(n-2)) / (12 beta)
    order 4   ((46 + 9 beta) v_n - (78 - 19 beta) v_(n-1) + (42 - 5 beta) v_(n-2) - (10 - beta) v_(n-3)) / (24 beta)

The weights undo the lag of the average to the order asked for; smaller beta moves the method towards one order less and
wider stability. `form` "hb" is Polyak's heavy ball, v_n = (1 - beta) v_(n-1) + beta (Adams-Bashforth of eps): the average of
a combination is the combination of averages, so it is the weights at beta = 1 on the same v. The lag stays: order 1.

Shapes   see `multistep`; memory: the last order - 1 averages
Paper    Wizadwongsa et al. 2023, "Diffusion sampling with momentum for mitigating divergence artifacts" (arXiv 2307.11118),
         section 4
Off      beta = 1 is `ipndm` with as many terms, bit for bit.
Differs  of the paper's family these two forms on Adams-Bashforth are built, none on DPM-Solver++ or UniPC. The order is
         reached on grids even in sigma. Heavy ball is the paper's from the step on at which all terms are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.core.state import Pred, State
from ebbtide.core.time import combine, where
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine
from ebbtide.solve.ipndm import Even


def averaged(order: int, b: float) -> list[float]:
    """The weights of v_n, v_(n-1)..., 1 in all."""
    rows = {
        1: (1.0, [1.0]),
        2: (2 * b, [2 + b, b - 2]),
        3: (12 * b, [18 + 5 * b, 8 * b - 24, 6 - b]),
        4: (24 * b, [46 + 9 * b, 19 * b - 78, 42 - 5 * b, b - 10]),
    }
    scale, weights = rows[order]
    return [w / scale for w in weights]


@part("solve", "ghvb", paper="2307.11118", needs={"affine"}, off={"beta": 1.0}, baseline="ipndm")
class GHVB(Even):
    """GHVB: Adams-Bashforth on a moving average of the noise, stable at steps that the plain rule does not survive.

    terms   averages that are combined
    beta    how much of the newest slope enters the average; 1 keeps none of the older ones
    form    "ghvb", or "hb" for heavy ball, of order 1
    """

    terms: Literal[2, 3, 4] = 4
    beta: Annotated[float, Field(gt=0, le=1)] = 0.8
    form: Literal["ghvb", "hb"] = "ghvb"

    @property
    def order(self) -> int:
        return 1 if self.form == "hb" and self.beta < 1 else 2

    def predict(self, process: Affine, t: Tensor, s: Tensor, fade: Tensor, past: Sequence[Tensor]) -> list[Tensor]:
        if self.beta == 1:
            return super().predict(process, t, s, fade, past)
        one = torch.ones_like(t)
        chosen = [one, *(0 * one for _ in past)]
        for m in range(1, min(len(past), self.terms - 1) + 1):
            now, last, *rest = averaged(m + 1, 1.0 if self.form == "hb" else self.beta)
            found = [self.beta * now, last + (1 - self.beta) * now, *rest]
            there = past[m - 1] > 0
            chosen = [torch.where(there, f * one, c) for f, c in zip(found, chosen, strict=False)] + chosen[m + 1 :]
        return chosen

    def keep(self, state: State, pred: Pred, past: Sequence[Memory], process: Affine) -> Memory:
        kept = super().keep(state, pred, past, process)
        if self.beta < 1:  # no noise is seen at the far end of a bridge, and an average would never lose that slope
            kept["1"] = {**kept["1"], "t": torch.where(process.c(state.t) > 0, state.t, 0.0)}
        return kept

    def slope(self, f: Tensor, past: Sequence[Memory]) -> Tensor:
        if self.beta == 1 or not past:
            return f
        mixed = combine((1 - self.beta, past[0]["f"]), (self.beta, f))
        kept: Tensor = where(past[0]["t"] > 0, mixed, f)
        return kept
