"""Heun: an Euler step, then the slope at its end averaged with the slope at its start.

    e   = Euler(x_t)                                  the plain step, with x0_t
    x_s = e + (k / 2) (x0(e, s) - x0_t)

`space="noise"` averages the slopes of x / a against sigma = c / a: k = a_s (sigma_t / sigma_s - 1), the sampler of EDM.
`space="data"` averages the data predictions of the exponential integrator: k = a_s (1 - sigma_s / sigma_t), which stays
finite where a_t = 0; both are of order 2. The difference |x_s - e| estimates the local error, where the grid asks for it.

Shapes   x (B, ...), any units. Two calls a step, one where the step lands on the data (c_s = 0).
Paper    Karras et al. 2022, "Elucidating the design space" (arXiv 2206.00364), algorithm 1
Off      correct = False is `euler`, bit for bit.
Differs  from times where a_t vanishes the data form is used, as the noise form is singular there.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.time import combine, exp, nil, pick
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine
from ebbtide.solve.coordinates import SINGULAR
from ebbtide.solve.stages import asked, relative


@part("solve", "heun", paper="2206.00364", needs={"affine"}, gives={"err"}, off={"correct": False}, baseline="euler")
class Heun(Solver):
    """Heun: an Euler step, then the slope at its end averaged with the slope at its start."""

    space: Literal["noise", "data"] = "noise"
    correct: bool = True

    @property
    def order(self) -> int:
        return 2 if self.correct else 1

    @property
    def calls(self) -> int:
        return 2 if self.correct else 1

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        return self.advance(state, pred, s, ask, process), pred

    def advance(self, state: State, pred: Pred, s: Tensor, ask: Ask, process: Affine) -> Move:
        """The step, its first prediction given."""
        w = process.weights(state.t, s)
        euler = process.apply(w, state.x, [(w.x0, pred.mean)], state.cond, ask.noise)
        noise = (self.space == "noise") & (w.lam_t > SINGULAR)
        k = pick(w.x == 0, 0.0, w.x0 / 2 * pick(noise, exp(w.lam_s - w.lam_t), 1.0))
        x = euler
        if self.correct and not nil(k):
            end = ask(euler, s, role="stage")
            x = combine((1.0, euler), (k, end.mean), (-k, pred.mean))
        return Move(x, err=relative(x - euler, x, state.t) if asked(ask) else None)
