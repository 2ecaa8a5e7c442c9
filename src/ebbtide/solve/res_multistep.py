"""RES multistep: the second-order exponential Adams-Bashforth step in the data space, in log-SNR.

    x_s = (c_s / c_t) x_t + a_s h ((phi_1 - phi_2 / c) x0_t + (phi_2 / c) x0_prev),   phi at -h,   c = -h_prev / h

Shapes   see `multistep`; memory: one slope
Paper    Zhang et al. 2023, "Improved order analysis and design of exponential integrator for diffusion models sampling"
         (arXiv 2308.02157), section 4
Off      order = 1 is `euler`, bit for bit.
Differs  nothing.
"""

from __future__ import annotations

from typing import Literal

from ebbtide.core.registry import part
from ebbtide.solve.multistep import Multistep


@part("solve", "res-multistep", paper="2308.02157", needs={"affine"}, off={"order": 1}, baseline="euler")
class RESMultistep(Multistep):
    """RES multistep: the second-order exponential Adams-Bashforth step in the data space, in log-SNR."""

    order: Literal[1, 2] = 2
