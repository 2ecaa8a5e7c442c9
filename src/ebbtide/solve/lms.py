"""LMS: the linear multistep rule in sigma, Adams-Bashforth with steps of any length.

    x_s / a_s = x_t / a_t + sum_k (integral of the k-th Lagrange polynomial in sigma) eps_k

Shapes   see `multistep`; memory: order - 1 slopes
Source   Crowson 2022, k-diffusion, `sample_lms`; Liu et al. 2022, "PNDM" (arXiv 2202.09778), section 3.3, for the idea
Off      order = 1 is `euler`, bit for bit.
Differs  where a_t = 0, at which sigma is infinite, the step is DDIM.
"""

from __future__ import annotations

from typing import Literal

from ebbtide.core.registry import part
from ebbtide.solve.multistep import Multistep


@part("solve", "lms", paper="2202.09778", needs={"affine"}, off={"order": 1}, baseline="euler")
class LMS(Multistep):
    """LMS: the linear multistep rule in sigma, Adams-Bashforth with steps of any length."""

    space = "noise"
    variable = "sigma"
    order: Literal[1, 2, 3, 4] = 4

    @property
    def startup(self) -> int:
        return min(self.order, 2)
