"""Event times: the solver says when, and the run ends as its own clock reaches the data.

    t_0 = first;   then whatever time the solver's move returns, until it is 0

The data is asked for at every step. A solver that simulates the moments at which something happens (`first-hitting`)
stops earlier, at the next of them; every other solver takes the whole way in one step.

Shapes   t (units,). No memory: elements walk at their own pace and take as many steps as they need.
Paper    Zheng et al. 2024, "Masked diffusion models are secretly time-agnostic masked models" (arXiv 2409.02908),
         section 4
Differs  nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebbtide.core.parts import Grid
from ebbtide.core.registry import part
from ebbtide.core.state import Move, State
from ebbtide.core.tree import Memory
from ebbtide.grid.fixed import Time


@part("grid", "events", paper="2409.02908", needs={"masked"}, gives={"events"})
class Events(Grid):
    """Event times: the solver says when, and the run ends as its own clock reaches the data."""

    first: Time = 1.0

    def ahead(self, state: State, memory: Memory, k: int) -> Tensor:
        if k == 0:
            return torch.where(state.i == 0, torch.full_like(state.t, self.first), state.t)
        return torch.zeros_like(state.t)

    def settle(self, state: State, memory: Memory, s: Tensor, move: Move) -> tuple[Tensor | None, Memory]:
        moved = s != state.t
        return (None if bool(moved.all()) else moved), memory

    def done(self, state: State, memory: Memory) -> Tensor:
        return state.t <= 0
