"""Jumps: ask the model for the way to the time that the step lands on, and go there at once.

    u with c_u / a_u = sqrt(1 - gamma^2) c_s / a_s           u <= s: where the jump lands
    x_u = a_u g + (c_u / c_t) (x_t - a_t g),   g = G(x_t, t -> u)
    x_s = (a_s / a_u) x_u + sqrt(c_s^2 - (a_s c_u / a_u)^2) z

g is what the model answers, data whose step of `euler` ends where the way of x_t does at u: in variance-exploding time
x_u = (u / t) x_t + (1 - u / t) g. One call covers any distance, so a run of n steps makes n calls and has no error of
discretisation, only the model's. gamma = 0 follows the way, gamma = 1 goes to the data each time and back up with fresh noise
(consistency sampling).

A model that does not jump answers E[x0 | x_t], and the step is that of DDIM to u.

Shapes   x (B, ...), any units. One call a step.
Paper    Kim, Lai et al. 2023, "Consistency trajectory models" (arXiv 2310.02279), algorithm 3 (gamma sampling) and eq. 9
Off      the baseline is `euler`, which asks for the mean and does not say where it goes. It is the same at gamma = 0 where the
         model does not jump.
Differs  any Gaussian process, by equal c / a.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine
from ebbtide.solve.euler import Eta


@part("solve", "jump", paper="2310.02279", needs={"gaussian"}, baseline="euler")
class Jump(Solver):
    """Jumps: ask the model for the way to the time that the step lands on, and go there at once.

    gamma   the share of the noise, in standard deviations, that is drawn afresh at every step
    """

    gamma: Eta = 0.0

    @property
    def stochastic(self) -> bool:
        return self.gamma > 0

    @property
    def order(self) -> float | None:
        # with fresh noise a step never gets short; a mean, unlike a jump, does not lead through it
        return None if self.gamma > 0 else 1

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        u = s if self.gamma == 0.0 else landing(process, s, state.t, self.gamma)
        pred = ask(state.x, state.t, until=u)
        x: Any = process.move(state.x, pred, state.t, u, 0.0, ask.noise, state.cond)
        return Move(x if u is s else process.move(x, None, u, s, 1.0, ask.noise, state.cond)), pred


def landing(process: Affine, s: Tensor, t: Tensor, gamma: float) -> Tensor:
    """The time u at which the noise level is sqrt(1 - gamma^2) times that of s, shaped like s; t where s is t."""
    if gamma == 1.0:
        low = torch.zeros_like(s)
    else:
        (low,) = (v if isinstance(v, Tensor) else torch.full_like(s, v) for v in _lower(process, s, gamma))
    return torch.where(s == t, t, torch.where(s == 0, s, torch.minimum(low, s)))


def _lower(process: Affine, s: Tensor, gamma: float) -> Any:
    down = 0.5 * math.log1p(-(gamma**2))
    return process.once(("landing", gamma), lambda s: (process.time(process.lam(s) - down),), s)
