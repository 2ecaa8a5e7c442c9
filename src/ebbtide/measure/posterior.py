"""The posterior as restorations of one measurement show it: what they agree on, where they differ, how well they fit.

    mean, std       of each number over the n restorations of a measurement (std with n - 1)
    residual        |A(x) - y| / M^1/2 of each, M numbers in y: about `noise` for a draw from the posterior
    coverage        how often the k-th smallest and k-th largest of n restorations have the truth between them; for draws
                    from the true posterior, truth and draws are exchangeable, so this is (n + 1 - 2 k) / (n + 1)

Shapes   restorations (n, ...) of one measurement; for coverage (T, n, ...) and truths (T, ...)
Source   ranks of exchangeable draws: Talts et al. 2018, "Validating Bayesian inference algorithms" (arXiv 1804.06788), th. 1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.tree import Tree
from ebbtide.measure import operators
from ebbtide.measure.functions import Spec


class Posterior(NamedTuple):
    """What n restorations of one measurement say.

    mean, std  (...) of each number; std is 0 where n = 1
    residual   (n,) root mean square of A(x) - y
    noise      that of the measurement, as its operator says
    """

    mean: Tensor
    std: Tensor
    residual: Tensor
    noise: float

    @property
    def misfit(self) -> float:
        """The mean residual in units of the noise; infinite without noise, unless the fit is exact."""
        worst = float(self.residual.mean())
        return worst / self.noise if self.noise > 0 else (torch.inf if worst > 0 else 1.0)


class Coverage(NamedTuple):
    """How often the truth lay between two restorations, and how often it should."""

    expected: float
    found: float


def posterior(x: Tensor, operator: Spec, cond: Mapping[str, Tree]) -> Posterior:
    """The report on restorations x (n, ...) whose conditions hold one measurement.

    Raises EbbError as `measure.operators` does, and where the restorations are of several measurements.
    """
    op = operators.find(operator, cond)
    y = op.measured
    if len(y) != len(x) or bool((y != y[:1]).any()):
        raise EbbError("a posterior report is on restorations of one measurement: give those of one at a time.")
    rows = x.double()
    std = rows.std(0) if len(x) > 1 else torch.zeros_like(rows[0])
    return Posterior(rows.mean(0), std, op.residual(x).double().square().mean(1).sqrt(), op.noise)


def coverage(truth: Tensor, restored: Tensor, k: int = 1) -> Coverage:
    """How often truths (T, ...) lie between the k-th smallest and the k-th largest of restorations (T, n, ...).

    Raises EbbError for shapes that do not fit, and for a k that leaves nothing between.
    """
    n = restored.shape[1]
    if restored.shape != (len(truth), n, *truth.shape[1:]):
        raise EbbError(
            f"coverage wants n restorations of each truth, (T, n, ...): these are {tuple(restored.shape)} of "
            f"{tuple(truth.shape)}."
        )
    if not 1 <= k <= n // 2:
        raise EbbError(f"of {n} restorations, k is between 1 and {n // 2}, not {k}.")
    rows = restored.double().sort(1).values
    inside = (truth.double() >= rows[:, k - 1]) & (truth.double() <= rows[:, n - k])
    return Coverage((n + 1 - 2 * k) / (n + 1), float(inside.double().mean()))


def sheet(report: Posterior, measured: Tensor, x: Tensor) -> Tensor:
    """Pictures side by side, (3 + n, C, H, W) in [-1, 1]: what was measured, mean, std (white is 1) and restorations.

    A measurement of another size is enlarged, one of fewer channels repeated.
    """
    seen = measured[None].to(report.mean)
    if seen.shape[-2:] != x.shape[-2:]:
        seen = torch.nn.functional.interpolate(seen, x.shape[-2:], mode="nearest")
    seen = seen.expand(1, x.shape[1], *x.shape[2:])
    return torch.cat([seen, report.mean[None], (2 * report.std - 1).clamp(max=1)[None], x.to(report.mean)])
