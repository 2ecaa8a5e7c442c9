"""Known units: frames that are given start as data and stay as they are; the others are drawn around them.

    t_f = 0, x_f = source_f  for the known f;   the prior at the grid's first time for all others

A network that was taught frames with times of their own takes one at t = 0 as known. The first frame is image-to-video, the
first and the last are interpolation, the first m continuation. What comes back of them is what was given, bit for bit, as
no step moves a unit whose time does not change.

Shapes   cond["source"] like x (B, ...), of which the known units are read; `frames` runs along the first axis of units, or
         cond["known"] is boolean, shaped like the units: (B, F), (B, L), (B, 1, H, W). Both are taken out. No call.
Paper    Liu et al. 2024, "Redefining temporal modeling in video diffusion" (arXiv 2410.03160), section 3
Off      frames = () is `prior`, bit for bit.
Differs  nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Start
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.time import where
from ebbtide.core.tree import Tree
from ebbtide.start.held import drop, held, points


@part("start", "known", paper="2410.03160", off={"frames": ()}, baseline="prior")
class Known(Start):
    """Known units: frames that are given start as data and stay as they are; the others are drawn around them.

    frames   which are known, counted from 0 (-1 is the last); None: cond["known"] says it
    """

    frames: tuple[int, ...] | None = None

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        """Raises EbbError without cond["source"], and for frames that the elements do not have."""
        t = ask.ahead(0)
        x = ask.process.prior(like, t, ask.noise, cond)
        if self.frames == ():
            return replace(ask.state, x=x, t=t)
        source, state = held("source", like, ask, "the units that are known")
        known = self._known(t, cond)
        last = points(ask).shape[-1] - 1
        t, i = torch.where(known, 0.0, t), torch.where(known, last, state.i)
        return replace(drop(state, "known"), x=where(known, source, x), t=t, i=i)

    def _known(self, t: Tensor, cond: dict[str, Tree]) -> Tensor:
        """Which units are known, boolean like t."""
        if self.frames is None:
            known = cond.get("known")
            if not isinstance(known, Tensor) or known.dtype != torch.bool or known.shape != t.shape:
                raise EbbError(
                    f"start 'known' needs frames=[...], or cond={{'known': booleans of shape {tuple(t.shape)}}}."
                )
            return known.cpu()
        if t.ndim < 2:
            raise EbbError("start 'known' needs frames with times of their own: load the model with units=1.")
        n = t.shape[1]
        wrong = [f for f in self.frames if not -n <= f < n]
        if wrong:
            raise EbbError(f"start 'known' names frame {wrong[0]}, but these elements have {n}.")
        frame = torch.zeros(n, dtype=torch.bool).index_fill(0, torch.tensor(self.frames) % n, True)
        return frame.reshape(1, n, *(1,) * (t.ndim - 2)).expand(t.shape)
