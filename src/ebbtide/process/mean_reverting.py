"""Mean-reverting diffusion: an Ornstein-Uhlenbeck process that forgets the data and settles around y.

    dx = theta'(t) (y - x) dt + sigma sqrt(2 theta'(t)) dw
    x_t = a x0 + (1 - a) y + sigma sqrt(1 - a^2) eps,   a = exp(-theta(t)),   theta(1) = -log(last)

    speed theta'   constant | linear from 1/200 of its last value (as DDPM's beta) | cosine 1 - cos^2 f(t) / cos^2 f(0),
                   f(t) = pi/2 (t + o) / (1 + o), o = 0.008

eta = 1 is the posterior of this Markov chain, the optimal reverse step of IR-SDE.

Paper    Luo et al. 2023, "Image restoration with mean-reverting stochastic differential equations" (arXiv 2301.11699),
         section 3; Li et al. 2025, "MRS" (2502.07856), for solvers in log(a / c)
Differs  theta is integrated in closed form; the paper sums 100 values of it and drops the first and the last.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.ended import Ended
from ebbtide.process.gaussian import Positive

_FIRST = 1 / 200
_OFFSET = 0.008


@part("process", "mean-reverting", paper="2301.11699")
class MeanReverting(Ended):
    """Mean-reverting diffusion: an Ornstein-Uhlenbeck process that forgets the data and settles around y.

    sigma   the stationary standard deviation (the paper's lambda; 10/255 to 70/255 for images in [0, 1])
    last    what is left of the data at t = 1
    speed   how the rate of forgetting grows
    """

    sigma: Positive = 0.2
    last: Annotated[float, Field(gt=0, lt=1)] = 0.005
    speed: Literal["constant", "linear", "cosine"] = "cosine"

    def theta(self, t: Tensor) -> Tensor:
        """The integral of the rate from 0 to t."""
        if self.speed == "constant":
            share = t
        elif self.speed == "linear":
            share = t * (_FIRST + (1 - _FIRST) / 2 * t) / (_FIRST + (1 - _FIRST) / 2)
        else:
            share = _cosine(t) / _cosine(t.new_ones(1))
        return -math.log(self.last) * share

    def a(self, t: Tensor) -> Tensor:
        return (-self.theta(t)).exp()

    def b(self, t: Tensor) -> Tensor:
        return -(-self.theta(t)).expm1()

    def c(self, t: Tensor) -> Tensor:
        return self.sigma * (-(-2 * self.theta(t)).expm1()).clamp_min(0).sqrt()


def _cosine(t: Tensor) -> Tensor:
    """The integral of 1 - cos^2 f / cos^2 f(0) from 0 to t."""
    slope, first = math.pi / 2 / (1 + _OFFSET), math.pi / 2 * _OFFSET / (1 + _OFFSET)
    squared = t / 2 + ((2 * (first + slope * t)).sin() - math.sin(2 * first)) / (4 * slope)
    return (t - squared / math.cos(first) ** 2).clamp_min(0)
