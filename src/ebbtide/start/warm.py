"""Warm start: the previous result, shifted by what has passed since, stands in for a state at a low time.

    g = (p_s, ... p_{H-1}, p_{H-1}, ...)   along `axis`: `shift` entries fall off, the last is repeated
    x = g   or, with `noise`, corrupt(g, t)    at the grid's first time t

Without noise x lacks the noise of time t and keeps all of its signal: what follows is a fixed-point iteration on the data,
which tracks where the denoiser contracts (low t); with noise it is `encoded`, a draw that forgets more the higher t.

Shapes   cond["previous"] like x (B, ...), data; it is taken out of the condition. `axis` counts as x does, so 1 is the
         first of an element. No call.
Paper    Duan et al. 2025, "Real-time iteration scheme for diffusion policy" (arXiv 2508.05396), section on the iteration
Off      the baseline is `prior`: the first of a row of runs has nothing to go on from.
Differs  where the run starts is the grid's first time, and not a list of the scheduler's indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Start
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.tree import Tree, tree_map
from ebbtide.start.held import held


@part("start", "warm", paper="2508.05396", baseline="prior")
class Warm(Start):
    """Warm start: the previous result, shifted by what has passed since, stands in for a state at a low time.

    shift   how many entries have passed
    axis    along which, counted as in x: 0 is the batch
    noise   whether it is noised to the time it starts at
    """

    shift: Annotated[int, Field(ge=0)] = 0
    axis: Annotated[int, Field(ge=1)] = 1
    noise: bool = False

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        """Raises EbbError without cond["previous"] and where x has no such axis."""
        previous, state = held(
            "previous", like, ask, "the previous result (the first run of a row starts from 'prior')"
        )
        x, t = tree_map(self._shifted, previous), ask.ahead(0)
        if self.noise:
            x = ask.process.corrupt(x, t, ask.noise, cond)
        return replace(state, x=x, t=t)

    def _shifted(self, x: Tensor) -> Tensor:
        if self.axis >= x.ndim:
            raise EbbError(f"start 'warm' shifts along axis {self.axis}, but x has axes 0 to {x.ndim - 1} only.")
        n = x.shape[self.axis]
        return x.index_select(self.axis, (torch.arange(n, device=x.device) + self.shift).clamp(max=n - 1))
