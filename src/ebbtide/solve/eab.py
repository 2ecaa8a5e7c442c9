"""Exponential Adams-Bashforth: the linear part exactly, the slope as a polynomial through the last `order` of them.

    x_s = DDIM(x_t) + E sum_k r_k (f_k - f_t),   sum_k r_k kappa_k^j = I_j

`space` chooses the slope (data: x0, noise: eps), `variable` what it is a polynomial in: log-SNR, the level rho of its
coordinate, or time. `corrector` puts each step right with the slope at its end (Adams-Moulton), for no further call, and
raises the order by one.

Shapes   see `multistep`; memory: order - 1 slopes, one more with the corrector
Paper    Hochbruck, Ostermann 2010, "Exponential integrators", section 2.5; Zhang, Chen 2023 (arXiv 2204.13902), section 3
Off      terms = 1 without the corrector is `euler`, bit for bit.
Differs  nothing. At its defaults it is the rule of `dpmpp-3m`, with two terms that of `res-multistep`.
"""

from __future__ import annotations

from typing import Literal

from ebbtide.core.registry import part
from ebbtide.solve.coordinates import Space, Variable
from ebbtide.solve.multistep import Multistep


@part(
    "solve",
    "eab",
    paper="2204.13902",
    needs={"affine"},
    off={"terms": 1, "corrector": False},
    baseline="euler",
)
class ExponentialAdams(Multistep):
    """Exponential Adams-Bashforth: the linear part exactly, the slope as a polynomial through the last of them."""

    terms: Literal[1, 2, 3, 4] = 3
    space: Space = "data"
    variable: Variable = "log-snr"
    corrector: bool = False

    @property
    def order(self) -> int:
        return self.terms + self.corrector

    @property
    def startup(self) -> int:
        return min(self.order, 2 + (self.corrector and self.terms > 1))
