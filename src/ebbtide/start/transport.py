"""Transport start: an optimal transport map takes noise to stored, partly denoised latents, and the rest of the way is run.

    T(z) = y_i*,   i* = argmax_i <z, y_i> + h_i,   z ~ N(0, I)          the gradient of u(z) = max_i <z, y_i> + h_i
    h such that P(i* = i) = 1 / N:   minimise E u(z) - mean(h),   gradient w_i - 1 / N,   w the masses of the cells

A convex potential's gradient is the optimal map (Brenier): of all ways to deal the latents out to the noise, none moves it
less. Equal cells draw every latent equally often; neighbouring noise gets the same or a neighbouring latent, and no latent
is a mixture of two, as a map that is not torn would have to make.

Shapes   `table`: latents (N, ...) at the grid's first time, heights (N,); any units. No call.
Paper    Li et al. 2023, "DPM-OT" (arXiv 2307.11308), section 3
Off      the baseline is `prior`; heights of 0 leave cells of unequal mass.
Differs  the paper leaves out points near the edges of cells, whose neighbours lie at an angle above a threshold: with whole
         latents given out nothing is mixed, so nothing is left out. `noise` stirs a latent for diversity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Start
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.time import combine
from ebbtide.core.tree import Tree
from ebbtide.start.table import check, chosen, read


@part("start", "transport", paper="2307.11308", needs={"affine"}, refuses={"end"}, baseline="prior")
class Transport(Start):
    """Transport start: an optimal transport map takes noise to stored, partly denoised latents.

    table   latents and heights: see `start.table`, and `fit` for how to make them
    noise   how much fresh noise is added to a latent
    """

    examples = ({"table": {"latents": [1.2, -0.7, 0.1], "heights": [0.0, 0.2, -0.2]}},)
    table: dict[str, Any]
    noise: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("table")
    @classmethod
    def _leaves(cls, table: dict[str, Any]) -> dict[str, Any]:
        check(table, ("latents", "heights"))
        return table

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        """Raises EbbError for a table that does not fit the samples."""
        assert isinstance(like, Tensor)
        found = read(self.table, ("latents", "heights"))
        latents, heights = found["latents"], found["heights"]
        if heights.shape != latents.shape[:1]:
            raise EbbError(f"the table has {len(latents)} latents and heights {tuple(heights.shape)}: give one each.")
        z = ask.noise.normal(like.double()).cpu()
        rows = chosen(latents, torch.arange(len(latents)), z[:1].expand(len(latents), *z.shape[1:]))
        x = chosen(latents, cells(z, rows, heights), like)
        x = combine((1.0, x), (self.noise, ask.noise.fold(0).normal(like)))
        return replace(ask.state, x=x, t=ask.ahead(0))


def cells(z: Tensor, latents: Tensor, heights: Tensor) -> Tensor:
    """argmax_i <z, y_i> + h_i of each z, (B,)."""
    return (z.flatten(1) @ latents.flatten(1).T + heights).argmax(1)


def fit(
    latents: Tensor, *, batch: int = 4000, steps: int = 1000, lr: float = 0.1, tolerance: float = 0.0, seed: int = 0
) -> dict[str, Tensor]:
    """The table of an optimal map onto latents (N, ...): heights (N,) under which every cell has mass 1 / N.

    Adam on the heights with the masses of `batch` draws of noise; while the masses get no better for 50 steps, the batch is
    doubled and the step shortened by a fifth. Ends after `steps`, or when |w - 1 / N| is below `tolerance`; what comes back
    is the average of the last half.
    """
    y = latents.flatten(1).double()
    n = len(y)
    h, m, v = (torch.zeros(n, dtype=torch.float64) for _ in range(3))
    best, since, total, kept = torch.inf, 0, torch.zeros_like(h), 0
    source = Noise(keys([seed]), torch.zeros(1, dtype=torch.int64))
    for k in range(1, steps + 1):
        z = source.fold(k).normal(y.new_zeros(1, batch, y.shape[1]))[0]
        gap = torch.bincount(cells(z, y, h), minlength=n).double() / batch - 1 / n
        far = float(gap.norm())
        if far < tolerance:
            return {"latents": latents, "heights": h}
        best, since = (far, 0) if far < best else (best, since + 1)
        if since >= 50 and batch < 64_000:
            batch, lr, since = 2 * batch, lr * 0.8, 0
        m, v = 0.9 * m + 0.1 * gap, 0.999 * v + 0.001 * gap**2
        h = h - lr * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-12)
        h = h - h.mean()
        if 2 * k > steps:
            total, kept = total + h, kept + 1
    return {"latents": latents, "heights": total / max(kept, 1)}
