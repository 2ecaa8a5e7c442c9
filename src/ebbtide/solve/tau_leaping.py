"""Tau-leaping: freeze the rates of all jumps for the length of a step, and let all tokens jump at once.

    reverse   R^(x -> y) = R(y -> x) sum_v p(x0 = v | x_t) q_t(y | v) / q_t(x | v),   beta = -alpha' / alpha
      masked    mask -> y:  -alpha' / (1 - alpha) p_y                       R: any token -> mask at beta
      uniform   x -> y:     beta / V (alpha w_y + (1 - alpha) / V sum_v w_v),   w_v = p_v / q_t(x | v);   R: beta / V
    leap      a token's jumps are Poisson with mean h sum_y R^(x -> y), h = t - s; it lands on y in proportion to R^
    correct   R + R^ at s leaves q_s as it is: `corrector` leaps of length `size` h by that rate, one call each

Whoever would jump more than once stays where it is ("reject": tokens have no order, so jumps do not add up) or takes its
first jump alone ("first"). The step that reaches the data draws from p(x0 | x_t).

Shapes   x int64 (B, ...), logits (B, ..., V), rates (B, ..., states) float64; any units. 1 + corrector calls a step.
Paper    Campbell et al. 2022, "A continuous time framework for discrete denoising models" (arXiv 2205.14987),
         propositions 3 and 4, sections 4.3 and 4.4
Off      `euler`, which draws from the posterior of the process instead.
Differs  correctors run at every time but the last, where the paper chooses a window; rates are those of independent
         tokens with a shared schedule, so a jump is drawn from one distribution instead of a Poisson number for each y.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, Query, State
from ebbtide.core.time import where
from ebbtide.core.tree import Memory
from ebbtide.process.discrete import Discrete, spread

_MOST = 700.0  # jumps a step on average: more are as many, and exp(-700) is still a number


@part(
    "solve",
    "tau-leaping",
    paper="2205.14987",
    needs={"discrete"},
    refuses={"joint"},
    baseline="euler",
    exempt={
        "law": "rates stand still for a step: the law is exact as steps shrink (tests/solve/test_discrete_solvers.py)"
    },
)
class TauLeaping(Solver):
    """Tau-leaping: freeze the rates of all jumps for the length of a step, and let all tokens jump at once."""

    stochastic = True
    corrector: Annotated[int, Field(ge=0)] = 0
    size: Annotated[float, Field(gt=0)] = 1.0
    several: Literal["reject", "first"] = "reject"

    @property
    def calls(self) -> int:
        return 1 + self.corrector

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Discrete) -> tuple[Move, Pred]:
        t, h = state.t, state.t - s
        pred = ask(state.x, t)
        lands, leaps = (s <= 0) & (h > 0), (s > 0) & (h > 0)
        x = state.x
        if bool(lands.any()):
            x = where(lands, process.move(x, pred, t, s, 0.0, ask.noise, state.cond), x)
        if not bool(leaps.any()):
            return Move(x), pred
        noise = ask.noise.fold(1)
        rates = reverse_rates(process, state.x, pred.logits, t)
        x = where(leaps, noise.categorical(self.leap(state.x, rates, h).log()).to(x.dtype), x)

        rows = leaps.reshape(len(leaps), -1).any(1).nonzero()[:, 0]
        for k in range(self.corrector):
            query = Query(x, s, role="stage")
            (again,) = ask.many((query if len(rows) == len(x) else query.rows(rows),))
            here, at = x[rows.to(x.device)], s[rows]
            both = reverse_rates(process, here, again.logits, at) + forward_rates(process, here, at)
            law = self.leap(here, both, (self.size * h * leaps)[rows])
            drawn = ask.noise.take(rows).fold(2 + k).categorical(law.log()).to(x.dtype)
            x = x.index_copy(0, rows.to(x.device), where(leaps[rows], drawn, here))  # at s = 0 there are no rates
        return Move(x), pred

    def leap(self, x: Tensor, rates: Tensor, h: Tensor) -> Tensor:
        """Where tokens are after a leap of length h: x.shape + (states,), float64."""
        total = rates.sum(-1, keepdim=True)
        mean = (total * spread(h, rates)).clamp(max=_MOST)
        jump = mean * (-mean).exp() if self.several == "reject" else 1 - (-mean).exp()
        onto = rates / torch.where(total == 0, 1.0, total)
        return onto * jump + one_hot(x, rates.shape[-1]) * (1 - jump)


def reverse_rates(process: Discrete, x: Tensor, logits: Tensor, t: Tensor) -> Tensor:
    """R^(x -> y) at time t > 0 for all y, 0 for y = x: x.shape + (states,), float64."""
    return process.reversal(x, logits, t) * _elsewhere(x, process)


def forward_rates(process: Discrete, x: Tensor, t: Tensor) -> Tensor:
    """R(x -> y) at time t for all y, 0 for y = x: x.shape + (states,), float64."""
    onto = process.transition(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))[0]
    rates = _elsewhere(x, process) * onto.to(x.device)[x]  # all is lost from 0 to 1: row x is what a loss makes of it
    return rates * spread(process.loss(t), rates)


def _elsewhere(x: Tensor, process: Discrete) -> Tensor:
    return 1 - one_hot(x, process.states).double()
