"""Distances between sets of samples, and how sure they are.

    frechet_distance   |m - n|^2 + tr S + tr T - 2 tr (S^1/2 T S^1/2)^1/2          of Gaussians fitted to both sets
    energy_distance    2 E|X - Y| - E|X - X'| - E|Y - Y'|                          zero only for equal laws
    energy_test        the same, against its law under permutations of the pooled rows
    sliced_w2          (E_u W2^2(u.X, u.Y))^1/2                                    u uniform on the sphere
    nearest_distance   min_j |x - y_j| of every row x
    agreement          share of samples that a classifier reads as the class asked for
    bootstrap          any of them as an interval: resample rows, keep the spread

Everything is float64. Draws are keyed: the same seed gives the same directions, permutations and resamples.

Shapes   samples (N, ...) and (M, ...), flattened to rows (N, D); distances are floats in the units of the rows, squared
         for the Frechet distance, as the field reports it
Source   Heusel et al. 2017 (arXiv 1706.08500), eq. 6; Dowson, Landau 1982, "The Frechet distance between multivariate
         normal distributions"; Szekely, Rizzo 2013, "Energy statistics"; Bonneel et al. 2015,
         "Sliced and Radon Wasserstein barycenters"; Efron, Tibshirani 1993, "An introduction to the bootstrap"
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys

_BLOCK = 512


class Interval(NamedTuple):
    """A figure and its confidence interval."""

    value: float
    low: float
    high: float


class TwoSample(NamedTuple):
    """The outcome of a two-sample test.

    distance   the energy distance measured
    p          share of permutations that are at least as far apart, this one counted among them
    null       the distance that 95 percent of permutations stay below
    """

    distance: float
    p: float
    null: float


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as finite float64 rows of one width."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 1:
        raise EbbError(f"two sets of samples need rows of one size, not {tuple(x.shape)} and {tuple(y.shape)}.")
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise EbbError("these samples hold values that are not finite; leave out the rows that `failed` lists.")
    return x, y


def _stream(seed: int) -> Noise:
    return Noise(keys([seed]), torch.zeros(1, dtype=torch.int64))


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
    x, y = _pair(x, y)
    return frechet(*moments(x), *moments(y))


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
    x, y = _pair(x, y)
    w = _signed(len(x), len(y)).to(x.device)
    return max(float(_energies(x, y, w[:, None])), 0.0)


def energy_test(x: Tensor, y: Tensor, draws: int = 299, seed: int = 0) -> TwoSample:
    """Whether two sets of samples may come from one law: exact at every size, as rows are exchangeable if they do."""
    x, y = _pair(x, y)
    w = _signed(len(x), len(y)).to(x.device)
    order = _stream(seed).uniform((1, draws, len(w)))[0].argsort(1).to(x.device)
    found = _energies(x, y, torch.cat([w[None], w[order]]).T)
    extreme = int((found[1:] >= found[0] * (1 - 1e-12)).sum())
    return TwoSample(float(found[0]), (1 + extreme) / (1 + draws), float(found[1:].quantile(0.95)))


def sliced_w2(x: Tensor, y: Tensor, slices: int = 128, seed: int = 0) -> float:
    """The sliced Wasserstein-2 distance over random directions; each slice is exact, for sets of unequal size too."""
    x, y = _pair(x, y)
    u = _stream(seed).normal(torch.zeros(1, slices, x.shape[1], dtype=torch.float64))[0].to(x.device)
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
    x, data = _pair(x, data)
    return torch.cat(
        [torch.stack([torch.cdist(r, p).amin(1) for p in data.split(8192)]).amin(0) for r in x.split(_BLOCK)]
    )


# -------------------------------------------------------------------- labels, and certainty


def reads(classifier: Callable[[Tensor], Tensor], x: Tensor, batch: int = 500) -> Tensor:
    """The classes (N,) that a classifier, x to logits (N, C), reads in samples."""
    with torch.no_grad():
        return torch.cat([classifier(part).argmax(-1) for part in x.split(batch)])


def agreement(read: Tensor, asked: Tensor) -> float:
    """The share of samples read as the class asked for. Raises EbbError unless there is one label for each."""
    if read.shape != asked.shape or not len(read):
        raise EbbError(f"give one label for each sample, not {len(asked)} for {len(read)}.")
    return float((read == asked.to(read)).double().mean())


def bootstrap(
    metric: Callable[..., Any],
    *samples: Tensor,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
    paired: bool = False,
) -> Interval:
    """`metric(*samples)` with its confidence interval, value +- z * the standard deviation over resampled rows.

    A resample repeats rows, which pushes distances up, so of the bootstrap only the spread is used, not the percentiles.
    `paired`: row j of all samples belongs together (labels read and asked) and is drawn together.
    """
    noise, value = _stream(seed), float(metric(*samples))
    found = []
    for k in range(draws):
        picks = [
            (noise.fold(k).uniform((1, len(v)), 0 if paired else j)[0] * len(v)).long().to(v.device)
            for j, v in enumerate(samples)
        ]
        found.append(float(metric(*(v[i] for v, i in zip(samples, picks, strict=True)))))
    z = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
    half = z * float(torch.tensor(found, dtype=torch.float64).std())
    return Interval(value, value - half, value + half)
