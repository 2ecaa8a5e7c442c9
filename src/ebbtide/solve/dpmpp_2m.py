"""DPM-Solver++(2M): a second-order step for one call, from the slope of the last two data predictions.

    x_s = (c_s / c_t) x_t + a_s (1 - e^-h) ((1 + r) x0_t - r x0_prev),   h = lam_s - lam_t,   r = h / (2 h_prev)

The multistep rule in the data space with I_1 = 1/2, the midpoint. `eta` makes it the SDE form.

Shapes   see `multistep`; memory: one slope
Paper    Lu et al. 2022, "DPM-Solver++" (arXiv 2211.01095), algorithm 2
Off      order = 1 is `euler`, bit for bit (with the same eta).
Differs  the step that lands on the data itself (c_s = 0) is of order 1, where the extrapolation would diverge. The eta is
         that of DDIM; with eta = 1 it is the SDE form of the paper, of weak order 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.affine import Affine
from ebbtide.solve.euler import Eta
from ebbtide.solve.multistep import Multistep, SecondOrder


class Midpoint(Multistep):
    """Two slopes, the midpoint rule."""

    def moments(self, process: Affine, t: Tensor, s: Tensor, fade: Tensor, count: int) -> list[Tensor]:
        return [torch.ones_like(t), torch.full_like(t, 0.5)]


@part("solve", "dpmpp-2m", paper="2211.01095", needs={"affine"}, off={"order": 1}, baseline="euler")
class DPMpp2M(Midpoint):
    """DPM-Solver++(2M): a second-order step for one call, from the slope of the last two data predictions."""

    order: Literal[1, 2] = 2


@part("solve", "dpmpp-2m-sde", paper="2211.01095", needs={"affine"}, off={"terms": 1}, baseline="ancestral")
class DPMpp2MSDE(SecondOrder, Midpoint):
    """DPM-Solver++(2M) for the reverse SDE: the same slope, with fresh noise at every step."""

    terms: Literal[1, 2] = 2
    eta: Eta = 1.0
