"""CreditDecoding: a token that a place has named again and again is believed sooner than its probability alone allows.

    C_i(v) <- beta C_i(v);   C_i(v*) += p_i(v*)^gamma,  v* the likeliest token now
    z_i(v) <- z_i(v) + alpha log(1 + C_i(v)),           then as `threshold`

Credits are bounded by 1 / (1 - beta), so one that was given too early fades once the place changes its mind. They are kept
of hidden places in the block in turn only: a place that shows, and a block that has not begun, has none.

Shapes   x int64 (B, *event), logits (B, *event, V); memory: the few tokens of each place that hold credit, (B, *event, K),
         plus 1, and their credits, float64
Paper    Wang et al. 2025, "CreditDecoding: accelerating parallel decoding in diffusion large language models with trace
         credits" (arXiv 2510.06133), section 4
Off      alpha = 0 is `threshold`, bit for bit.
Differs  of each place the eight tokens of most credit are kept: at the default beta the ninth has at most 0.06 of what it had.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.tree import Memory
from ebbtide.process.masked import Masked
from ebbtide.solve.threshold import EXEMPT, Threshold

_KEPT = 8


@part(
    "solve",
    "credit-decoding",
    paper="2510.06133",
    needs={"masked", "events"},
    off={"alpha": 0.0},
    baseline="threshold",
    exempt=EXEMPT,
)
class CreditDecoding(Threshold):
    """CreditDecoding: a token that a place has named again and again is believed sooner than its probability alone allows.

    alpha  how much credits count
    beta   what is left of a credit after a step
    gamma  below 1 it gives credit to modest probabilities too
    """

    alpha: Annotated[float, Field(ge=0)] = 0.65
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.7
    gamma: Annotated[float, Field(ge=0)] = 0.65

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Masked) -> tuple[Move, Pred]:
        if self.alpha == 0:
            return super().step(state, memory, s, ask, process)
        pred = ask(state.x, state.t)
        hidden, here = self.where(state, s, process)
        logits = pred.logits.double()
        tokens, credits = self.earned(logits, memory)
        tokens, credits = (torch.where(here[..., None], v, 0) for v in (tokens, credits))
        more = self.alpha * credits.log1p()
        fused = logits.scatter_add(-1, (tokens - 1).clamp_min(0), more)
        x, t = self.show(state, fused, hidden, here, s, ask, process)
        still = (x == process.mask)[..., None]
        return Move(x, {"tokens": torch.where(still, tokens, 0), "credits": torch.where(still, credits, 0.0)}, t), pred

    def earned(self, logits: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Tokens plus 1 (0: no place taken) and their credits after a step in which these were the logits, (..., K)."""
        sure, best = logits.log_softmax(-1).max(-1, keepdim=True)
        if memory:
            tokens, credits = memory["tokens"], memory["credits"] * self.beta
        else:
            tokens = best.new_zeros((*best.shape[:-1], _KEPT))
            credits = torch.zeros_like(tokens, dtype=torch.float64)
        known = tokens == best + 1
        slot = torch.where(known.any(-1, keepdim=True), known.long().argmax(-1, keepdim=True), credits.argmin(-1, True))
        held = torch.where(known.any(-1, keepdim=True), credits.gather(-1, slot), 0.0)
        gained = held + (self.gamma * sure).exp()
        return tokens.scatter(-1, slot, best + 1), credits.scatter(-1, slot, gained)
