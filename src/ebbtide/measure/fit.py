"""Tests of fit: how likely draws this far from a known law are, if they are draws of it.

    chi_square    sum (seen - expected)^2 / expected over cells, against chi^2 with cells - 1 degrees of freedom
    kolmogorov    sup |F_n - F|, against Kolmogorov's law with n^1/2 + 0.12 + 0.11 / n^1/2 for its scale

Cells of which fewer than `least` draws are expected count as one. A draw where none can be is told from the law for sure.

Shapes   counts and probabilities (K,); values of the distribution function (N,). Both give a p-value in [0, 1].
Source   Cochran 1954, "Some methods for strengthening the common chi^2 tests", section 2; Stephens 1970, "Use of the
         Kolmogorov-Smirnov, Cramer-von Mises and related statistics without extensive tables"
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError


def chi_square(seen: Tensor, law: Tensor, least: float = 5.0) -> float:
    """The p-value of counts `seen` (K,) of independent draws under the probabilities `law` (K,), up to a factor.

    Raises EbbError where fewer than two cells are left.
    """
    seen, law = seen.double(), law.double() / law.double().sum()
    if bool((seen[law == 0] > 0).any()):
        return 0.0
    expected = law * seen.sum()
    rare = expected < least
    seen, expected = (torch.cat([v[~rare], v[rare].sum()[None]]) for v in (seen, expected))
    seen, expected = seen[expected > 0], expected[expected > 0]
    if len(seen) < 2:
        raise EbbError(f"a chi-square test needs two cells of {least:g} expected draws; draw more.")
    statistic = ((seen - expected) ** 2 / expected).sum()
    free = torch.tensor(len(seen) - 1.0, dtype=torch.float64)
    return float(torch.special.gammaincc(free / 2, statistic / 2))


def kolmogorov(values: Tensor) -> float:
    """The p-value of draws, given as the values (N,) of their supposed distribution function at each."""
    n = len(values)
    u = values.double().sort().values
    place = torch.arange(n, dtype=torch.float64)
    gap = float(torch.maximum(((place + 1) / n - u).max(), (u - place / n).max()))
    scaled = gap * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))
    if scaled < 0.3:  # the series has not begun to fall; its sum is 1 to five digits
        return 1.0
    terms = [(-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101)]
    return min(max(2 * math.fsum(terms), 0.0), 1.0)


def cells(x: Tensor, sizes: Sequence[int] | int) -> Tensor:
    """How often each sequence of tokens occurs: x (N, L) into counts (prod sizes,), in the order of a table."""
    sizes = [sizes] * x.shape[1] if isinstance(sizes, int) else list(sizes)
    index = torch.zeros(len(x), dtype=torch.int64)
    for column, size in zip(x.cpu().unbind(1), sizes, strict=True):
        index = index * size + column
    return torch.bincount(index, minlength=math.prod(sizes))
