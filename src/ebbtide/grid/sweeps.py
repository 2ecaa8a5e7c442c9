"""Sweeps: blocks of frames move one after another, level by level (or each block to its end before the next).

    level-first   (level 1: block 1, 2, ... N), (level 2: block 1, 2, ... N), ...
    block-first   (block 1: level 1, 2, ... n), (block 2: level 1, 2, ... n), ...

One move a step: of the blocks that have not arrived, the first in that order goes on to the next time of its list. In
level-first order a block sees earlier ones one level ahead of it, never clean, so their errors are those of its own level;
and (level j, block b) waits for (j, b - 1) and (j - 1, b) alone, so sweeps can be pipelined (`parallel.sweeps`).

Shapes   blocks lie along the last unit axis, (B, F); elements with one time are one block. Memory: points (B, 1, n + 1)
Paper    Zou et al. 2026, "HiAR: Efficient autoregressive long video generation via hierarchical denoising"
         (arXiv 2603.08703)
Off      block = None moves all units together: `linear`, bit for bit.
Differs  the order is one of times alone: what a block sees of later ones is the network's business (causal attention), and no
         keys and values are kept, so each move computes the whole clip.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.tree import Memory
from ebbtide.grid.fixed import Linear


@part("grid", "sweeps", paper="2603.08703", off={"block": None}, baseline="linear")
class Sweeps(Linear):
    """Sweeps: blocks of frames move one after another, level by level (or each block to its end before the next).

    block   frames in a block; None: all move together
    order   which goes first
    head    the first levels that are block-first where the others are level-first
    """

    block: Annotated[int, Field(gt=0)] | None = 1
    order: Literal["level", "block"] = "level"
    head: Annotated[int, Field(ge=0)] = 0

    def ahead(self, state: State, memory: Memory, k: int) -> Tensor:
        i = state.i
        for _ in range(k):
            i = i + self.moving(i, memory)
        t = self.at(memory, i)
        return t if k == 0 else torch.where(i == state.i, state.t, t)

    def moving(self, i: Tensor, memory: Memory) -> Tensor:
        """Which units move next where units have made `i` steps, boolean."""
        n = memory["points"].shape[-1] - 1
        left = i < n
        if self.block is None or i.ndim < 2:
            return left
        count = -(-i.shape[-1] // self.block)
        b = torch.arange(i.shape[-1]) // self.block
        head = n if self.order == "block" else min(self.head, n)
        place = torch.where(i < head, b * head + i, count * head + (i - head) * count + b)
        place = torch.where(left, place, count * n)
        first = place.flatten(1).amin(1).reshape(-1, *(1,) * (i.ndim - 1))
        return left & (place == first)
