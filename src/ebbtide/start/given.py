"""Given start: go on from x_t, which is known.

    x = start   at the grid's first time

For latents that were made elsewhere, and for comparing solvers from the same starts. A grid with `first` (or `sigma_max`)
begins where the latents stand.

Shapes   cond["start"] like x (B, ...), any units; it is taken out of the condition. No call, no draw.
Source   the definition of a flow map: where a run begins is its argument
Off      the baseline is `prior`, which draws.
Differs  pipelines that take `latents` take unit noise and scale it by the first noise level; here x_t is given as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Start
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.tree import Tree, tree_map
from ebbtide.start.held import held


@part("start", "given", baseline="prior")
class Given(Start):
    """Given start: go on from x_t, which is known."""

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        """Raises EbbError without cond["start"]."""
        x, state = held("start", like, ask, "the x_t to go on from")
        return replace(state, x=tree_map(lambda v: v.clone(), x), t=ask.ahead(0))
