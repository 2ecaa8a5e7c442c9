"""Token counts: times at which a masked sequence has just so many tokens decided.

    t_k with alpha(t_k) = k * tokens / L,   the last step taking what is left

Shapes   L is the number of tokens of an element. Paired with a solver that decides by count (`confidence`), every step
         decides exactly `tokens` of them.
Source   Chang et al. 2022, "MaskGIT" (arXiv 2202.04200), section 3.2, with a constant mask schedule
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.time import invert
from ebbtide.grid.fixed import FixedGrid, Steps


@part("grid", "counts", needs={"masked"})
class Counts(FixedGrid):
    """Times at which a masked sequence has just so many tokens decided."""

    tokens: Steps = 1

    def points(self, process: Any, state: State) -> Tensor:
        length = math.prod(state.x.shape[1:])
        shown = torch.arange(0, length + self.tokens, self.tokens, dtype=torch.float64).clamp(max=length)
        times = invert(process.alpha, shown / length)
        return torch.cat([torch.ones(1, dtype=torch.float64), times[1:-1], torch.zeros(1, dtype=torch.float64)])
