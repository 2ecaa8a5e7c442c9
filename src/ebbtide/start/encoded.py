"""Encoded start (img2img): noise given data as far as `strength` says, and walk only the rest of the grid.

    k = n - int(strength n),   x = corrupt(source, t_k),   the steps k, k + 1, ... n - 1 of the grid are made

`strength` is that of diffusers: it shortens the run. ComfyUI's `denoise` d keeps the number of steps instead: its n steps
are the last n of a grid of int(n / d), so write {"grid": {..., "steps": int(n / d)}, "start": {"name": "encoded", "last": n}}.

    strength = 1   all steps, from corrupt(source, t_0): the prior where the data weighs nothing there
    strength = 0   no step at all: the source itself

Shapes   cond["source"] like x (B, ...), data; any units. It is taken out of the condition, unless another part
         reads it. No call.
Paper    Meng et al. 2022, "SDEdit" (arXiv 2108.01073), algorithm 1
Off      the baseline is `prior`, which knows no source.
Differs  the forward process noises in one draw, as everywhere here. diffusers' flow pipelines (SD3, Flux) round the number
         of steps up where its others round down; this rounds down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Start
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.tree import Tree
from ebbtide.start.held import held, later, points


@part("start", "encoded", paper="2108.01073", gives={"source"}, baseline="prior")
class Encoded(Start):
    """Encoded start (img2img): noise given data as far as `strength` says, and walk only the rest of the grid.

    strength   the share of the grid's steps that are made
    last       how many of its steps are made, in place of a share
    """

    examples = ({}, {"last": 2})
    strength: Annotated[float, Field(ge=0, le=1)] = 0.75
    last: Annotated[int, Field(ge=0)] | None = None

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        """Raises EbbError without cond["source"] and for a grid whose times are not known beforehand."""
        source, state = held("source", like, ask, "data to start from")
        n = points(ask).shape[-1] - 1
        state = later(state, ask, int(self.strength * n) if self.last is None else self.last)
        return replace(state, x=ask.process.corrupt(source, state.t, ask.noise, cond))
