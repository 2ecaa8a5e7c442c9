"""Time shift: tell the network the time whose noise fits the sample that it is shown.

    t_s = argmin_{|s - t| <= window / clock} (v - c(s)^2 - spread a(s)^2)^2        v the variance of x over the unit's numbers

A sample that drifted holds more or less noise than its time says; the network was trained on the time that fits. The unit
goes on from t_s, with its weights too, and the grid from the same place. Below `cutoff` the variance is mostly the data's, and
t stays.

Shapes   x (B, ...) or a tree, any units; t moves unit by unit, but for those of one number, which has no spread. No call.
Paper    Li et al. 2024, "Alleviating exposure bias in diffusion models through sampling with shifted time steps"
         (arXiv 2305.15583), algorithm 1
Off      window = 0 is the plain run, bit for bit.
Differs  a shift never passes the next time of the grid. `spread`, the variance of the data (0 in the paper), sets the rule
         right where the data is not negligible. A shift up voids a multistep history, as every rise in time does.
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
from ebbtide.core.time import unit_mean
from ebbtide.core.tree import Memory, Tree, leaves, tree_map
from ebbtide.process.affine import Affine


@part("correct", "time-shift", paper="2305.15583", needs={"gaussian"}, off={"window": 0})
class TimeShift(Correct):
    """Time shift: tell the network the time whose noise fits the sample that it is shown."""

    window: Annotated[int, Field(ge=0)] = 5
    cutoff: Annotated[float, Field(ge=0, le=1)] = 0.55
    clock: Annotated[int, Field(gt=0)] = 1000
    spread: Annotated[float, Field(ge=0)] = 0.0

    def __call__(
        self, state: State, memory: Memory, pred: Pred | None, ask: Ask, process: Process
    ) -> tuple[State, Memory]:
        if self.window == 0 or sum(v.numel() for v in leaves(state.x).values()) == state.t.numel():
            return state, memory
        assert isinstance(process, Affine)
        t = state.t
        v = _mean(tree_map(torch.square, state.x), t) - _mean(state.x, t) ** 2
        best, least = t, torch.full_like(t, torch.inf)
        following = ask.ahead(1)
        for k in sorted(range(-self.window, self.window + 1), key=abs):  # the nearest of equals
            s = t + k / self.clock
            allowed = (s > following) & (s <= 1)
            s = torch.where(allowed, s, t)
            miss = (v - process.c(s) ** 2 - self.spread * process.a(s) ** 2) ** 2
            closer = allowed & (miss < least)
            best, least = torch.where(closer, s, best), torch.where(closer, miss, least)
        shifted = torch.where((t > self.cutoff) & (state.i > 0) & (following < t), best, t)
        ask.note("time-shift", int((shifted != t).sum()))
        return replace(state, t=shifted), memory


def _mean(x: Tree, t: Tensor) -> Tensor:
    """The mean over all numbers of a unit, those of a tree's leaves together."""
    parts = leaves(x).values()
    total = torch.stack([unit_mean(v, t).cpu() * v.numel() for v in parts]).sum(0)
    return total / sum(v.numel() for v in parts)
