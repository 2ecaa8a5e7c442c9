"""Symmetric noise: matrices that are their own transpose with nothing on the diagonal, as adjacency matrices are.

    x_t = a x0 + b y + c E,   E_ij = E_ji ~ N(0, 1) for i < j,   E_ii = 0

with a, b, c of another affine process. Every state is symmetric with a diagonal of zeros, to the bit: what a network says of
the lower triangle is not looked at. Each pair is drawn once, so the score of a pair is that of one number.

Shapes   x (B, ..., N, N), any units that i and j share
Paper    Jo, Lee, Hwang 2022, "Score-based generative modeling of graphs via the system of stochastic differential equations"
         (arXiv 2202.02514), section 3 and appendix
Off      it is of another process, and has none
Differs  nothing
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.core.registry import make, part
from ebbtide.core.time import Weight
from ebbtide.core.tree import Tree
from ebbtide.process.affine import Affine, Weights


@part("process", "symmetric", paper="2202.02514")
class Symmetric(Affine):
    """Symmetric noise: matrices that are their own transpose with nothing on the diagonal, as adjacency matrices are.

    of   spec of the affine process of each pair, {"name": ..., **parameters}

    Raises EbbError for x that is not square.
    """

    examples = ({"of": {"name": "vp-linear"}}, {"of": {"name": "bridge"}})
    of: dict[str, Any]

    def __post_init__(self) -> None:
        if "name" not in self.of:
            raise ValueError("the process of each pair has no name")
        if "affine" not in self.inner.gives:
            raise ValueError("noise is made symmetric for affine processes alone")

    @functools.cached_property
    def inner(self) -> Affine:
        """The process of each pair."""
        made: Affine = make("process", self.of)
        return made

    @property
    def gives(self) -> frozenset[str]:  # type: ignore[override]
        return self.inner.gives | {"symmetric"}

    def a(self, t: Tensor) -> Tensor:
        return self.inner.a(t)

    def b(self, t: Tensor) -> Tensor | None:
        return self.inner.b(t)

    def c(self, t: Tensor) -> Tensor:
        return self.inner.c(t)

    def draw(self, like: Tensor, noise: Noise) -> Tensor:
        return mirrored(noise.normal(like))

    def apply(
        self, w: Weights, x: Tensor, estimates: Sequence[tuple[Weight, Tensor]], cond: dict[str, Tree], noise: Noise
    ) -> Tensor:
        return mirrored(super().apply(w, x, estimates, cond, noise))

    def corrupt(self, x0: Tree, t: Tensor, noise: Noise, cond: dict[str, Tree]) -> Tree:
        return mirrored(super().corrupt(x0, t, noise, cond))

    def prior(self, like: Tree, t: Tensor, noise: Noise, cond: dict[str, Tree]) -> Tree:
        return mirrored(self.inner.prior(like, t, noise, cond))


def mirrored(x: Tensor) -> Tensor:
    """The upper triangle of matrices (..., N, N), mirrored, with a diagonal of zeros."""
    if x.ndim < 3 or x.shape[-1] != x.shape[-2]:
        raise EbbError(f"symmetric noise is for square matrices (B, ..., N, N), not {tuple(x.shape)}.")
    upper = x.triu(1)
    return upper + upper.mT
