"""SuperDiff, AND: ancestral steps along which the log-densities of several models grow alike, so samples suit them all.

    x_s = k_x x_t + k_0 sum_i kappa_i E_i[x0 | x_t] + k_y y + k_z z,   sum_i kappa_i = 1,   kappa by z, the step's own noise:
    |x_s - mu_i| = |x_s - mu_j| for all i, j,   mu_i = k_x x_t + k_0 E_i[x0 | x_t] + k_y y

As log q_i(x_s) - log q_i(x_t) depends on i by -|x_s - mu_i|^2 / (2 k_z^2) alone (`denoise.superposition`), what was equal
at the start stays so. With D_i = mu_i - mu_0 the weights solve  sum_j <D_i, D_j> kappa_j = |D_i|^2 / 2 - <k_z z, D_i>.

Shapes   x (B, ...), any units: each counts by 1 / k_z^2, the weights are the element's. 1 + len(others) calls a step.
Paper    Skreta et al. 2024, "The superposition of diffusion models using the Ito density estimator" (arXiv 2412.17762),
         proposition 6 and algorithm 1
Off      others = () is `ancestral`, bit for bit.
Differs  equal growth by the kernels of a step, to first order the paper's: exact at any length of step. Models that say the
         same (|D| below 1e-5 of |k_0 x0|) share no weight, so identical ones are one. Without bias. The step that lands on
         the data, which has no noise, takes the kappa of z = 0 with all numbers alike.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, Query, State
from ebbtide.core.time import combine, nil, right, spread
from ebbtide.core.tree import Memory
from ebbtide.denoise.superposition import Others, conditions
from ebbtide.process.affine import Affine, Weights

_SAME = 1e-10


@part("solve", "superdiff-and", paper="2412.17762", needs={"affine"}, off={"others": ()}, baseline="ancestral")
class SuperDiffAnd(Solver):
    """SuperDiff, AND: ancestral steps along which the log-densities of several models grow alike, so samples suit them all.

    others   what the other models are told instead: {"label": 3}, say
    clip     the largest weight of one of the others, either sign
    """

    order = None
    stochastic = True
    examples = ({"others": [{"label": 1}, {"label": 2}]},)
    others: Others = ({"label": 1},)
    clip: Annotated[float, Field(gt=0)] | None = None

    @property
    def calls(self) -> int:
        return 1 + len(self.others)

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        x, t = state.x, state.t
        each = conditions(state.cond, self.others)
        first, *rest = ask.many([Query(x, t), *(Query(x, t, c, f"main/and{j}") for j, c in enumerate(each, 1))])
        w = process.weights(t, s, 1.0)
        moved = process.apply(w, x, [(w.x0, first.mean)], state.cond, ask.noise)
        if not rest:
            return Move(moved), first
        noise = torch.zeros_like(x) if nil(w.noise) else combine((w.noise, process.draw(x, ask.noise)))
        kappa = self._weights(w, t, first.mean, [p.mean for p in rest], noise)
        pulls = [combine((1.0, p.mean), (-1.0, first.mean)) for p in rest]
        lean: Any = combine(*((kappa[:, i], d) for i, d in enumerate(pulls)))
        return Move(combine((1.0, moved), (w.x0, lean))), Pred(mean=first.mean + lean)

    def _weights(self, w: Weights, t: Tensor, own: Tensor, means: list[Tensor], noise: Tensor) -> Tensor:
        """The weight of each of the others, (B, K - 1)."""
        k = spread(w.noise, t)
        loud = k > 0
        metric = torch.where(loud, 1 / torch.where(loud, k, 1.0) ** 2, 0.0)
        landing = ~loud.reshape(len(loud), -1).any(1)
        metric = torch.where(right(landing, metric), 1.0, metric)
        wide = right(metric, own).to(own.device)

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (wide * a.double() * b.double()).flatten(1).sum(1)

        apart = [combine((w.x0, m), (-1.0 * w.x0, own)) for m in means]
        gram = torch.stack([torch.stack([dot(a, b) for b in apart], 1) for a in apart], 1)
        wanted = gram.diagonal(dim1=1, dim2=2) / 2 - torch.stack([dot(noise, a) for a in apart], 1)
        size: Tensor = combine((w.x0, own))
        least = _SAME * dot(size, size)
        inverse = torch.linalg.pinv(gram, atol=least, rtol=torch.full_like(least, _SAME), hermitian=True)
        kappa = (inverse * wanted[:, None]).sum(-1)
        return kappa if self.clip is None else kappa.clamp(-self.clip, self.clip)
