"""Spacings of a discrete clock: which of N train steps a run visits.

    leading    index_k = (n - 1 - k) floor(N / n) + offset            never at the noisiest step unless offset makes it so
    trailing   index_k = round(N - k N / n) - 1                       from the noisiest step down
    linspace   index_k = round((N - 1) (1 - k / (n - 1)))             both ends

t_k = (index_k + 1) / N, then 0: a process with a table of N train steps is asked for exactly its own. `spare` lays one step
more and leaves out the cleanest, as the schedulers of DPM-Solver and UniPC do; `rounded=False` keeps linspace between steps.

Shapes   points (n + 1,).
Paper    Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed" (arXiv 2305.08891), table 2
Differs  the last step always ends in the data. More steps than the clock has are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.grid.fixed import FixedGrid, Steps


@part("grid", "clock", paper="2305.08891")
class Clock(FixedGrid):
    """Spacings of a discrete clock: which of N train steps a run visits."""

    examples = ({"spacing": "leading", "offset": 1},)
    steps: Steps = 20
    spacing: Literal["leading", "trailing", "linspace"] = "trailing"
    clock: Steps = 1000
    offset: Annotated[int, Field(ge=0)] = 0
    spare: bool = False
    rounded: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Clock:
        if self.steps + self.spare > self.clock:
            raise ValueError(f"a clock of {self.clock} has no {self.steps + self.spare} steps to visit")
        if self.offset and self.spacing != "leading":
            raise ValueError("an offset goes with the leading spacing")
        if float(self.indices()[0]) > self.clock - 1:
            raise ValueError(f"the offset leaves the clock of {self.clock}")
        return self

    def indices(self) -> Tensor:
        """The train steps visited, float64 (n,), falling."""
        n, clock = self.steps + self.spare, self.clock
        k = torch.arange(n, dtype=torch.float64)
        if self.spacing == "leading":
            index = k.flip(0) * (clock // n) + self.offset
        elif self.spacing == "trailing":
            index = clock - k * clock / n
            index = (index.round() if self.rounded else index) - 1
        else:
            index = torch.linspace(clock - 1, 0, n, dtype=torch.float64)
            index = index.round() if self.rounded else index
        return index[: self.steps]

    def points(self, process: Any, state: State) -> Tensor:
        return torch.cat([(self.indices() + 1) / self.clock, torch.zeros(1, dtype=torch.float64)])
