"""DEIS: exponential Adams-Bashforth on the noise, a polynomial in time, in sigma, or in the logarithm of sigma.

    x_s = DDIM(x_t) + E sum_k r_k (eps_k - eps_t)

`variable` "time" is tAB-DEIS, "sigma" rhoAB-DEIS, "log-snr" the form that is most used today.

Shapes   see `multistep`; memory: order - 1 slopes
Paper    Zhang, Chen 2023, "Fast sampling of diffusion models with exponential integrator" (arXiv 2204.13902), section 3
Off      order = 1 is `euler`, bit for bit.
Differs  where a_t = 0, at which sigma is infinite, the step is DDIM.
"""

from __future__ import annotations

from typing import Literal

from ebbtide.core.registry import part
from ebbtide.solve.coordinates import Variable
from ebbtide.solve.multistep import Multistep


@part("solve", "deis", paper="2204.13902", needs={"affine"}, off={"order": 1}, baseline="euler")
class DEIS(Multistep):
    """DEIS: exponential Adams-Bashforth on the noise, a polynomial in time, in sigma, or in the logarithm of sigma."""

    space = "noise"
    order: Literal[1, 2, 3, 4] = 3
    variable: Variable = "log-snr"

    @property
    def startup(self) -> int:
        return min(self.order, 2)
