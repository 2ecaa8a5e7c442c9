"""How alike two sets of graphs are: maximum mean discrepancies of degrees, clustering and spectra.

    MMD^2 = E k(p, p') + E k(q, q') - 2 E k(p, q),   k(p, q) = exp(-W(p, q)^2 / (2 s^2)),   W = integral |F_p - F_q|

p is the histogram of one graph: of degrees in whole numbers (s = 1), of clustering coefficients in 100 bins of [0, 1], W in
units of [0, 1] (s = 0.1), of the eigenvalues of I - D^-1/2 A D^-1/2 in 200 bins of [0, 2], W in bins (s = 1).

Shapes   adjacency (n, N, N) of 0 and 1; nodes without an edge are not there. All figures are floats.
Source   You et al. 2018 (arXiv 1802.08773), section 4.3, for the measure; Jo et al. 2022 (2202.02514), appendix, for the
         widths. Expectations are over all pairs, a graph with itself too, as theirs
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError

STATISTICS = ("degree", "clustering", "spectrum")
_WIDTH = {"degree": 1.0, "clustering": 0.1, "spectrum": 1.0}
_STEP = {"degree": 1.0, "clustering": 0.01, "spectrum": 1.0}


def histograms(adjacency: Tensor, statistic: str) -> Tensor:
    """Of each graph, (n, bins), summing to 1 (all in the first bin where a graph has no edge)."""
    a = adjacency.double()
    if a.ndim != 3 or a.shape[1] != a.shape[2] or not torch.equal(a, a.mT):
        raise EbbError(f"graphs are symmetric matrices (n, N, N), not {tuple(a.shape)}.")
    degree = a.sum(-1)
    here = degree > 0
    if statistic == "degree":
        value, bins, top = degree, a.shape[-1], float(a.shape[-1])
    elif statistic == "clustering":
        triangles = (a @ a @ a).diagonal(dim1=1, dim2=2)
        pairs = degree * (degree - 1)
        value, bins, top = torch.where(pairs > 0, triangles / pairs.clamp_min(1), 0.0), 100, 1.0
    elif statistic == "spectrum":
        root = torch.where(here, degree.clamp_min(1) ** -0.5, 0.0)
        # nodes that are not there are sent above the range, so their eigenvalues can be told
        laplacian = torch.diag_embed(torch.where(here, 1.0, 9.0)) - root[:, :, None] * a * root[:, None]
        value = torch.linalg.eigvalsh(laplacian)
        here, bins, top = value < 5, 200, 2.0
    else:
        raise EbbError(f"there is no statistic {statistic!r} of graphs; known: {', '.join(STATISTICS)}.")
    place = (value * (bins / top) + 1e-9).long().clamp(0, bins - 1)
    count = torch.zeros(len(a), bins, dtype=torch.float64).scatter_add_(1, place, here.double())
    none = ~here.any(1)
    count[:, 0] += none.double()
    return count / count.sum(1, keepdim=True)


def mmd(one: Tensor, other: Tensor, statistic: str) -> float:
    """The squared maximum mean discrepancy of two sets of graphs in one statistic."""
    p, q = (histograms(v, statistic).cumsum(1) for v in (one, other))
    size = max(p.shape[1], q.shape[1])
    p, q = (torch.nn.functional.pad(v, (0, size - v.shape[1]), value=1.0) for v in (p, q))

    def mean(a: Tensor, b: Tensor) -> float:
        apart = torch.cdist(a, b, p=1) * _STEP[statistic]
        return float((-((apart / _WIDTH[statistic]) ** 2) / 2).exp().mean())

    return mean(p, p) + mean(q, q) - 2 * mean(p, q)


def discrepancies(one: Tensor, other: Tensor) -> dict[str, float]:
    """`mmd` in every statistic."""
    return {name: mmd(one, other, name) for name in STATISTICS}
