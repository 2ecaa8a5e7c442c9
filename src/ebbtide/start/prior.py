"""Start from noise alone: the law of x_t where time begins, with the data left out.

    x = c(t) eps (+ b(t) y),   all masks,   uniform tokens:   whatever the process has at the grid's first time

Shapes   x like the model's data (B, ...), t the grid's first times.
Source   the definition of a diffusion sampler; Ho, Jain, Abbeel 2020 (arXiv 2006.11239), algorithm 2, line 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Start
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.tree import Tree


@part("start", "prior", paper="2006.11239")
class Prior(Start):
    """Start from noise alone: the law of x_t where time begins, with the data left out."""

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        t = ask.ahead(0)
        return replace(ask.state, x=ask.process.prior(like, t, ask.noise, cond), t=t)
