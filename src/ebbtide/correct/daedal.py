"""DAEDAL: a canvas of masks that grows until the model is sure of its end, and where it stays unsure of what to write.

    sure(end) = sum of p_j(eos) over the last W places whose likeliest token is eos / W
    at first  while sure(end) < enough:  the canvas gets E masks more, and nothing is decided;  then W / 2 tokens eos as a tail
    then      if sure(end) < settled:    the hidden place of least certainty, if that is < low, becomes E masks

An element's canvas is the part of its row that `attention_mask` shows; the row itself is as long as it may become. So
a state keeps one shape, elements of a batch grow and end by themselves, and places that nobody has are not computed. All is
read off the prediction that the step was made of: no call of its own. Growing is a jump back in time, so caches begin anew.

    1 - alpha(t') = (1 - alpha(t)) (left + added) / left,  at most as at the start

Shapes   x int64 (B, *event), its places in one row; cond["attention_mask"] like x, made if there is none; logits (B, *event, V)
         memory: the tokens before the step, the time at the start like t, stage (B,): 1 while the length is sought, then 2
Paper    Li et al. 2025, "Beyond fixed: variable-length denoising for diffusion large language models" (arXiv 2508.00819),
         sections 3.1 and 3.2
Off      expansion = 0 leaves canvases as they are, bit for bit.
Differs  the length is sought in steps of the run, whose decisions are taken back. Only masks at the end of a prompt are a
         canvas to begin with; blanks within it grow as any unsure place does. What shows is certain.

Raises EbbError for an end that is no token of the model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Correct, Process
from ebbtide.core.registry import part
from ebbtide.core.state import Pred, State
from ebbtide.core.time import invert, right
from ebbtide.core.tree import Memory

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
SEEN = "attention_mask"


@part("correct", "daedal", paper="2508.00819", needs={"masked", "events"}, off={"expansion": 0})
class Daedal(Correct):
    """DAEDAL: a canvas of masks that grows until the model is sure of its end, and where it stays unsure of what to write.

    eos        the token that ends a text
    initial    masks to begin with
    longest    places of a canvas at most, those of a prompt among them (None: the model's row)
    expansion  E
    window     W
    enough, settled, low   the three certainties above
    """

    examples = ({"eos": 1, "initial": 1, "expansion": 2, "window": 2},)
    eos: Annotated[int, Field(ge=0)]
    initial: Count = 64
    longest: Count | None = None
    expansion: Annotated[int, Field(ge=0)] = 8
    window: Count = 32
    enough: Share = 0.5
    settled: Share = 0.9
    low: Share = 0.1

    def __call__(
        self, state: State, memory: Memory, pred: Pred | None, ask: Ask, process: Process
    ) -> tuple[State, Memory]:
        if self.expansion == 0:
            return state, memory
        known: Any = process
        if self.eos >= known.states or self.eos == known.mask:
            raise EbbError(f"'daedal' ends texts with token {self.eos}, and this model writes 0 to {known.vocab - 1}.")
        x = state.x.flatten(1)
        if pred is None:
            return self.begun(state, x, known.mask)
        if not memory:
            return state, memory  # nothing is known of where it began
        seen = state.cond[SEEN].flatten(1) != 0
        before = memory["before"].flatten(1)
        sure, value = pred.logits.flatten(1, -2).double().softmax(-1).max(-1)
        was_hidden = before == known.mask
        ends = seen & (torch.where(was_hidden, value, before) == self.eos)
        sure = torch.where(was_hidden, sure, 1.0)
        near = ends & (ends.flip(1).cumsum(1).flip(1) <= self.window)
        end = torch.where(near, sure, 0.0).sum(1) / self.window

        length, limit = seen.sum(1), self.limit(x)
        stage = memory["stage"].to(x.device)
        seeking = stage == 1
        more = seeking & (end < self.enough) & (length < limit)
        found = seeking & ~more
        x = torch.where(more[:, None], before, x)
        hidden = (x == known.mask) & seen
        left = hidden.sum(1)

        # where masks go in, and how many: after the last place while the length is sought, else for the least sure place
        least = sure.masked_fill(~hidden, torch.inf).min(1)
        unsure = (stage == 2) & (end < self.settled) & (least.values < self.low) & (left > 0)
        unsure &= length + self.expansion - 1 <= limit
        tail = torch.where(found & (left > 0), (limit - length).clamp(0, self.window // 2), 0)
        added = torch.where(
            more, (limit - length).clamp(max=self.expansion), torch.where(unsure, self.expansion - 1, tail)
        )
        place = torch.where(unsure, least.indices, length - 1)
        grown = self.widened(x, place, added, torch.where(tail > 0, self.eos, known.mask))
        inside = torch.arange(x.shape[1], device=x.device) < (length + added)[:, None]

        start = memory["start"]
        gone = 1 - known.alpha(state.t)
        share = right((left + added).double().cpu() / left.clamp_min(1).cpu(), state.t)
        back = torch.minimum(invert(known.alpha, 1 - (gone * share).clamp(max=1)), start)
        grew, sought = (right(v.cpu(), state.t) for v in (added > 0, more))
        peak = torch.maximum(back, state.t).reshape(len(x), -1).amax(1)
        t = torch.where(sought, start, torch.where(grew, right(peak, state.t).expand(state.t.shape), state.t))
        ask.note("daedal", int((seeking | (added > 0)).sum()))
        after = self.shown(replace(state, t=t), grown, inside)
        return after, {"before": after.x, "start": start, "stage": torch.where(found, 2, stage).cpu()}

    def limit(self, x: Tensor) -> int:
        """How long a canvas may become."""
        return x.shape[1] if self.longest is None else min(self.longest, x.shape[1])

    def begun(self, state: State, x: Tensor, mask: int) -> tuple[State, Memory]:
        """Canvases as they begin: of the masks at the end of a row, the first few."""
        given = state.cond.get(SEEN)
        seen = torch.ones_like(x, dtype=torch.bool) if given is None else given.flatten(1) != 0
        place = torch.arange(x.shape[1], device=x.device)
        first = torch.where(seen & (x != mask), place + 1, 0).amax(1)
        length = seen.sum(1)
        free = length > first
        length = torch.where(
            free, torch.minimum(length, (first + self.initial).clamp(max=max(self.limit(x), 1))), length
        )
        length = torch.maximum(length, first)
        inside = place < length[:, None]
        after = self.shown(state, x, inside)
        return after, {"before": after.x, "start": state.t, "stage": torch.where(free & (length > first), 1, 2).cpu()}

    def shown(self, state: State, x: Tensor, inside: Tensor) -> State:
        """The state with these tokens, of which those inside are the canvas."""
        shape = state.x.shape
        x = torch.where(inside, x, self.eos).reshape(shape)
        return replace(state, x=x, cond={**state.cond, SEEN: inside.long().reshape(shape)})

    def widened(self, x: Tensor, place: Tensor, added: Tensor, token: Tensor) -> Tensor:
        """x with `added` tokens put in after `place`; what follows moves right, and over the edge."""
        to = torch.arange(x.shape[1], device=x.device).expand_as(x)
        last = (place + added)[:, None]
        source = torch.where(to > last, to - added[:, None], to)
        moved = x.gather(1, source)
        return torch.where((to > place[:, None]) & (to <= last), token[:, None].to(x), moved)
