"""Thresholded decoding: at every step show all tokens that the network is sure enough of, and at least the surest one.

    show every hidden i of the block with p_i(v_i) >= threshold;  if there is none, the i of largest p_i(v_i)

v_i is the likeliest token, or at a positive `temperature` one drawn from softmax(logits / temperature); p_i is the softmax
of the logits as they are. `block` decides blocks of that many places from left to right. Each element ends by itself, as
soon as nothing in it is hidden, so a batch of unequal prompts costs each of them what it costs alone.

    1 - alpha(t_next) = (1 - alpha(t)) left / hidden     the time at which as many tokens are expected to be hidden

Shapes   x int64 (B, *event), logits (B, *event, V); Move.t like t, 0 with the last token
Paper    Wu et al. 2025, "Fast-dLLM" (arXiv 2505.22618), section 3.3
Off      the baseline is `confidence`, which shows as many as the time asks for.
Differs  a threshold above 1 is one token a call; probabilities are float64, as float32 ones reach 1 too early.
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
from ebbtide.core.time import invert, right
from ebbtide.core.tree import Memory
from ebbtide.process.masked import Masked

_SOONEST = 2.0**-60  # while something is hidden, time has not ended, however short what is left of it
EXEMPT = {
    "law": "what is shown together is decided without knowing of each other, by design",
    "calls": "elements end by themselves, each after its own number of calls (tests/solve/test_threshold.py counts)",
}


@part("solve", "threshold", paper="2505.22618", needs={"masked", "events"}, baseline="confidence", exempt=EXEMPT)
class Threshold(Solver):
    """Thresholded decoding: at every step show all tokens that the network is sure enough of, and at least the surest one."""

    threshold: Annotated[float, Field(gt=0)] = 0.9
    block: Annotated[int, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] = 0.0

    @property
    def stochastic(self) -> bool:
        return self.temperature > 0

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Masked) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        hidden, here = self.where(state, s, process)
        x, t = self.show(state, pred.logits.double(), hidden, here, s, ask, process)
        return Move(x, t=t), pred

    def where(self, state: State, s: Tensor, process: Masked) -> tuple[Tensor, Tensor]:
        """What is hidden and may be shown in this step, and of that what lies in the block in turn, boolean like x."""
        moving = right(s < state.t, state.x).to(state.x.device)
        hidden = (state.x == process.mask) & moving
        if self.block is None:
            return hidden, hidden
        flat = hidden.flatten(1)
        block = (torch.arange(flat.shape[1], device=flat.device) // self.block).expand_as(flat)
        first = block.masked_fill(~flat, flat.shape[1]).amin(1, keepdim=True)
        return hidden, (flat & (block == first)).reshape(hidden.shape)

    def show(
        self, state: State, logits: Tensor, hidden: Tensor, here: Tensor, s: Tensor, ask: Ask, process: Masked
    ) -> tuple[Tensor, Tensor]:
        """The tokens with those shown that pass, and the time after it."""
        drawn = ask.noise.categorical(logits / self.temperature) if self.temperature else logits.argmax(-1)
        sure = logits.softmax(-1).gather(-1, drawn[..., None])[..., 0].masked_fill(~here, -1.0).flatten(1)
        best = torch.zeros_like(here.flatten(1)).scatter(1, sure.argmax(1, keepdim=True), True)
        shown = here & ((sure >= self.threshold) | best).reshape(here.shape)
        now, left = hidden.flatten(1).sum(1).cpu(), (hidden & ~shown).flatten(1).sum(1).cpu()
        late = (1 - process.alpha(state.t)) * right(left.double() / now.clamp_min(1), state.t)
        tau = torch.minimum(invert(process.alpha, 1 - late).clamp_min(_SOONEST), state.t)
        tau = torch.where(s < state.t, torch.where(right(left == 0, state.t), s, tau), state.t)
        return torch.where(shown, drawn.to(state.x), state.x), tau
