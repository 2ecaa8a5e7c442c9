"""DPM-Solver++(3M): a third-order step for one call, from the last three data predictions.

    x_s = DDIM(x_t) + a_s (1 - e^-h) (I_1 D1 + I_2 D2)

with D1, D2 the first and second divided differences of x0 in log-SNR, in units of h.

Shapes   see `multistep`; memory: two slopes
Paper    Lu et al. 2022, "DPM-Solver++" (arXiv 2211.01095), appendix A
Off      order = 1 is `euler`, bit for bit.
Differs  I_2 is the integral of theta^2, so the step is of order 3. The implementations in wide use weigh D2 by half of that,
         as if it were the second derivative, and are of order 2; so does `dpmpp-3m-sde` with second = 0.5.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.affine import Affine
from ebbtide.solve.euler import Eta
from ebbtide.solve.multistep import Multistep, SecondOrder


@part("solve", "dpmpp-3m", paper="2211.01095", needs={"affine"}, off={"order": 1}, baseline="euler")
class DPMpp3M(Multistep):
    """DPM-Solver++(3M): a third-order step for one call, from the last three data predictions."""

    order: Literal[1, 2, 3] = 3

    @property
    def startup(self) -> int:
        return min(self.order, 2)


@part(
    "solve",
    "dpmpp-3m-sde",
    paper="2211.01095",
    needs={"affine"},
    off={"terms": 1},
    baseline="ancestral",
    exempt={"order": "weak order 2 is reached from above: 2.15 (vp) and 2.25 (flow) are still seen at 512 steps"},
)
class DPMpp3MSDE(SecondOrder):
    """DPM-Solver++(3M) for the reverse SDE: the same slopes, with fresh noise at every step.

    second   the weight of the second difference: 1 its integral, 0.5 as in k-diffusion
    """

    terms: Literal[1, 2, 3] = 3
    eta: Eta = 1.0
    second: Annotated[float, Field(ge=0, le=1)] = 1.0

    def moments(self, process: Affine, t: Tensor, s: Tensor, fade: Tensor, count: int) -> list[Tensor]:
        found = super().moments(process, t, s, fade, count)
        return [*found[:2], *(self.second * v for v in found[2:])]
