"""Several models in one plan: how their conditions are named, and what a path says of the density of each.

A model is named by what it is told: the components of a superposition are the element's own condition and, for each of the
`others` of a plan, that condition with some leaves replaced. {"label": 3} names a class, {"network": 1} one of the networks
of a denoiser that chooses by that leaf.

    log q_i(x_s) - log q_i(x_t) = log q_i(x_s | x_t) - log q(x_t | x_s)                       Bayes' rule along a step
                  q_i(x_s | x_t) ~ N(k_x x_t + k_0 E_i[x0 | x_t] + k_y y, k_z^2)              the chain's posterior (eta = 1)

The noise of the process, q(x_t | x_s), is the same for all i.

Shapes   x, E_i[x0] (B, ...), times (B, *units), log-densities (B, K) float64.
Source   Skreta et al. 2024, "The superposition of diffusion models using the Ito density estimator" (arXiv 2412.17762),
         theorem 1, whose continuous estimate this is to first order
Differs  written with the kernels of a step and not with dt: finite at both ends of time, and exact in k_x, k_z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.time import combine, right, spread
from ebbtide.core.tree import Tree
from ebbtide.process.affine import Affine

Others: TypeAlias = tuple[dict[str, int | float], ...]


def conditions(cond: Mapping[str, Tree], others: Others) -> list[dict[str, Tree]]:
    """The condition of each of the `others`: that of the elements, with some leaves filled anew.

    Raises EbbError for a leaf that the condition lacks.
    """
    own = {k: v for k, v in cond.items() if k != "null"}
    out = []
    for other in others:
        for name in other:
            if not isinstance(own.get(name), Tensor):
                known = ", ".join(sorted(k for k, v in own.items() if isinstance(v, Tensor))) or "nothing"
                raise EbbError(
                    f"a superposition replaces {name!r}, which these elements are not told; they have {known}."
                )
        out.append({**own, **{k: torch.full_like(own[k], v) for k, v in other.items()}})
    return out


def gains(
    process: Affine, x: Tensor, t: Tensor, y: Tensor, s: Tensor, means: Sequence[Tensor], cond: dict[str, Tree]
) -> Tensor:
    """How much the log-density of each component grew from (x, t) to (y, s), (B, K); `means` are E_i[x0] at (x, t).

    Units that have not gone down, or have landed on the data, count nothing.
    """
    down, up = process.weights(t, s, 1.0), process.weights(s, t, 1.0)
    k, c = spread(down.noise, t), spread(up.noise, t)
    moved, one, nothing = (s < t) & (k > 0), torch.ones_like(k), torch.zeros_like(k)
    end = process.end(cond) if process.ended else None

    def energy(residual: Tensor, deviation: Tensor) -> Tensor:
        """sum r^2 / (2 deviation^2) of every element."""
        some = moved & (deviation > 0)  # the far end of a bridge is where it is, whatever came before
        w = torch.where(some, 1 / (2 * torch.where(some, deviation, one) ** 2), nothing)
        return (right(w, residual).to(residual.device) * residual.double() ** 2).flatten(1).sum(1)

    ends = lambda w: [] if end is None else [(-1.0 * w, end)]  # noqa: E731
    forward = energy(combine((1.0, x), (-1.0 * up.x, y), *ends(up.y)), c)
    sure = moved & (c > 0)
    ratio = torch.where(sure, torch.where(sure, c, one).log() - torch.where(sure, k, one).log(), nothing)
    common = forward + right(ratio, y).to(y.device).expand(y.shape).flatten(1).sum(1)
    path: Tensor = combine((1.0, y), (-1.0 * down.x, x), *ends(down.y))
    return torch.stack([common - energy(combine((1.0, path), (-1.0 * down.x0, m)), k) for m in means], 1)
