"""KL-optimal levels: the angle atan(sigma) falls evenly.

    sigma_k = tan(atan(smax) + k / (n - 1) (atan(smin) - atan(smax))), then data

For Gaussian data of unit variance this is the list that minimises the bound on the divergence of the sampled from the true law:
the angle is the one of cos = a / sqrt(a^2 + c^2).

Shapes   points (n + 1,).
Paper    Sabour, Fidler, Kreis 2024, "Align your steps" (arXiv 2404.14507), theorem 3.1
Differs  nothing; "kl_optimal" in ComfyUI, whose one-step list is not a number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.grid.fixed import Level, LevelGrid, Steps


@part("grid", "kl-optimal", paper="2404.14507", needs={"affine"})
class KLOptimal(LevelGrid):
    """KL-optimal levels: the angle atan(sigma) falls evenly."""

    steps: Steps = 20
    sigma_min: Level = 0.002
    sigma_max: Level = 80.0

    def levels(self, low: float, high: float) -> Tensor:
        first, last = (math.atan(min(max(v, low), high)) for v in (self.sigma_max, self.sigma_min))
        return torch.linspace(first, last, self.steps, dtype=torch.float64).tan()
