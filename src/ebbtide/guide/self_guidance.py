"""Self-guidance: a model of whole windows forecasts or fills in, by what its own prediction makes of the known part.

    x0 <- x0 - scale (c^2 / a) dE/dx_t,   E = sum over what is known of l(y - x0)
    l(e) = e^2 / 2  ("mse")   or   max(q e, (q - 1) e)  ("quantile"),   q the level of the element

which adds -scale dE/dx_t to the score. The quantile loss asks element j for the q_j-quantile of what it knows, so a set of
elements with levels spread over (0, 1) spreads as forecasts should.

Shapes   cond["observed"] like x (B, ...), NaN where nothing is known; cond["level"] (B,), held to [0, 1], else an element draws
         its own from its key. One call, and its gradient.
Paper    Kollovieh et al. 2023, "Predict, refine, synthesize" (arXiv 2307.11494), section 3.1
Off      scale = 0 asks the inner prediction alone, bit for bit.
Differs  the paper's two rules, for DDPM and for DDIM, are the one rule above for every solver; DDPM's adds the pull times its
         own posterior variance instead. Where a = 0 nothing of x_t tells of the data, and nothing is pulled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Inner
from ebbtide.core.registry import part
from ebbtide.core.state import Pred, Query
from ebbtide.core.time import Weight, combine, ratio, right, weight
from ebbtide.core.tree import Memory
from ebbtide.guide.gradients import Pulling, through


@part("guide", "self-guidance", paper="2307.11494", needs={"affine"}, off={"scale": 0.0})
class SelfGuidance(Pulling):
    """Self-guidance: a model of whole windows forecasts or fills in, by what its own prediction makes of the known part.

    scale  how hard it pulls
    loss   how a miss is weighed: "quantile" or "mse"
    """

    reads = frozenset({"observed", "level"})
    scale: Annotated[float, Field(ge=0)] = 4.0
    loss: Literal["quantile", "mse"] = "quantile"

    def many(
        self, queries: Sequence[Query], memory: Memory, inner: Inner, ask: Ask, before: Memory
    ) -> tuple[list[Pred], Memory]:
        """Raises EbbError without cond["observed"]."""
        if self.scale == 0.0:
            return inner(queries), memory
        known, level = ask.state.cond.get("observed"), self._levels(ask)
        if not isinstance(known, Tensor) or known.shape != ask.state.x.shape:
            raise EbbError(
                f"guide 'self-guidance' needs what is known: give cond={{'observed': tensor of shape "
                f"{tuple(ask.state.x.shape)}, NaN where nothing is}}."
            )
        n = len(ask.state)

        def energy(query: Query, pred: Pred) -> Tensor:
            own = query.owners(n)
            y, q = known[own.to(known.device)].to(pred.mean), level[own].to(pred.mean)
            there = ~y.isnan()
            miss = torch.where(there, y.nan_to_num() - pred.mean, 0.0)
            return self._loss(miss, right(q, miss)).flatten(1).sum(1)

        out = []
        for query, (pred, pull, _) in zip(queries, through(ask, inner, queries, energy), strict=True):
            ask.note("self-guidance", len(query.t))
            out.append(pred._replace(mean=combine((1.0, pred.mean), (self._weight(ask.process, query.t), pull))))
        return out, memory

    def _loss(self, miss: Tensor, level: Tensor) -> Tensor:
        return miss.square() / 2 if self.loss == "mse" else torch.maximum(level * miss, (level - 1) * miss)

    def _weight(self, process: Any, t: Tensor) -> Weight:
        return weight(-self.scale * torch.as_tensor(ratio(process.c(t) ** 2, process.a(t))))

    def _levels(self, ask: Ask) -> Tensor:
        """The level of each element, (B, ...) float64 on the CPU; in one form whatever the units are."""
        given = ask.state.cond.get("level")
        if isinstance(given, Tensor):
            return given.to("cpu", torch.float64).clamp(0, 1)
        key = ask.state.key.reshape(len(ask.state), -1)[:, 0]
        return Noise(key, torch.zeros_like(key), ask.salt).uniform((len(key),))
