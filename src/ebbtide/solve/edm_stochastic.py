"""EDM's stochastic sampler: raise the noise a little with fresh noise, then take a Heun step from there.

    gamma = min(churn / N, sqrt(2) - 1) where s_min <= sigma_t <= s_max, else 0;   sigma = c / a
    sigma_t^ = (1 + gamma) sigma_t,   x^ = forward transition of x_t to t^, its noise times s_noise
    x_s = Heun(x^, t^ -> s)

N is the number of steps that a unit makes in the whole run. The raise leaves the law as it is, and what the network got
wrong before it is drowned with it; s_noise a little above 1 makes up for networks that take away too much noise.

Shapes   x (B, ...), any units; memory: steps, float64 shaped like t, N. Two calls a step, one where it lands on the data.
Paper    Karras et al. 2022, "Elucidating the design space" (arXiv 2206.00364), algorithm 2
Off      churn = 0 is `heun`, bit for bit.
Differs  works in any affine process: x^ is divided by its signal weight as sigma is. Noise is not raised above that of
         t = 1. With s_noise other than 1 steps do not converge to the law of the data: no order is declared.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.time import Weight, combine, nil, spread
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine
from ebbtide.solve.heun import Heun

_LONGEST = 100_000


class Raise(NamedTuple):
    """x^ = x * x_t + y * y + noise * z at time t."""

    t: Weight
    x: Weight
    y: Weight
    noise: Weight


@part("solve", "edm-stochastic", paper="2206.00364", needs={"affine"}, off={"churn": 0.0}, baseline="heun")
class EDMStochastic(Heun):
    """EDM's stochastic sampler: raise the noise a little with fresh noise, then take a Heun step from there.

    churn          the paper's S_churn: by how much the noise is raised, in the whole run
    s_min, s_max   the noise levels between which it is (None: without end)
    s_noise        the standard deviation of the noise added, in units of what the process would add
    """

    churn: Annotated[float, Field(ge=0)] = 5.0
    s_min: Annotated[float, Field(ge=0)] = 0.0
    s_max: Annotated[float, Field(gt=0)] | None = None
    s_noise: Annotated[float, Field(ge=0)] = 1.0

    @property
    def stochastic(self) -> bool:
        return self.churn > 0

    @property
    def order(self) -> float | None:  # type: ignore[override]
        if self.churn and self.s_noise != 1:
            return None
        return 2 if self.correct else 1

    def init(self, state: State, ask: Ask) -> Memory:
        return {"steps": _steps(state, ask)} if self.churn else {}

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        if not self.churn:
            return super().step(state, memory, s, ask, process)
        steps = memory["steps"] if memory else torch.zeros_like(state.t)
        key = ("churn", self.churn, self.s_min, self.s_max)
        up: Raise = process.once(key, lambda t, s, n: self._raise(process, t, s, n), state.t, s, steps)
        terms = [(up.x, state.x)]
        if process.ended and not nil(up.y):
            terms.append((up.y, process.end(state.cond)))
        if not nil(up.noise):
            terms.append((up.noise * self.s_noise, process.draw(state.x, ask.noise.fold(1))))
        x, t = combine(*terms), spread(up.t, state.t)

        # `of` says that this is no longer the state's own point, whose prediction may be at hand
        pred = ask(x, t, of=torch.arange(len(state)))
        return self.advance(replace(state, x=x, t=t), pred, s, ask, process)._replace(memory=memory), pred

    def _raise(self, process: Affine, t: Tensor, s: Tensor, steps: Tensor) -> Raise:
        """Where units are raised to and with what weights, in tensor form."""
        lam = process.lam(t)
        gamma = torch.where(steps > 0, self.churn / steps.clamp_min(1), 0.0).clamp(max=math.sqrt(2) - 1)
        sigma = (-lam).exp()
        inside = (sigma >= self.s_min) & (sigma <= (math.inf if self.s_max is None else self.s_max)) & (s < t)
        gamma = torch.where(inside, gamma, 0.0)
        high = torch.maximum(process.time(lam - torch.log1p(gamma)), t)
        high = torch.where(gamma > 0, high, t)
        w = process.weights_of(t, high, 1.0)
        return Raise(high, w.x, w.y, w.noise)


def _steps(state: State, ask: Ask) -> Tensor:
    """The steps that each unit makes in the whole run, those behind it included, float64 shaped like t."""
    grid, memory = ask.loop.grid, state.memory.get("grid", {})
    count, here, last = state.i.double(), state.t, grid.ahead(state, memory, _LONGEST)
    for k in range(1, _LONGEST):
        if torch.equal(here, last):
            break
        there = grid.ahead(state, memory, k)
        count, here = count + (there != here), there
    return count
