"""PNDM: Adams-Bashforth for even steps on the noise, DDIM for the transfer, started by a pseudo Runge-Kutta rule.

    warm-up   x1 = DDIM(x_t, e1; mid),  x2 = DDIM(x_t, e2; mid),  x3 = DDIM(x_t, e3; s)
              e' = (e1 + 2 e2 + 2 e3 + e4) / 6                                  the first terms - 1 steps, four calls each
    after it  e' = (55 e_t - 59 e_1 + 37 e_2 - 9 e_3) / 24                      one call

Shapes   x (B, ...), any units; memory: terms - 1 slopes
Paper    Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds" (arXiv 2202.09778), algorithm 2
Off      terms = 1 is `euler`, bit for bit; `warmup` "adams" is `ipndm`.
Differs  the weights are those of even steps, so the grid should be even in time; of order 2, as the paper shows. From a time
         with a_t = 0 the warm-up is DDIM, and where it lands on the data too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.time import where
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine
from ebbtide.solve.coordinates import Space
from ebbtide.solve.ipndm import Even
from ebbtide.solve.multistep import past_of
from ebbtide.solve.stages import Row, Staged


@dataclass(frozen=True)
class PseudoRungeKutta(Staged):
    """The classical rule on the noise, with DDIM for the transfer and the middle of the step in time."""

    steps: int
    space: Space = "noise"
    calls = 4

    def place(self, state: State, ask: Ask) -> tuple[Tensor, ...]:
        """Whether each unit is still warming up."""
        return ((state.i < self.steps).to(torch.float64),)

    def rows(self, process: Affine, t: Tensor, s: Tensor, *place: Tensor) -> list[Row]:
        (on,) = place
        middle = (t + s) / 2
        return [
            Row(middle, ()),
            Row(middle, (on,)),
            Row(s, (0 * on, on)),
            Row(s, (on / 3, on / 3, on / 6)),
        ]


@part("solve", "pndm", paper="2202.09778", needs={"affine"}, off={"terms": 1}, baseline="euler")
class PNDM(Even):
    """PNDM: Adams-Bashforth for even steps on the noise, DDIM for the transfer, started by a pseudo Runge-Kutta rule."""

    terms: Literal[1, 2, 3, 4] = 4
    warmup: Literal["rk", "adams"] = "rk"

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        early = state.i < self.terms - 1
        if self.warmup == "adams" or not bool(early.any()):
            return super().step(state, memory, s, ask, process)
        pred = ask(state.x, state.t)
        warm = PseudoRungeKutta(self.terms - 1).advance(state, pred, s, ask, process)
        if bool(early.all()):
            return warm._replace(memory=self.keep(state, pred, past_of(memory), process)), pred
        move = self.advance(state, memory, pred, s, ask, process)
        return move._replace(x=where(early, warm.x, move.x)), pred
