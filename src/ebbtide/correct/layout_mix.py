"""Layout mixing: while the layout forms, every step is drawn back towards the source, noised to the same time.

    x_s <- nu x_s + (1 - nu) (a_s source + c_s eps)     where last <= s < first;   eps is the noise of the start

Early steps decide where things lie, late ones what they are made of: in between, the run may have the content of its own
condition and the layout of another picture. nu near 1 is content, nu = 0 the source's own way down to `last`.

Shapes   cond["source"] like x (B, ...), which the start begins from; any units. Memory: eps, like x. No call.
Paper    Liew et al. 2022, "MagicMix: semantic mixing with diffusion models" (arXiv 2210.16056), section 3.2
Off      nu = 1 is img2img, bit for bit.
Differs  the paper counts steps, this part times. The layout of a prompt is that of a picture drawn from it beforehand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Correct, Process
from ebbtide.core.registry import part
from ebbtide.core.state import Pred, State
from ebbtide.core.time import combine, where
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine


@part("correct", "layout-mix", paper="2210.16056", needs={"affine", "source"}, refuses={"end"}, off={"nu": 1.0})
class LayoutMix(Correct):
    """Layout mixing: while the layout forms, every step is drawn back towards the source, noised to the same time.

    nu            the share of the run's own step
    first, last   the times between which it is mixed
    """

    reads = frozenset({"source"})
    nu: Annotated[float, Field(ge=0, le=1)] = 0.9
    first: Annotated[float, Field(ge=0, le=1)] = 0.6
    last: Annotated[float, Field(ge=0, le=1)] = 0.2

    @model_validator(mode="after")
    def _falling(self) -> LayoutMix:
        if self.last > self.first:
            raise ValueError("last lies below first")
        return self

    def __call__(
        self, state: State, memory: Memory, pred: Pred | None, ask: Ask, process: Process
    ) -> tuple[State, Memory]:
        source = state.cond.get("source")
        if self.nu == 1 or not isinstance(source, Tensor) or source.shape != state.x.shape:
            return state, memory
        assert isinstance(process, Affine)
        if pred is None:  # the start is the layout, and says which noise it has
            return state, {"eps": _noise(process, source, state)}
        mixed = (state.t >= self.last) & (state.t < self.first)
        if not bool(mixed.any()) or "eps" not in memory:
            return state, memory
        ask.note("layout-mix", int(mixed.sum()))
        layout = combine((process.a(state.t), source), (process.c(state.t), memory["eps"]))
        return replace(state, x=where(mixed, combine((self.nu, state.x), (1 - self.nu, layout)), state.x)), memory


def _noise(process: Affine, source: Tensor, state: State) -> Tensor:
    """The noise of the start, 0 where it has none."""
    a, c = process.a(state.t), process.c(state.t)
    none = c == 0
    share = torch.where(none, 0.0, 1 / torch.where(none, 1.0, c))
    eps: Tensor = combine((share, state.x), (-a * share, source))
    return eps
