"""Flow shift: even times bent towards the noise, the more so the larger the picture.

    t' = s t / (1 + (s - 1) t)                  sigma' = s sigma in a flow: the log-SNR of every time falls by 2 log s
    s  = exp(mu),  mu = base_shift + (length - base_length) (max_shift - base_shift) / (max_length - base_length)

The second form (`dynamic`) is for a model trained at several resolutions: more tokens average more noise away, so
the same blur needs more of it. t is even from `first` to 0, or, with `last`, from `first` to `last` and then the data.
`terminal` stretches what results so that the last time before the data is this one.

Shapes   points (n + 1,). length: tokens of an element; by default the places of x (B, C, H, W...) / patch^2.
Paper    Esser et al. 2024, "Scaling rectified flow transformers" (arXiv 2403.03206), section 5.3.2; interpolation in mu as in
         FLUX.1, terminal as in LTX-Video (arXiv 2501.00103)
Off      shift = 1 is `linear`, bit for bit.
Differs  nothing is shifted twice; the smallest sigma of diffusers, which it shifts before its schedules shift it again, is
         the caller's `last`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.grid.fixed import FixedGrid, Level, Steps, Time


@part("grid", "shift", paper="2403.03206", off={"shift": 1.0, "dynamic": False}, baseline="linear")
class Shift(FixedGrid):
    """Flow shift: even times bent towards the noise, the more so the larger the picture."""

    examples = ({"dynamic": True},)
    steps: Steps = 20
    shift: Level = 3.0
    first: Time = 1.0
    last: Time | None = None
    terminal: Time | None = None
    dynamic: bool = False
    length: Steps | None = None
    patch: Steps = 2
    base_length: Steps = 256
    max_length: Steps = 4096
    base_shift: Level = 0.5
    max_shift: Level = 1.15
    form: Literal["exponential", "linear"] = "exponential"

    @model_validator(mode="after")
    def _lengths(self) -> Shift:
        if self.max_length <= self.base_length:
            raise ValueError("max_length must be above base_length")
        return self

    def points(self, process: Any, state: State) -> Tensor:
        s = self.strength(state) if self.dynamic else self.shift
        if self.last is None:
            t = torch.linspace(self.first, 0, self.steps + 1, dtype=torch.float64)
        else:
            even = torch.linspace(self.first, self.last, self.steps, dtype=torch.float64)
            t = torch.cat([even, torch.zeros(1, dtype=torch.float64)])
        t = s * t / (1 + (s - 1) * t)
        if self.terminal is not None and float(t[-2]) < 1:
            inner = 1 - (1 - t[:-1]) * (1 - self.terminal) / (1 - t[-2])
            t = torch.cat([inner, torch.zeros(1, dtype=torch.float64)])
        return t

    def strength(self, state: State) -> float:
        """s for the elements of this state."""
        length = self._length(state) if self.length is None else self.length
        slope = (self.max_shift - self.base_shift) / (self.max_length - self.base_length)
        mu = self.base_shift + (length - self.base_length) * slope
        return math.exp(mu) if self.form == "exponential" else mu

    def _length(self, state: State) -> float:
        if not isinstance(state.x, Tensor):
            raise EbbError("a joint state has no one length to shift by; give the grid its `length` in tokens.")
        return math.prod(state.x.shape[2:]) / self.patch**2
