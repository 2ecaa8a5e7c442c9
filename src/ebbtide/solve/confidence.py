"""Confidence decoding: show the tokens that the network is surest of, as many as the time asks for.

    shown(s) = round(alpha(s) / alpha(0) * hidden at the start);   the surest hidden tokens first, each at its likeliest value

`rule` says what sure means: "confidence" the largest probability, "margin" the gap between the two largest, "entropy" the
least of it, "left" the leftmost place, "random" a place drawn by lot. `block` decides blocks of that many places from left
to right. A positive `temperature` draws the value instead of taking the likeliest.

Shapes   x int64 (B, L), logits (B, L, V); memory: hidden, float64 shaped like t, how many were hidden at first (plus 1).
Paper    Chang et al. 2022, "MaskGIT" (arXiv 2202.04200), section 3.2; margin: Kim et al. 2025 (2502.06768), section 4;
         blocks: Nie et al. 2025, "LLaDA" (2502.09992), section 2.4
Differs  counts are of the tokens hidden at the start, not of the length, so prompts and padding do not count.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.key import Noise
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.tree import Memory
from ebbtide.process.masked import Masked


@part(
    "solve",
    "confidence",
    paper="2202.04200",
    needs={"masked"},
    exempt={
        "law": "greedy decoding by rank does not sample the posterior, by design",
        "off": "an order of decoding is chosen, not switched off",
    },
)
class Confidence(Solver):
    """Confidence decoding: show the tokens that the network is surest of, as many as the time asks for."""

    rule: Literal["confidence", "margin", "entropy", "left", "random"] = "confidence"
    block: Annotated[int, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] = 0.0

    @property
    def stochastic(self) -> bool:
        return self.temperature > 0 or self.rule == "random"

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Masked) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        x = state.x
        hidden = (x == process.mask).flatten(1)
        start = memory["hidden"] - 1 if memory else None
        now = hidden.sum(1).double().cpu()
        per_unit = now.reshape(-1, *(1,) * (state.t.ndim - 1)).expand(state.t.shape)
        start = per_unit if start is None else torch.where(start < 0, per_unit, start)

        share = process.alpha(s) / process.alpha(torch.zeros_like(s))
        want = (start * (1 - share)).reshape(len(x), -1).mean(1).round()
        reveal = (now - want).clamp_min(0).to(x.device)

        logits = pred.logits.flatten(1, -2).double()
        score = self._score(logits, ask.noise).masked_fill(~hidden, -torch.inf)
        if self.block is not None:
            place = torch.arange(x.flatten(1).shape[1], device=x.device) // self.block
            order = score.argsort(dim=1, descending=True, stable=True).argsort(1).double()
            score = (-place * place.numel() - order).masked_fill(~hidden, -torch.inf)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(1)
        shown = hidden & (rank < reveal[:, None])
        value = (
            ask.noise.fold(1).categorical(pred.logits / self.temperature)
            if self.temperature
            else pred.logits.argmax(-1)
        )
        moved = torch.where(shown.reshape(x.shape), value.to(x), x)
        return Move(moved, {"hidden": start + 1}), pred

    def _score(self, logits: Tensor, noise: Noise) -> Tensor:
        if self.rule == "left":
            return -torch.arange(logits.shape[1], device=logits.device).double().expand(logits.shape[:2])
        if self.rule == "random":
            return noise.uniform(logits.shape[:2]).to(logits.device)
        p = logits.softmax(-1)
        if self.rule == "margin":
            top = p.topk(2, -1).values
            return top[..., 0] - top[..., 1]
        if self.rule == "entropy":
            return torch.special.entr(p).sum(-1).neg()
        return p.amax(-1)
