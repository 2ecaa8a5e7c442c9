"""Resfusion: a diffusion of the data less its residual, cut where the data's weight is nil.

    x_t = m x0 + (1 - m) (y - x0) + sqrt(1 - m^2) eps = (2 m - 1) x0 + (1 - m) y + sqrt(1 - m^2) eps

m(t) is the signal weight of `vp-linear`, its clock stretched so that m(1) = 1/2: there x_1 = y / 2 + sqrt(3) / 2 eps
knows nothing of x0, and a run starts from y. x_t - (y - x0) is an ordinary diffusion, so noise is carried by m.

Paper    Shi et al. 2023, "Resfusion: denoising diffusion probabilistic models for image restoration based on prior
         residual noise" (arXiv 2311.14900), section 3
Differs  continuous time: the paper's table of betas, cut at m = 1/2, is a discretisation of it.
"""

from __future__ import annotations

import math

from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.ended import Carried
from ebbtide.process.gaussian import Positive


@part("process", "resfusion", paper="2311.14900")
class Resfusion(Carried):
    """Resfusion: a diffusion of the data less its residual, cut where the data's weight is nil."""

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0

    def __post_init__(self) -> None:
        if self.beta_min + self.beta_max < 4 * math.log(2):
            raise ValueError("beta_min + beta_max must be at least 4 log 2 = 2.77, or the signal never falls to 1/2")

    def carry(self, t: Tensor) -> Tensor:
        return self._log_m(t).exp()

    def _log_m(self, t: Tensor) -> Tensor:
        """-log 2 (p t^2 + q t), p + q = 1: the exponent of `vp-linear` on the clock that ends at m = 1/2."""
        slope, first = (self.beta_max - self.beta_min) / 4, self.beta_min / 2
        # the positive root of slope u^2 + first u = log 2, in the form that also holds for slope 0
        cut = 2 * math.log(2) / (first + math.sqrt(first**2 + 4 * slope * math.log(2)))
        return -(t * cut) * (first + slope * cut * t)

    def a(self, t: Tensor) -> Tensor:
        return 2 * self.carry(t) - 1

    def b(self, t: Tensor) -> Tensor:
        return -self._log_m(t).expm1()

    def c(self, t: Tensor) -> Tensor:
        return (-(2 * self._log_m(t)).expm1()).sqrt()
