"""Gauge freedom: a score may carry a remainder that moves no probability, and sampling and density stay exact.

    score' = s + r,   div(p r) = 0,   so div r + r.s = 0
    r = C s, C constant and antisymmetric:            div(p C s) = div(C grad p) = 0
    r_i = sum_j (A_ij s_j + dA_ij / dx_j)             for an antisymmetric field A(x):   p r = div(p A)

`transform` builds such a denoiser, `report` measures how far a denoiser is from one, and `intrinsic_dim` reads the number
of dimensions of the data off the Jacobian of its score, which does need the conservative part alone:

    -c^2 ds/dx  ->  the projection on the normal space as c -> 0:   D - d singular values near 1, d near 0

Shapes   x (R, *event), D numbers an element, t (R,)
Paper    Horvat, Pfister 2024, "On gauge freedom, conservativity and intrinsic dimensionality estimation in diffusion
         models" (arXiv 2402.03845); dimension from scores: Stanczuk et al. 2022 (2212.12611)
Differs  singular values count as large from 1/2 on, halfway between the two limits; that paper looks for the largest gap
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree
from ebbtide.denoise.jacobian import Field, directions, divergence, products
from ebbtide.process.affine import Affine


def score_of(denoiser: Denoiser, t: Tensor, cond: Mapping[str, Tree] | None = None) -> Field:
    """The score that a denoiser stands for, x -> (a E[x0 | x] + b y - x) / c^2 at times t.

    Raises EbbError for a denoiser whose process is not affine.
    """
    process, given = denoiser.process, dict(cond or {})
    if not isinstance(process, Affine):
        raise EbbError("only a denoiser of an affine process has a score.")
    return lambda x: process.from_x0("score", denoiser(x, t, given).mean, x, t, given)


@dataclass(frozen=True, eq=False)
class Gauged(Denoiser):
    """A denoiser with the remainder of a matrix C (D, D), or of a field A(x) from a row (D,) to (D, D), added to its score.

    Nothing is checked: a matrix that is not antisymmetric gives a denoiser of another law, as experiments want it.
    """

    denoiser: Denoiser
    field: Tensor | Callable[[Tensor], Tensor]

    @property
    def process(self) -> Affine:  # type: ignore[override]
        """The process of the denoiser itself."""
        process = self.denoiser.process
        assert isinstance(process, Affine)
        return process

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return self.denoiser.null(name, leaf)

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        if bool((self.process.a(t) == 0).any()):
            raise EbbError("a gauge term turns without end where the data's weight is 0: begin at a later time.")
        pred = self.denoiser(x, t, cond)
        s = self.process.from_x0("score", pred.mean, x, t, cond)
        mean = self.process.to_x0("score", s + self.remainder(x, s), x, t, cond)
        return Pred(mean=mean, aux=pred.aux)

    def remainder(self, x: Tensor, s: Tensor) -> Tensor:
        """r at x, where the score is s; both (R, *event)."""
        flat = s.flatten(1)
        if isinstance(self.field, Tensor):
            return (self.field.to(flat) * flat[:, None]).sum(-1).reshape(s.shape)
        rows = x.flatten(1)
        slope = torch.func.vmap(torch.func.jacrev(self.field))(rows)  # (R, D, D, D)
        own = (torch.func.vmap(self.field)(rows) * flat[:, None]).sum(-1)
        return (own + slope.diagonal(dim1=2, dim2=3).sum(-1)).reshape(s.shape)


def transform(denoiser: Denoiser, field: Tensor | Callable[[Tensor], Tensor]) -> Gauged:
    """The denoiser whose score is s + r, for an antisymmetric matrix or field; see `Gauged`.

    Raises EbbError for a matrix that is not antisymmetric, and for a process without a score.
    """
    score_of(denoiser, torch.zeros(1, dtype=torch.float64))
    if isinstance(field, Tensor) and not torch.allclose(field, -field.mT):
        raise EbbError("a gauge matrix must be antisymmetric, C = -C^T: any other changes the law.")
    return Gauged(denoiser, field)


class Report(NamedTuple):
    """asymmetry: |J - J^T| / |J| of the score's Jacobian, root mean squares; residual: E|div r + r.s|, None unasked."""

    asymmetry: float
    residual: float | None


def report(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    truth: Denoiser | None = None,
    *,
    cond: Mapping[str, Tree] | None = None,
    probes: int | None = None,
    seed: int = 0,
) -> Report:
    """How conservative a denoiser is at samples x of p_t and, given the `truth`, how far its remainder breaks the gauge.

    probes   random signs a row (row j draws from seed + j); None: all axes, exact
    """
    score = score_of(denoiser, t, cond)
    noise = Noise(keys(range(seed, seed + len(x))), torch.zeros(len(x), dtype=torch.int64))
    along = directions(x, probes, noise)
    pairs = [products(score, x, v) for v in along.v]
    odd = sum(float((push - pull).double().square().sum()) for push, pull in pairs)
    norm = sum(float(pull.double().square().sum()) for _, pull in pairs)
    if truth is None:
        return Report(math.sqrt(odd / norm), None)
    exact = score_of(truth, t, cond)
    r, spread = divergence(lambda v: score(v) - exact(v), x, along)
    flux = spread + (r * exact(x)).flatten(1).double().sum(1)
    return Report(math.sqrt(odd / norm), float(flux.abs().mean()))


def intrinsic_dim(
    denoiser: Denoiser,
    x0: Tensor,
    t: float,
    *,
    cond: Mapping[str, Tree] | None = None,
    points: int | None = None,
    symmetric: bool = False,
    seed: int = 0,
) -> int:
    """The number of dimensions of the data near one element x0 (*event), from scores around it at a small time t.

    The Jacobian is fitted by least squares to `points` scores (default 8 D) at draws of q(x_t | x0), so any denoiser will
    do. `symmetric` takes its symmetric part first, which removes a remainder whose Jacobian is antisymmetric.
    """
    n = points or 8 * x0.numel()
    noise = Noise(keys(range(seed, seed + n)), torch.zeros(n, dtype=torch.int64))
    times = torch.full((n,), t, dtype=torch.float64)
    given = {k: v.expand(n, *v.shape[1:]) for k, v in (cond or {}).items()}
    process = denoiser.process
    x = process.corrupt(x0.expand(n, *x0.shape), times, noise, given)
    s = score_of(denoiser, times, given)(x)
    dx, ds = ((v - v.mean(0)).flatten(1).double() for v in (x, s))
    j = torch.linalg.lstsq(dx, ds).solution.mT
    j = (j + j.mT) / 2 if symmetric else j
    assert isinstance(process, Affine)
    normal = process.c(times[:1]) ** 2 * torch.linalg.svdvals(j)
    return x0.numel() - int((normal >= 0.5).sum())
