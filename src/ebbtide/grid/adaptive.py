"""Adaptive times: each unit's step is as long as its own local error allows.

    accept when err <= tol;   h <- h min(5, max(0.2, 0.9 (tol / err)^(1/order)))

Steps are in t, from `first` to `last`; the step from there to the data is taken as it comes.

Shapes   err (units,) from the solver (relative to the unit's size). Memory: h and power, float64 (units,).
Paper    Hairer, Norsett, Wanner 1993, "Solving ordinary differential equations I", section II.4; for diffusion:
         Jolicoeur-Martineau et al. 2021 (arXiv 2105.14080)
Differs  one controller for each unit, where the papers share one over the batch; a rejected stochastic step would need its
         noise again as a bridge, so stochastic solvers are refused. Lu et al. 2022 (2206.00927) step in log-SNR: on mixtures
         that costs as many calls for as small an error (vp-linear), or more (flow).
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Grid
from ebbtide.core.registry import part
from ebbtide.core.state import Move, State
from ebbtide.core.tree import Memory
from ebbtide.grid.fixed import Time

_SMALLEST = 1e-7


@part("grid", "adaptive", paper="2105.14080", needs={"err", "continuous"}, refuses={"stochastic"})
class Adaptive(Grid):
    """Adaptive times: each unit's step is as long as its own local error allows.

    Raises EbbError for a solver of order 1, which has no lower one to compare with, and where no step is short enough.
    """

    tol: Annotated[float, Field(gt=0)] = 0.01
    first: Time = 1.0
    last: Time = 1e-3
    h: Time = 0.05

    def init(self, state: State, ask: Ask) -> Memory:
        order = ask.loop.solve.order
        if order is None or order <= 1:
            raise EbbError("adaptive steps compare a step with one of lower order; take a solver of order 2 or more.")
        one = torch.ones(state.t.shape, dtype=torch.float64)
        return {"h": one * self.h, "power": one / order}

    def ahead(self, state: State, memory: Memory, k: int) -> Tensor:
        h = memory["h"]
        if k == 0:
            return torch.where(state.i == 0, torch.full_like(state.t, self.first), state.t)
        t = state.t - k * h
        reached = torch.where(state.t <= self.last, torch.zeros_like(t), torch.full_like(t, self.last))
        return torch.where(t <= self.last, reached, t)

    def settle(self, state: State, memory: Memory, s: Tensor, move: Move) -> tuple[Tensor | None, Memory]:
        h, power, err = memory["h"], memory["power"], move.err
        assert err is not None
        final, waits = s == 0, s == state.t
        accept = (~(err > self.tol) | final) & ~waits  # a unit that is not a number goes on, to be found at the end
        ratio = self.tol / err.nan_to_num(self.tol).clamp_min(1e-12)
        factor = (0.9 * (power * ratio.log()).exp()).clamp(0.2, 5.0)  # pow would round by the length of the tensor
        taken = torch.where(final | waits, h, (state.t - s) * factor)
        stuck = ~accept & ~waits & (taken < _SMALLEST)
        if bool(stuck.any()):
            least, at = (state.t - s)[stuck].min(), state.t[stuck].max()
            raise EbbError(
                f"the tolerance {self.tol:g} cannot be met: the smallest step reached, {least:.2g} at t = {at:.3g}, errs by "
                f"{err[stuck].min():.2g}; take a larger one."
            )
        return (None if bool(accept.all()) else accept), {**memory, "h": taken.clamp(max=1.0)}

    def done(self, state: State, memory: Memory) -> Tensor:
        return state.t <= 0
