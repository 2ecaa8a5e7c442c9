"""Predictor-corrector: an ancestral step, then Langevin steps at the new time that put the law of x_s right.

    predict   x <- process.move(x, E[x0 | x_t], t, s, eta)
    correct   x <- a_s x0 + b_s y + c_s ((1 - k) eps + r sqrt(1 - (1 - k)^2) z),   x0 = E[x0 | x at s],   k = 2 snr^2

eps = (x - a_s x0 - b_s y) / c_s is -c_s times the score, so a correction is a Langevin step of size k c_s^2; it is written
so that it leaves the law as it is where x0 is known, for every k up to 1. Only r = 1 does: less noise draws x nearer to what
is likely, as samplers of graphs want it (Jo et al. 2022, arXiv 2202.02514, r = 0.7).

Shapes   x (B, ...), any units, or fields, each by itself. 1 + corrections calls a step, one where it lands on the data.
Paper    Song et al. 2021, "Score-based generative modeling through stochastic differential equations" (arXiv 2011.13456),
         section 4.2, algorithms 4 and 5
Off      corrections = 0 is `ancestral`, bit for bit.
Differs  the paper's step 2 (snr |z| / |score|)^2 is taken at |score| = |z| / c_s, its value for the true score of one
         point: norms over a batch would tie its elements to each other. With corrections the error falls with snr, not
         with the number of steps alone, so no order is declared.
"""

from __future__ import annotations

import functools
import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.key import Noise
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, Query, State
from ebbtide.core.time import Weight, combine
from ebbtide.core.tree import Memory, Tree, tree_map
from ebbtide.process.affine import Affine
from ebbtide.solve.euler import Eta
from ebbtide.solve.fields import Single, by_field, fields


@part("solve", "langevin", paper="2011.13456", needs={"continuous"}, off={"corrections": 0}, baseline="ancestral")
class Langevin(Solver):
    """Predictor-corrector: an ancestral step, then Langevin steps at the new time that put the law of x_s right.

    corrections   Langevin steps after every step
    snr           their signal-to-noise ratio, the length of a step against that of its noise
    scale         of their noise, r; only 1 keeps the law
    eta           of the predictor: 1 ancestral, 0 deterministic
    """

    corrections: Annotated[int, Field(ge=0)] = 1
    snr: Annotated[float, Field(gt=0, le=math.sqrt(0.5))] = 0.16
    scale: Annotated[float, Field(ge=0)] = 1.0
    eta: Eta = 1.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0 or (self.corrections > 0 and self.scale > 0)

    @property
    def order(self) -> float | None:
        return None if self.corrections else 1

    @property
    def calls(self) -> int:
        return 1 + self.corrections

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Any) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        x = process.move(state.x, pred, state.t, s, self.eta, ask.noise, state.cond)
        noisy = functools.reduce(torch.maximum, [f.process.c(s) for f in fields(process, state.cond)])
        corrected = (s < state.t) & (noisy > 0)
        rows = corrected.reshape(len(s), -1).any(1).nonzero()[:, 0]
        if not self.corrections or not len(rows):
            return Move(x), pred
        own = tree_map(lambda v: v[rows.to(v.device)], x)
        for j in range(self.corrections):
            (seen,) = ask.many((Query(own, s[rows], role="stage", of=rows),))
            rest = (own, seen, state.t[rows], s[rows], ask.noise.take(rows).fold(j), rows)
            own = by_field(process, state.cond, functools.partial(self._corrected, rest=rest))
        return Move(tree_map(lambda v, w: v.index_copy(0, rows.to(v.device), w), x, own)), pred

    def _corrected(self, f: Single, rest: tuple[Tree, Pred, Tensor, Tensor, Noise, Tensor]) -> Tensor:
        """One field of some rows, put right once: x, what is seen there, from where to where, draws, and which rows."""
        x, seen, t, s, noise, rows = rest
        p, own = f.process, f.of(x)
        keep, data, end, fresh = p.once(("langevin", self.snr, self.scale), lambda t, s: self._weights(p, t, s), t, s)
        ends = [(end, p.end(f.cond)[rows.to(own.device)])] if p.ended else []
        out: Tensor = combine((keep, own), (data, f.of(seen.mean)), *ends, (fresh, p.draw(own, f.noise(noise))))
        return out

    def _weights(self, process: Affine, t: Tensor, s: Tensor) -> tuple[Weight, ...]:
        """The weights of x, x0, y and z in a correction, in tensor form; a unit that waits or has landed stays."""
        c = process.c(s)
        k = torch.where((s < t) & (c > 0), 2 * self.snr**2, torch.zeros_like(c))
        b = process.b(s)
        return (
            1 - k,
            k * process.a(s),
            k * (torch.zeros_like(c) if b is None else b),
            self.scale * c * (k * (2 - k)).sqrt(),
        )
