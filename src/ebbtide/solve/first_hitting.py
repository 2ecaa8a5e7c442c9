"""First hitting: jump to the moment at which the next hidden token shows itself, and show that token.

    1 - alpha(tau) = u^(1/n) (1 - alpha(t)),   u uniform in (0, 1),   n tokens hidden, each equally likely to be next

n tokens that are hidden at t show at independent moments, so the next moment is the largest of n uniform numbers, in
the clock 1 - alpha. The law is that of the process in continuous time, at one call a token: no grid, and no two tokens
decided without knowing of each other. `tokens` > 1 goes on to the moment of the last of so many, all drawn from one
prediction: fewer calls, and no longer exact.

Shapes   x int64 (B, *event), logits (B, *event, V). An element has one clock; units at times of their own each have
         their 1 - alpha multiplied by the same u^(1/n). Moments float64, Move.t like t; 0 with the last token.
Paper    Zheng et al. 2024, "Masked diffusion models are secretly time-agnostic masked models" (arXiv 2409.02908),
         section 4, propositions 4.1 and 4.2
Off      `euler`, the same process on a grid of times.
Differs  without the high-order variants, which extrapolate earlier predictions. Draws are float64 and by inversion, so
         that none of the temperature is lost of which section 5 warns.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.key import Noise
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.time import invert, right
from ebbtide.core.tree import Memory
from ebbtide.process.masked import Masked

_SOONEST = 2.0**-60  # while something is hidden, time has not ended, however short what is left of it


@part("solve", "first-hitting", paper="2409.02908", needs={"masked", "events"}, baseline="euler")
class FirstHitting(Solver):
    """First hitting: jump to the moment at which the next hidden token shows itself, and show that token."""

    stochastic = True
    tokens: Annotated[int, Field(gt=0)] = 1

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Masked) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        x, n = state.x.flatten(1), len(state.x)
        moving = right(s < state.t, state.x).to(x.device).expand(state.x.shape).flatten(1)
        hidden = (x == process.mask) & moving
        left = hidden.sum(1).cpu()
        noise = _of_elements(ask.noise)

        # the moment: u^(1/n) for each of the next tokens, as long as there are any
        each = (left[:, None] - torch.arange(self.tokens)).clamp_min(0)
        log = noise.uniform(each.shape, 0).log() / each.clamp_min(1)
        share = torch.where(each > 0, log, 0.0).sum(1).exp()
        late = 1 - right(share, state.t) * (1 - process.alpha(state.t))
        tau = torch.minimum(invert(process.alpha, late).clamp_min(_SOONEST), state.t)
        ends = right(left <= self.tokens, state.t)
        tau = torch.where(s < state.t, torch.where(ends, s, tau), state.t)

        # which: the first in an order drawn by lot; their values, from the law of x_0 given x_t
        lot = noise.uniform(x.shape, 1).to(x.device).masked_fill(~hidden, torch.inf)
        place = lot.argsort(dim=1, stable=True)[:, : self.tokens]
        logits = pred.logits.flatten(1, -2)
        chosen = logits.gather(1, place[..., None].expand(*place.shape, logits.shape[-1]))
        now = torch.ones(n, dtype=torch.float64)
        law = process.posterior(torch.full_like(place, process.mask), chosen, now, torch.zeros_like(now))
        value = noise.categorical(law.log(), 2).to(x.dtype)
        shown = x.scatter(1, place, torch.where(hidden.gather(1, place), value, x.gather(1, place)))
        return Move(shown.reshape(state.x.shape), t=tau), pred


def _of_elements(noise: Noise) -> Noise:
    """One stream an element: the first unit's key, and the steps of all units, for that unit alone may wait."""
    n = len(noise.key)
    return Noise(noise.key.reshape(n, -1)[:, 0], noise.i.reshape(n, -1).sum(1), noise.salt)
