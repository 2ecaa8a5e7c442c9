"""Brownian bridge: data at one end, y at the other, noise only between.

    x_t = (1 - t) x0 + t y + kappa sqrt(t (1 - t)) eps

x_1 = y exactly. The chain is a Brownian motion pinned at both ends, cov(x_s, x_t) = kappa^2 s (1 - t) for s < t, and
eta = 1 is its posterior. At t = 1 there is no noise to keep, so the first step draws all its noise, at eta = 0 too.

Paper    Li et al. 2023, "BBDM: image-to-image translation with Brownian bridge diffusion models" (arXiv 2205.07680),
         section 3; kappa^2 = 2 s with their s
Differs  continuous time; BBDM leaves out x_T and starts one step later, where its noise is defined.
"""

from __future__ import annotations

import math

from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.ended import Ended
from ebbtide.process.gaussian import Positive


@part("process", "bridge", paper="2205.07680")
class Bridge(Ended):
    """Brownian bridge: data at one end, y at the other, noise only between.

    kappa   the standard deviation of the free Brownian motion at t = 1; half of it is the bridge's at t = 1/2
    """

    kappa: Positive = 1.0

    def a(self, t: Tensor) -> Tensor:
        return 1 - t

    def b(self, t: Tensor) -> Tensor:
        return t

    def c(self, t: Tensor) -> Tensor:
        return self.kappa * (t * (1 - t)).sqrt()

    def time(self, lam: Tensor) -> Tensor:
        return 1 / (1 + (2 * (lam + math.log(self.kappa))).exp())
