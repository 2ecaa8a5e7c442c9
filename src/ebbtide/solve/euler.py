"""Euler and DDIM: keep the noise that the prediction implies, re-weigh it for the next time.

    x_s = process.move(x_t, E[x0 | x_t], t, s, eta)

For Gaussian processes this is DDIM with its eta, for rectified flow the Euler step of dx/dt = u, for masked and uniform
processes ancestral sampling, for joint ones each field's own.

Shapes   x (B, ...), any units. One call a step.
Paper    Song, Meng, Ermon 2021, "Denoising diffusion implicit models" (arXiv 2010.02502), eq. 12
Off      it is the baseline of all other solvers; eta = 0 draws no noise (unless the process itself does).
Differs  nothing.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Process, Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.tree import Memory

Eta = Annotated[float, Field(ge=0, le=1)]


@part("solve", "euler", paper="2010.02502", off={}, baseline="euler")
class Euler(Solver):
    """Euler and DDIM: keep the noise that the prediction implies, re-weigh it for the next time."""

    eta: Eta = 0.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Process) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        return Move(process.move(state.x, pred, state.t, s, self.eta, ask.noise, state.cond)), pred
