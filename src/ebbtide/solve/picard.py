"""Picard iteration: guess the coming points of the path, ask for all of them at once, and keep those that hold.

    sweep    X_j+1 <- DDIM(X_j, t_j -> t_j+1) along x0(guess of X_j),   j = 0..K-1, all predictions in one batch
    keep     as many points as have predictions asked within tol of them: |X_j - guess| <= tol max(1, |X_j|)
    slide    the window begins at the last point kept; points that are new to it follow the last prediction

In z = (x - b y) / c the path is the integral of x0 against a / c, so the sweep is a sum of increments x0 d(a / c): the
fixed point of the iteration is the path of `euler`. The first point always holds, so a run takes no more sweeps than
`euler` takes steps, and at tol = 0 it ends in the same bits.

Shapes   x (B, ...), any units, which keep step within their element; memory: points 1..K-1 like x, known like t. At most K
         calls an element a sweep, in one batch.
Paper    Shih et al. 2023, "Parallel sampling of diffusion models" (arXiv 2305.16317), algorithm 1
Off      window = 1 is `euler`, bit for bit.
Differs  each element slides as far as it may, where the paper waits for the slowest; new points continue along the last
         prediction instead of standing still; errors are relative to x, not to the noise of a stochastic sampler.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.time import right, unit_mean
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine
from ebbtide.solve.window import ahead, ask_along, at, later, per_unit, whole


@part(
    "solve",
    "picard",
    paper="2305.16317",
    needs={"affine"},
    off={"window": 1},
    baseline="euler",
    exempt={"calls": "a sweep asks for as many points as are open (tests/solve/test_parallel_in_time.py counts)"},
)
class Picard(Solver):
    """Picard iteration: guess the coming points of the path, ask for all of them at once, and keep those that hold.

    window   points asked for at once
    tol      how far a guess may be from its point, in units of x where that is above 1
    """

    window: Annotated[int, Field(ge=1)] = 8
    tol: Annotated[float, Field(ge=0)] = 1e-4

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        k, t = self.window, state.t
        if k == 1:
            pred = ask(state.x, t)
            return Move(process.move(state.x, pred, t, s, 0.0, ask.noise, state.cond)), pred
        view = ahead(ask, s, 2 * k)
        known = whole(memory["known"]) if memory else torch.zeros(len(t), dtype=torch.bool)
        guess = [state.x, *(memory["points"][str(j)] for j in range(1, k))] if memory else [state.x] * k
        asked = [known & view.goes[j] for j in range(1, k)]
        pred, means = ask_along(ask, guess, view, asked)

        points, hops, holds = [state.x], torch.ones(len(t), dtype=torch.int64), known
        for j in range(2 * k - 1):
            here, there = view.times[j : j + 2]
            if torch.equal(here, there):
                points.append(points[-1])
                continue
            w = process.weights(here, there)
            mean = means[min(j, k - 1)]
            points.append(process.apply(w, points[-1], [(w.x0, mean)], state.cond, later(ask.noise, j)))
        for j in range(1, k):
            holds = holds & asked[j - 1] & self._near(points[j], guess[j], t)
            hops = hops + holds

        # worth keeping where the next sweep has a second point to ask for
        useful = at(view.goes[1:], hops)
        kept: Memory = {}
        if bool(useful.any()):
            coming = {str(j): at(points, hops + j) for j in range(1, k)}
            kept = {
                "points": {name: torch.where(right(useful, p).to(p.device), p, 0) for name, p in coming.items()},
                "known": per_unit(useful.double(), t),
            }
        return Move(at(points, hops), kept, at(view.times, hops), per_unit(hops, t)), pred

    def _near(self, x: Tensor, guess: Tensor, t: Tensor) -> Tensor:
        """(B,) whether the guess of every unit is close enough."""
        size = unit_mean(x.square(), t).sqrt().clamp_min(1.0)
        near = unit_mean((x - guess).square(), t).sqrt() <= self.tol * size
        return near.cpu().reshape(len(t), -1).all(1)
