"""Staggered times: later units wait, so that each is denoised after the one before it.

    unit f starts to move after f * delay steps of the run and then walks t_k = first (1 - k / n)

Frames of a video each at their own noise level; with delay = 0 all walk together.

Shapes   the wait runs along the last unit axis, (B, F). Memory: points (B, 1, n + 1) and wait (B, F), steps left to wait.
Paper    Ruhe et al. 2024, "Rolling diffusion models" (arXiv 2402.09470), section 3; Chen et al. 2024 (2407.01392)
Off      delay = 0 is `linear`, bit for bit.
Differs  the window does not roll on by itself: see State.units.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.registry import part
from ebbtide.core.state import Move, State
from ebbtide.core.tree import Memory
from ebbtide.grid.fixed import Linear


@part("grid", "staggered", paper="2402.09470", off={"delay": 0}, baseline="linear")
class Staggered(Linear):
    """Staggered times: later units wait, so that each is denoised after the one before it."""

    delay: Annotated[int, Field(ge=0)] = 1

    def init(self, state: State, ask: Ask) -> Memory:
        places = torch.arange(state.t.shape[-1]) if state.t.ndim > 1 else torch.zeros(1, dtype=torch.int64)
        return {**super().init(state, ask), "wait": (places * self.delay).expand(state.t.shape).clone()}

    def ahead(self, state: State, memory: Memory, k: int) -> Tensor:
        wait = memory["wait"]
        walked = self.at(memory, state.i + (k - wait).clamp_min(0))
        return walked if k == 0 else torch.where(wait >= k, state.t, walked)

    def settle(self, state: State, memory: Memory, s: Tensor, move: Move) -> tuple[Tensor | None, Memory]:
        accept, _ = super().settle(state, memory, s, move)
        wait = memory["wait"]
        return accept, {**memory, "wait": (wait - 1).clamp_min(0)}
