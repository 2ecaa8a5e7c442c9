"""Residual: what the last step of a run leaves out of its source is added where the run reaches the data.

    x_n <- x_n + share r,   r = source - x_n of the source's own run

The last step of a stochastic sampler draws nothing, so no noise can make it land on a given picture; r is the rest. With it,
a source that was read by `edit-friendly` comes back to the last bits.

Shapes   cond["residual"], r like x (B, ...), put there by a start that gives "residual". No call.
Paper    Huberman-Spiegelglas et al. 2024, "An edit friendly DDPM noise space" (arXiv 2304.06140), section 3
Off      share = 0 changes nothing, bit for bit.
Differs  the authors drop it; what it adds to an edit is detail of the source below the last noise level.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Correct, Process
from ebbtide.core.registry import part
from ebbtide.core.state import Pred, State
from ebbtide.core.time import combine, where
from ebbtide.core.tree import Memory


@part("correct", "residual", paper="2304.06140", needs={"residual"}, off={"share": 0.0})
class Residual(Correct):
    """Residual: what the last step of a run leaves out of its source is added where the run reaches the data.

    share   of it that is added
    """

    reads = frozenset({"residual"})
    share: Annotated[float, Field(ge=0, le=1)] = 1.0

    def __call__(
        self, state: State, memory: Memory, pred: Pred | None, ask: Ask, process: Process
    ) -> tuple[State, Memory]:
        rest = state.cond.get("residual")
        if self.share == 0 or pred is None or not isinstance(rest, Tensor) or rest.shape != state.x.shape:
            return state, memory
        here = memory.get("done", torch.zeros_like(state.i))
        landed = (state.t == 0) & (here == 0)
        if not bool(landed.any()):
            return state, memory
        ask.note("residual", int(landed.sum()))
        x = where(landed, combine((1.0, state.x), (self.share, rest)), state.x)
        return replace(state, x=x), {"done": torch.where(landed, 1, here)}
