"""The bent grid: a Karras list cut before its clean tail, and the real steps laid almost evenly in time between its ends.

    sigma_0 > ... > sigma_N-1   a Karras list of N = `base_points` levels; of it only sigma_0 and sigma_K (K = `keep`) stay
    t_a, t_b                    their times
    t_k = (t_a^(1/r) + k / (n - 2) (t_b^(1/r) - t_a^(1/r)))^r,   k = 0..n-1,   r = `time_rho`,   then data

The tail of a Karras list spends steps where pictures no longer change. Published for 8 steps: N = 12, K = 9, rho 7; for 5 or 6
steps: N = 8, K = 6, rho 5, with Euler in place of DPM-Solver++(2M).

Shapes   points (n + 1,).
Paper    "Hyperparameters are all you need" 2025 (arXiv 2510.02390), the sampler in its code
Off      keep = None is `karras`, bit for bit.
Differs  the published list stops at sigma_K and lets the decoder swallow the rest; here the step to the data is one of the n.
         Times are continuous, so alpha-bar is not interpolated between train steps.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.grid.fixed import Karras, Level


@part("grid", "bent", paper="2510.02390", needs={"affine"}, off={"keep": None}, baseline="karras")
class Bent(Karras):
    """The bent grid: a Karras list cut before its clean tail, and steps almost even in time between its ends."""

    base_points: Annotated[int, Field(gt=1)] = 12
    keep: Annotated[int, Field(gt=0)] | None = 9
    time_rho: Level = 1.2

    @model_validator(mode="after")
    def _inside(self) -> Bent:
        if self.keep is not None and self.keep >= self.base_points:
            raise ValueError(f"keep counts levels of the base list from 0 and must be below {self.base_points}")
        return self

    def points(self, process: Any, state: State) -> Tensor:
        if self.keep is None:
            return super().points(process, state)
        base = Karras(self.base_points, self.sigma_min, self.sigma_max, self.rho).points(process, state)
        first, last = float(base[0]) ** (1 / self.time_rho), float(base[self.keep]) ** (1 / self.time_rho)
        inner = torch.linspace(first, last, self.steps, dtype=torch.float64) ** self.time_rho
        return torch.cat([inner, torch.zeros(1, dtype=torch.float64)])
