"""Time travel: every few steps back into the noise, to walk the same stretch again in the light of what was found.

    after every `length` steps, at time t:   x_s ~ q(x_s | x_t),  s the time `length` steps before;   `again` times

What is put right at a time (a measurement, a mask) agrees with the rest only after steps that mix both; a stretch that is
walked twice mixes them twice. It costs a factor of 1 + again in calls, less the last stretch.

Shapes   x (B, ...) or a tree, any process and units. Memory, like the units: `place`, the step at which a unit travels, and
         `made`, how often it did.
Paper    Lugmayr et al. 2022, "RePaint: Inpainting using denoising diffusion probabilistic models" (arXiv 2201.09865),
         algorithm 1 and appendix B; in CoPaint (2304.03322), section 4.4
Off      again = 0 is the plan without it, bit for bit.
Differs  the sample itself is not noised again. Draws after a journey are new ones, by keys of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from ebbtide.core.errors import EbbError
from ebbtide.core.key import fold
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Correct, Process
from ebbtide.core.registry import part
from ebbtide.core.state import Pred, State
from ebbtide.core.tree import Memory


@part("correct", "time-travel", paper="2201.09865", off={"again": 0})
class TimeTravel(Correct):
    """Time travel: every few steps back into the noise, to walk the same stretch again in the light of what was found.

    length   steps of a stretch
    again    how often each is walked again
    """

    length: Annotated[int, Field(ge=1)] = 2
    again: Annotated[int, Field(ge=0)] = 1

    @property
    def stochastic(self) -> bool:
        return self.on

    def __call__(
        self, state: State, memory: Memory, pred: Pred | None, ask: Ask, process: Process
    ) -> tuple[State, Memory]:
        """Raises EbbError for a grid that does not know its times beforehand."""
        if not self.on or pred is None:
            return state, memory
        points = state.memory["grid"].get("points")
        if points is None:
            raise EbbError(
                f"correct {self.called!r} needs a grid whose times are known beforehand, such as 'linear' or 'karras', "
                f"not {ask.loop.grid.entry.name!r}."
            )
        zero = torch.zeros_like(state.i)
        place, made = memory.get("place", zero), memory.get("made", zero)
        ends = (state.i > 0) & (state.i % self.length == 0) & (state.t > 0)
        new = ends & (state.i > place)
        place, made = torch.where(new, state.i, place), torch.where(new, 0, made)
        go = ends & (state.i == place) & (made < self.again)
        made = made + go
        ask.note(self.called, int(go.sum()))
        if not bool(go.any()):
            return state, {"place": place, "made": made}
        i = torch.where(go, state.i - self.length, state.i)
        s = torch.where(go, ask.loop.grid.ahead(replace(state, i=i), state.memory["grid"], 0), state.t)
        x = process.move(state.x, None, state.t, s, 0.0, ask.noise, state.cond)
        key = torch.where(go, fold(state.key, made), state.key)
        return replace(state, x=x, t=s, i=i, key=key), {"place": place, "made": made}
