"""Quadratic times: short steps near the data, long ones in the noise.

    t_k = first (1 - k / n)^2

Shapes   points (n + 1,).
Paper    Song, Meng, Ermon 2021, "Denoising diffusion implicit models" (arXiv 2010.02502), appendix D.2
Differs  the paper starts at 0.8 of its clock for CIFAR-10, which is first = 0.8; and its sub-sequence stops one train step
         short of the data, where ours ends in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.grid.fixed import FixedGrid, Steps, Time


@part("grid", "quadratic", paper="2010.02502")
class Quadratic(FixedGrid):
    """Quadratic times: short steps near the data, long ones in the noise."""

    steps: Steps = 20
    first: Time = 1.0

    def points(self, process: Any, state: State) -> Tensor:
        return self.first * torch.linspace(1, 0, self.steps + 1, dtype=torch.float64) ** 2
