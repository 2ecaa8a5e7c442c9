"""Linear, then quadratic: half of the steps crawl through the first few hundredths of time, the others fall to the data.

    1 - t_k = k theta / m                                                   k <= m
    1 - t_k = theta + (theta / m) j + q j^2,   j = k - m,   q = (m - theta n) / (m (n - m)^2)

The two pieces meet with one slope, and t_n = 0. The first m steps are those of a fine even grid of m / theta steps, where a
flow decides what the picture is of. With `sigma_max` the list is of noise levels sigma_max t_k.

Shapes   points (n + 1,).
Source   Genmo's Mochi 1 (genmoai/mochi, 2024), its sigma schedule; "linear_quadratic" in ComfyUI and in diffusers' pipelines
Differs  n = 1 is one step from 1 to 0.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.grid.fixed import FixedGrid, Level, Steps
from ebbtide.process.affine import Affine


@part("grid", "linear-quadratic")
class LinearQuadratic(FixedGrid):
    """Linear, then quadratic: half of the steps crawl through the first few hundredths of time."""

    steps: Steps = 20
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.025
    linear_steps: Steps | None = None
    sigma_max: Level | None = None

    @model_validator(mode="after")
    def _fits(self) -> LinearQuadratic:
        m = self._linear
        if self.steps > 1 and not m < self.steps:
            raise ValueError(f"linear_steps must be below steps ({self.steps})")
        if self.steps > 1 and self.threshold * (self.steps + m) >= 2 * m:
            raise ValueError(f"the threshold must be below {2 * m / (self.steps + m):g}, or time would turn back")
        return self

    @property
    def _linear(self) -> int:
        return self.linear_steps or max(self.steps // 2, 1)

    def points(self, process: Any, state: State) -> Tensor:
        n, m, theta = self.steps, self._linear, self.threshold
        k = torch.arange(n + 1, dtype=torch.float64)
        j = (k - m).clamp_min(0)
        gone = k * theta / m + (m - theta * n) / (m * max(n - m, 1) ** 2) * j**2 if n > 1 else k
        times = torch.cat([1 - gone[:-1], torch.zeros(1, dtype=torch.float64)])
        if self.sigma_max is None:
            return times
        if not isinstance(process, Affine):
            raise EbbError("noise levels need an affine process; leave out `sigma_max` for this one.")
        levels = process.time(-(self.sigma_max * times[:-1]).log())
        return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
