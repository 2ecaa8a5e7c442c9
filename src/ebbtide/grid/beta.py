"""Beta quantiles: steps that crowd at both ends of time, where a model's spectrum changes most.

    t_k     = first Q(1 - k / n)                                             space "time"
    sigma_k = smin + Q(1 - k / (n - 1)) (smax - smin), then data             space "noise"

Q is the quantile function of Beta(alpha, beta): even steps at alpha = beta = 1, more at both ends below 1, fewer above.

Shapes   points (n + 1,).
Paper    Lee et al. 2024, "Beta sampling is all you need" (arXiv 2407.12173), section 4
Off      alpha = beta = 1 is `linear`, to rounding.
Differs  nothing is rounded to train steps, so no two steps fall together. "time" is what ComfyUI does, "noise" diffusers.
"""

from __future__ import annotations

import functools
import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.grid.fixed import Level, LevelGrid, Steps, Time
from ebbtide.process.affine import Affine

Shape = Annotated[float, Field(ge=0.05, le=100)]


@part("grid", "beta", paper="2407.12173")
class Beta(LevelGrid):
    """Beta quantiles: steps that crowd at both ends of time, where a model's spectrum changes most."""

    examples = ({"space": "noise"},)
    steps: Steps = 20
    alpha: Shape = 0.6
    beta: Shape = 0.6
    first: Time = 1.0
    space: Literal["time", "noise"] = "time"
    sigma_min: Level = 0.002
    sigma_max: Level = 80.0

    def levels(self, low: float, high: float) -> Tensor:
        first, last = (min(max(v, low), high) for v in (self.sigma_max, self.sigma_min))
        return last + self._quantiles(torch.linspace(1, 0, self.steps, dtype=torch.float64)) * (first - last)

    def points(self, process: Any, state: State) -> Tensor:
        if self.space == "time":
            return self.first * self._quantiles(torch.linspace(1, 0, self.steps + 1, dtype=torch.float64))
        if not isinstance(process, Affine):
            raise EbbError("noise levels need an affine process; give space='time' for this one.")
        return super().points(process, state)

    def _quantiles(self, p: Tensor) -> Tensor:
        return torch.tensor([beta_quantile(v, self.alpha, self.beta) for v in p.tolist()], dtype=torch.float64)


def beta_cdf(x: float, a: float, b: float) -> float:
    """I_x(a, b), the regularised incomplete beta function, by its continued fraction, for 0 <= x <= 1."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast below the mean only
        return 1 - beta_cdf(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d, total = 1.0, 1 / (1 - (a + b) * x / (a + 1)), 1 / (1 - (a + b) * x / (a + 1))
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = total
        for k in (even, odd):
            c, d = 1 + k / c, 1 / (1 + k * d)
            total *= c * d
        if abs(total - before) <= 1e-16 * abs(total):
            break
    return math.exp(front) * total / a


@functools.cache
def beta_quantile(p: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = p, by bisection; above the median as 1 less the mirrored quantile, so both ends are exact."""
    if p <= 0 or p >= 1:
        return min(max(p, 0.0), 1.0)
    if p > 0.5:
        return 1 - beta_quantile(1 - p, b, a)
    low, high = 0.0, 1.0
    for _ in range(200):
        mid = (low + high) / 2 if low > 0 or high < 1e-3 else high / 16
        if mid in (low, high):
            break
        low, high = (mid, high) if beta_cdf(mid, a, b) < p else (low, mid)
    return (low + high) / 2
