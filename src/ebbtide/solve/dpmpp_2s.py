"""DPM-Solver++ singlestep: DPM-Solver of order 2 or 3 in the data space, and its SDE form.

    x_1 = DDIM to lam_t + h / 2,   x_s = DDIM + E (x0(x_1) - x0_t)              2S;  3S as `dpm-solver` of order 3

Shapes   x (B, ...), any units; 2 or 3 calls a step
Paper    Lu et al. 2022, "DPM-Solver++" (arXiv 2211.01095), algorithm 1 and appendix A
Off      order = 1 is `euler`, bit for bit; of the SDE form `ancestral`.
Differs  in the SDE form the stage lies on the flow and only the step draws noise; it is of weak order 1.
"""

from __future__ import annotations

from typing import Literal

from ebbtide.core.registry import part
from ebbtide.solve.coordinates import Space
from ebbtide.solve.dpm_solver import DPMSolver


@part("solve", "dpmpp-2s", paper="2211.01095", needs={"affine"}, gives={"err"}, off={"order": 1}, baseline="euler")
class DPMpp2S(DPMSolver):
    """DPM-Solver++(2S): a midpoint step in log-SNR on the data predictions."""

    order: Literal[1, 2] = 2
    space: Space = "data"


@part("solve", "dpmpp-3s", paper="2211.01095", needs={"affine"}, gives={"err"}, off={"order": 1}, baseline="euler")
class DPMpp3S(DPMSolver):
    """DPM-Solver++(3S): a third-order step in log-SNR on the data predictions, three calls."""

    order: Literal[1, 2, 3] = 3
    space: Space = "data"
