"""Certainty: any figure as an interval.

    value +- z s,   s the standard deviation of the metric over resampled rows,   z the normal quantile of the level

Rows are drawn anew as often as there are rows, with repetition (the bootstrap), or half of them without (the half-sample
jackknife, whose spread is that of the whole set too). Metrics that look at neighbours or count what occurs once need the
halves: a repeated row is its own nearest neighbour, and is not new. Either way only the spread is used and not the place
of the resampled figures, which is biased for distances (repeated rows push them up).

Draws are keyed: the same seed gives the same resamples.

Shapes   samples (N, ...), (M, ...): rows first, whatever a row is
Source   Efron, Tibshirani 1993, "An introduction to the bootstrap", chapters 6 and 13; Shao, Wu 1989, "A general theory
         for jackknife variance estimation", for halves
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys


class Interval(NamedTuple):
    """A figure and its confidence interval."""

    value: float
    low: float
    high: float


def stream(seed: int) -> Noise:
    """Noise that a seed stands for."""
    return Noise(keys([seed]), torch.zeros(1, dtype=torch.int64))


def bootstrap(
    metric: Callable[..., Any],
    *samples: Tensor,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
    paired: bool = False,
    repeat: bool = True,
) -> Interval:
    """`metric(*samples)`, a number, with its confidence interval.

    paired   row j of all samples belongs together (labels read and asked) and is drawn together
    repeat   whether rows are drawn with repetition; False takes half of them, once each

    Raises EbbError for paired samples of different lengths, and for halves of fewer than two rows.
    """
    (found,) = _intervals(lambda *s: (metric(*s),), samples, draws, level, seed, paired, repeat)
    return found


def bootstrap_each(
    metric: Callable[..., Any],
    *samples: Tensor,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
    paired: bool = False,
    repeat: bool = True,
) -> dict[str, Interval]:
    """Every field of a metric that gives a named tuple of numbers, by name, from one set of resamples; see `bootstrap`."""
    names = metric(*samples)._fields
    return dict(zip(names, _intervals(metric, samples, draws, level, seed, paired, repeat), strict=True))


def _intervals(
    metric: Callable[..., tuple[Any, ...]],
    samples: tuple[Tensor, ...],
    draws: int,
    level: float,
    seed: int,
    paired: bool,
    repeat: bool,
) -> list[Interval]:
    lengths = {len(v) for v in samples}
    if paired and len(lengths) > 1:
        raise EbbError(f"paired samples belong together row by row, but there are {sorted(lengths)} rows.")
    if not repeat and min(lengths) < 2:
        raise EbbError("half of a single row is none: draw with repetition, or give more rows.")
    noise = stream(seed)

    def pick(k: int, j: int, v: Tensor) -> Tensor:
        lots = noise.fold(k).uniform((1, len(v)), 0 if paired else j)[0]
        rows = (lots * len(v)).long() if repeat else lots.argsort()[: len(v) // 2]
        return v[rows.to(v.device)]

    values = [float(v) for v in metric(*samples)]
    found = [
        [float(f) for f in metric(*(pick(k, j, v) for j, v in enumerate(samples)))]
        for k in range(draws)
    ]  # fmt: skip
    z = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
    halves = [z * float(torch.tensor(column, dtype=torch.float64).std()) for column in zip(*found, strict=True)]
    return [Interval(v, v - h, v + h) for v, h in zip(values, halves, strict=True)]
