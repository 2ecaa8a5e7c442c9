"""Manifolds: whether samples look like data, and whether all kinds of data are among them.

    B(z, Z) the ball round z that reaches to its k-th nearest neighbour in Z, z itself left out
    precision   share of samples in some ball round data         quality
    recall      share of data in some ball round samples         variety
    density     balls round data that hold a sample, a k-th of their number on average: above 1 in dense places
    coverage    share of balls round data that hold some sample
    spread      mean distance of two samples
    vendi       exp(-sum l log l), l the eigenvalues of K / N: how many unlike samples there are, 1 to N

Outliers among the data make its balls large, which lifts precision; density and coverage hardly mind.

Shapes   samples (N, ...) and data (M, ...), flattened to rows (N, D) float64: features, rather than pixels
Paper    Kynkaanniemi et al. 2019, "Improved precision and recall metric" (arXiv 1904.06991), section 2; Naeem et al. 2020,
         "Reliable fidelity and diversity metrics" (2002.09797), section 3; Friedman, Dieng 2023, "The Vendi score"
         (2210.02410), definition 3.1
Differs  ties count as within a ball
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.measure.distances import rows_of

_BLOCK = 512


class Manifold(NamedTuple):
    """What the neighbours say: precision and density of samples, recall and coverage of data."""

    precision: float
    recall: float
    density: float
    coverage: float


def _cdist(a: Tensor, b: Tensor) -> Tensor:
    """Distances by differences: those by products lose the small ones, which decide who is a neighbour."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def radii(x: Tensor, k: int) -> Tensor:
    """The distance of every row to its k-th nearest other row, (N,)."""
    out = []
    for start in range(0, len(x), _BLOCK):
        away = _cdist(x[start : start + _BLOCK], x)
        own = torch.arange(len(away), device=x.device)
        away[own, start + own] = -1.0
        out.append(away.kthvalue(k + 1, dim=1).values)
    return torch.cat(out)


def manifold(x: Tensor, data: Tensor, k: int = 5) -> Manifold:
    """All four for samples x and data. Raises EbbError where a side has no more than k rows."""
    x, data = rows_of(x, data)
    if not 1 <= k < min(len(x), len(data)):
        raise EbbError(f"the {k}-th neighbour needs more than {k} rows on each side, not {len(x)} and {len(data)}.")
    of_x, of_data = radii(x, k), radii(data, k)
    held = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # balls round data that hold a sample
    known = torch.zeros(len(data), dtype=torch.bool, device=x.device)  # data within a ball round samples
    covered = torch.zeros_like(known)
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        away = _cdist(x[rows], data)
        within = away <= of_data
        held[rows] = within.sum(1)
        covered |= within.any(0)
        known |= (away <= of_x[rows, None]).any(0)
    share = lambda v: float(v.double().mean())  # noqa: E731
    return Manifold(share(held > 0), share(known), share(held) / k, share(covered))


def spread(x: Tensor) -> float:
    """The mean distance of two different samples. Raises EbbError for fewer than two."""
    x, _ = rows_of(x, x)
    if len(x) < 2:
        raise EbbError("a mean distance needs at least two samples.")
    total = torch.stack([_cdist(part, x).sum() for part in x.split(_BLOCK)]).sum()
    return float(total) / (len(x) * (len(x) - 1))


def vendi(x: Tensor) -> float:
    """The Vendi score under the cosine of rows: the effective number of unlike samples.

    Raises EbbError where a row is zero and so has no direction.
    """
    x, _ = rows_of(x, x)
    length = x.norm(dim=1, keepdim=True)
    if not bool((length > 0).all()):
        raise EbbError("a row of zeros has no direction: the Vendi score compares directions of features.")
    u = x / length
    gram = u @ u.T if len(u) <= u.shape[1] else u.T @ u  # the same eigenvalues but for zeros
    eigen = torch.linalg.eigvalsh(gram / len(u)).clamp_min(0)
    return float(torch.special.entr(eigen).sum().exp())
