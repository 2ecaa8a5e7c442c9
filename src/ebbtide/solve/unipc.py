"""UniPC: a multistep predictor, and a corrector that uses the call of the next step, so it costs none of its own.

    predictor   x_s = DDIM(x_t) + E sum_k r_k (x0_k - x0_t)
    corrector   the same with the slope at s added, applied when that slope is known: one order more

With two slopes the predictor, and with one the corrector, weighs by B(h) / 2 instead of the exact integral:
`kind` "bh1" has B = h, "bh2" has B = e^h - 1.

Shapes   see `multistep`; memory: `predictor` slopes
Paper    Zhao et al. 2023, "UniPC" (arXiv 2302.04867), section 3 and appendix C
Off      predictor = 1 without the corrector is `euler`, bit for bit.
Differs  `predictor` is the paper's p; the order of the corrected steps is p + 1. The corrector is written as a difference, so
         no earlier x is kept. Where it lands on the data a step is DDIM.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.affine import Affine
from ebbtide.solve.coordinates import Space
from ebbtide.solve.multistep import Multistep


@part(
    "solve",
    "unipc",
    paper="2302.04867",
    needs={"affine"},
    off={"predictor": 1, "corrector": False},
    baseline="euler",
)
class UniPC(Multistep):
    """UniPC: a multistep predictor, and a corrector that uses the call of the next step, so it costs none of its own."""

    predictor: Literal[1, 2, 3] = 2
    kind: Literal["bh1", "bh2"] = "bh2"
    space: Space = "data"
    corrector: bool = True

    @property
    def terms(self) -> int:
        return self.predictor

    @property
    def order(self) -> int:
        return self.predictor + self.corrector

    @property
    def startup(self) -> int:
        return min(self.order, 3 if self.corrector else 2)

    def moments(self, process: Affine, t: Tensor, s: Tensor, fade: Tensor, count: int) -> list[Tensor]:
        if count > 1:
            return super().moments(process, t, s, fade, count)
        half = torch.full_like(t, 0.5)
        if self.kind == "bh1":
            z = -fade * (process.lam(s) - process.lam(t))
            half = half * torch.where(z == 0, 1.0, z / torch.where(z == 0, 1.0, torch.expm1(z)))
        return [torch.ones_like(t), half]
