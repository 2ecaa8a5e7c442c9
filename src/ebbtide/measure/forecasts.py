"""How good a set of forecasts is: CRPS, coverage of quantiles, and the seasonal naive forecast to hold them against.

    CRPS(F, y) = E|X - y| - E|X - X'| / 2,   X, X' ~ F   =   2 integral_0^1 max(q (y - F^-1(q)), (q - 1)(y - F^-1(q))) dq

Of n samples the second expectation is over all pairs of different ones, so the figure does not hang on n.

Shapes   samples (..., n, H), truth (..., H)
Source   Gneiting & Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", eq. 21
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """The continuous ranked probability score of every number, shaped like truth, float64; one sample gives |x - y|.

    Raises EbbError for shapes that do not fit.
    """
    if samples.shape[:-2] + samples.shape[-1:] != truth.shape:
        raise EbbError(f"samples of shape {tuple(samples.shape)} are no forecasts of {tuple(truth.shape)}.")
    x, y = samples.double().sort(dim=-2).values, truth.double()
    n = x.shape[-2]
    miss = (x - y.unsqueeze(-2)).abs().mean(-2)
    if n == 1:
        return miss
    rank = 2 * torch.arange(1, n + 1, dtype=torch.float64, device=x.device) - n - 1
    return miss - (rank[:, None] * x).sum(-2) / (n * (n - 1))


def coverage(samples: Tensor, truth: Tensor, levels: Sequence[float]) -> Tensor:
    """How often the truth lies at or below each quantile of the samples, (len(levels),); a calibrated set gives `levels`."""
    q = torch.tensor(levels, dtype=torch.float64, device=samples.device)
    bounds = samples.double().quantile(q, dim=-2)
    return (truth.double() <= bounds).double().flatten(1).mean(1)


def seasonal_naive(context: Tensor, horizon: int, period: int) -> Tensor:
    """The last season again and again, (..., horizon). Raises EbbError for a context (..., C) shorter than a season."""
    if context.shape[-1] < period:
        raise EbbError(f"a context of {context.shape[-1]} holds no season of {period}.")
    return context[..., -period + torch.arange(horizon) % period]


def levels(windows: int, n: int) -> Tensor:
    """The levels j / (n + 1), j = 1 ... n, of n samples for each of some windows, (windows * n,) float64."""
    return (torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)).repeat(windows)
