"""Distances between sets of samples.

    frechet_distance   |m - n|^2 + tr S + tr T - 2 tr (S^1/2 T S^1/2)^1/2          of Gaussians fitted to both sets
    kernel_distance    E k(X, X') + E k(Y, Y') - 2 E k(X, Y),  k = (x.y / D + 1)^3  the unbiased estimate
    energy_distance    2 E|X - Y| - E|X - X'| - E|Y - Y'|                          zero only for equal laws
    energy_test        the same, against its law under permutations of the pooled rows
    sliced_w2          (E_u W2^2(u.X, u.Y))^1/2                                    u uniform on the sphere
    nearest_distance   min_j |x - y_j| of every row x

Everything is float64. Draws are keyed: the same seed gives the same directions and permutations.

Shapes   samples (N, ...) and (M, ...), flattened to rows (N, D); distances are floats in the units of the rows, squared
         for the Frechet distance, as the field reports it
Source   Heusel et al. 2017 (arXiv 1706.08500), eq. 6; Dowson, Landau 1982, "The Frechet distance between multivariate
         normal distributions"; Binkowski et al. 2018, "Demystifying MMD GANs" (1801.01401), section 4; Szekely, Rizzo
         2013, "Energy statistics"; Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters"
Differs  the kernel distance is taken over all rows at once, where the paper averages over subsets of 1,000
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.measure.certainty import stream

_BLOCK = 512


class TwoSample(NamedTuple):
    """The outcome of a two-sample test.

    distance   the energy distance measured
    p          share of permutations that are at least as far apart, this one counted among them
    null       the distance that 95 percent of permutations stay below
    """

    distance: float
    p: float
    null: float


def rows_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as finite float64 rows of one width."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 1:
        raise EbbError(f"two sets of samples need rows of one size, not {tuple(x.shape)} and {tuple(y.shape)}.")
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise EbbError("these samples hold values that are not finite; leave out the rows that `failed` lists.")
    return x, y


# -------------------------------------------------------------------- Gaussians


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of rows. Raises EbbError for fewer than two."""
    rows = x.flatten(1).double()
    if len(rows) < 2:
        raise EbbError("a covariance needs at least two samples.")
    return rows.mean(0), rows.T.cov().reshape(rows.shape[1], -1)


def frechet(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> float:
    """The squared Frechet (Wasserstein-2) distance between two Gaussians given by mean (D,) and covariance (D, D).

    The root is taken of the symmetric S^1/2 T S^1/2, whose eigenvalues are those of S T, so no complex numbers appear.
    """
    s, t = cov.double(), other_cov.double()
    value, axes = torch.linalg.eigh(s)
    root = (axes * value.clamp_min(0).sqrt()) @ axes.T
    cross = torch.linalg.eigvalsh(root @ t @ root).clamp_min(0).sqrt().sum()
    far = (mean.double() - other_mean.double()).square().sum()
    return max(float(far + s.trace() + t.trace() - 2 * cross), 0.0)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The squared Frechet distance between Gaussians fitted to two sets of samples or features."""
    x, y = rows_of(x, y)
    return frechet(*moments(x), *moments(y))


# -------------------------------------------------------------------- kernels


def kernel_distance(x: Tensor, y: Tensor, degree: int = 3, scale: float | None = None, offset: float = 1.0) -> float:
    """The squared maximum mean discrepancy under k(a, b) = (scale a.b + offset)^degree, scale 1 / D unless given.

    Unbiased, so it is below 0 about as often as above where both laws are the same: no row is compared with itself.
    Raises EbbError for a set of fewer than two.
    """
    x, y = rows_of(x, y)
    if min(len(x), len(y)) < 2:
        raise EbbError("a kernel distance needs at least two samples on each side.")
    scale = 1 / x.shape[1] if scale is None else scale

    def total(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([(scale * (part @ b.T) + offset).pow(degree).sum() for part in a.split(_BLOCK)]).sum()

    def within(a: Tensor) -> Tensor:
        own = (scale * a.square().sum(1) + offset).pow(degree).sum()
        return (total(a, a) - own) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y)))


# -------------------------------------------------------------------- any law


def _energies(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """-w^T D w for each column w of weights (N + M, K), where D holds all distances; in blocks of rows."""
    rows = torch.cat([x, y])
    blocks = zip(rows.split(_BLOCK), weights.split(_BLOCK), strict=True)
    return -torch.stack([(w * (torch.cdist(part, rows) @ weights)).sum(0) for part, w in blocks]).sum(0)


def _signed(n: int, m: int) -> Tensor:
    """1 / N for the rows of one set, -1 / M for those of the other: with them the energy distance is -w^T D w."""
    return torch.cat([torch.full((k,), 1 / w, dtype=torch.float64) for k, w in ((n, n), (m, -m))])


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of the two empirical laws, at least 0."""
    x, y = rows_of(x, y)
    w = _signed(len(x), len(y)).to(x.device)
    return max(float(_energies(x, y, w[:, None])), 0.0)


def energy_test(x: Tensor, y: Tensor, draws: int = 299, seed: int = 0) -> TwoSample:
    """Whether two sets of samples may come from one law: exact at every size, as rows are exchangeable if they do."""
    x, y = rows_of(x, y)
    w = _signed(len(x), len(y)).to(x.device)
    order = stream(seed).uniform((1, draws, len(w)))[0].argsort(1).to(x.device)
    found = _energies(x, y, torch.cat([w[None], w[order]]).T)
    extreme = int((found[1:] >= found[0] * (1 - 1e-12)).sum())
    return TwoSample(float(found[0]), (1 + extreme) / (1 + draws), float(found[1:].quantile(0.95)))


def sliced_w2(x: Tensor, y: Tensor, slices: int = 128, seed: int = 0) -> float:
    """The sliced Wasserstein-2 distance over random directions; each slice is exact, for sets of unequal size too."""
    x, y = rows_of(x, y)
    u = stream(seed).normal(torch.zeros(1, slices, x.shape[1], dtype=torch.float64))[0].to(x.device)
    u = u / u.norm(dim=1, keepdim=True)
    a, b = ((v @ u.T).sort(0).values for v in (x, y))
    # quantile functions are steps: between two neighbours of the pooled levels both are constant
    levels = torch.cat([torch.arange(1, len(v) + 1, dtype=torch.float64) / len(v) for v in (a, b)]).sort().values
    width = levels.diff(prepend=torch.zeros(1, dtype=torch.float64))
    middle = levels - width / 2
    i, j = ((middle * len(v)).long().clamp(max=len(v) - 1).to(x.device) for v in (a, b))
    return float((width.to(x.device)[:, None] * (a[i] - b[j]) ** 2).sum(0).mean().sqrt())


def nearest_distance(x: Tensor, data: Tensor) -> Tensor:
    """The distance of every row of x to the nearest row of data, (N,) float64."""
    x, data = rows_of(x, data)
    return torch.cat(
        [torch.stack([torch.cdist(r, p).amin(1) for p in data.split(8192)]).amin(0) for r in x.split(_BLOCK)]
    )
