"""Ablation: one thing of a plan is changed at a time, and every change is held against the plan as it was.

    ratio = figure(changed) / figure(base),   its interval exp(log ratio +- z s),   s from pairs drawn anew (the bootstrap)
    verdict   "better" or "worse" where the interval leaves 1 out, "no difference" where it holds it

    calls       network evaluations of a sample                              the lower the better
    frechet     distance of features to those of data, all samples together  the lower the better
    inception   inception score under a classifier                           the higher the better
    accuracy    share that it reads as the class asked for                   the higher the better
    diversity   mean distance of features of two samples of a class          the higher the better

Both sides are asked for the same labels from the same seeds (common random numbers), so sample j of one and sample j of the
other are a pair; pairs are drawn anew together, and what both have in common leaves the interval. A change that fails is
a row like any other.

Shapes   samples (repeats * n, ...); repeat r has the seeds after those of repeat r - 1, and the same labels
Source   Heusel et al. 2017 (arXiv 1706.08500) and Salimans et al. 2016 (1606.03498) for the figures; Efron, Tibshirani
         1993, "An introduction to the bootstrap", chapter 13; common random numbers: Glasserman, Yao 1992, "Some
         guidelines and guarantees for common random numbers"
Differs  each interval is of its figure alone: of twenty null figures one is expected to stray at level 0.95.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebbtide import api
from ebbtide.core import registry
from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.plan import Plan
from ebbtide.denoise.model import Model
from ebbtide.measure import metrics as m
from ebbtide.measure.survey import called

LOWER = ("calls", "frechet")
BETTER, WORSE, SAME = "better", "worse", "no difference"
MODEL = "model"
"""The slot that models are swapped in; all others are those of a plan."""

_LEAST = 1e-12  # a figure of 0 has no logarithm


class Figures(NamedTuple):
    """What is measured of samples; see above."""

    frechet: float
    inception: float
    accuracy: float
    diversity: float


@dataclass(frozen=True, eq=False)
class Judge:
    """What samples are read by.

    features   pixels to rows (N, D)
    logits     pixels to (N, C)
    moments    mean (D,) and covariance (D, D) of the features of data
    """

    features: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    moments: tuple[Tensor, Tensor]

    def figures(self, features: Tensor, logits: Tensor, labels: Tensor) -> Figures:
        """All figures of samples that were asked for under these labels (N,)."""
        return Figures(
            m.frechet(*self.moments, *m.moments(features)),
            m.inception_score(logits),
            m.agreement(logits.argmax(1), labels),
            diversity(features, labels),
        )


def diversity(features: Tensor, labels: Tensor) -> float:
    """The mean distance of two samples of one class, over classes. Raises EbbError where no class has two."""
    classes = [features[labels == k] for k in labels.unique().tolist()]
    spreads = [m.spread(rows) for rows in classes if len(rows) > 1]
    if not spreads:
        raise EbbError("diversity is that of samples of one class: ask for more of each label.")
    return math.fsum(spreads) / len(spreads)


class Run(NamedTuple):
    """The samples of one plan, as the judge sees them.

    features, logits   (N, D) and (N, C)
    labels             asked for, (N,)
    calls              of one sample
    each               samples of a repeat
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    calls: float
    each: int

    def repeats(self) -> list[Run]:
        """The run of every repeat by itself."""
        parts = zip(*(v.split(self.each) for v in (self.features, self.logits, self.labels)), strict=True)
        return [self._replace(features=f, logits=p, labels=y) for f, p, y in parts]


class Change(NamedTuple):
    """One figure of both sides: their ratio as an interval, that of each repeat, and what it says."""

    base: float
    other: float
    ratio: m.Interval
    repeats: tuple[float, ...]
    verdict: str


class Row(NamedTuple):
    """One swap: the slot, what stands in it now, and every figure by its name."""

    slot: str
    name: str
    changes: dict[str, Change]


@dataclass(frozen=True, eq=False)
class Trial:
    """What all runs of an ablation share; a plan that stands in several is drawn once.

    labels    asked for in each repeat
    repeats   of seeds: repeat r begins at seed + r len(labels)
    draws     resamples of an interval at this `level`
    batch     samples at a time
    """

    judge: Judge
    labels: Sequence[int]
    repeats: int = 3
    seed: int = 0
    draws: int = 200
    level: float = 0.95
    batch: int | None = None
    _kept: dict[tuple[Model, str], Run] = field(default_factory=dict, repr=False)

    def run(self, model: Model, plan: Plan) -> Run:
        """The samples of a plan. Raises EbbError for a plan that does not fit, and samples that are not finite."""
        key = model, plan.to_json()
        if key not in self._kept:
            self._kept[key] = self._drawn(model, plan)
        return self._kept[key]

    def _drawn(self, model: Model, plan: Plan) -> Run:
        asked = [*self.labels] * self.repeats
        made = api.sample(model, plan, cond=asked, n=len(asked), seed=self.seed, batch=self.batch)
        if made.failed:
            raise EbbError(f"{model.name} under {_told(plan.solve)}: {made.failed[0]}; there is nothing to compare.")
        pixels: Any = made.pixels
        with torch.no_grad():
            seen = self.judge.features(pixels), self.judge.logits(pixels)
        return Run(*seen, torch.tensor(asked), made.calls / len(asked), len(self.labels))

    def contrast(self, base: Run, other: Run) -> dict[str, Change]:
        """Every figure of `other` against that of `base`."""
        judge = self.judge
        figures = judge.figures(*base[:3]), judge.figures(*other[:3])
        ratios = m.bootstrap_each(
            lambda f, p, g, q, labels: _ratios(judge.figures(f, p, labels), judge.figures(g, q, labels)),
            *base[:2],
            *other[:3],
            draws=self.draws,
            level=self.level,
            paired=True,
        )
        pairs = zip(base.repeats(), other.repeats(), strict=True)
        apart = [_ratios(judge.figures(*a[:3]), judge.figures(*b[:3])) for a, b in pairs]
        cost = other.calls / base.calls
        found = {"calls": _change("calls", base.calls, other.calls, m.Interval(cost, cost, cost), (cost,) * len(apart))}
        for name, ratio in ratios.items():
            own = tuple(math.exp(getattr(r, name)) for r in apart)
            before, after = (getattr(f, name) for f in figures)
            found[name] = _change(name, before, after, m.Interval(*map(math.exp, ratio)), own)
        return found


def ablate(trial: Trial, model: Model, plan: Plan, swaps: Mapping[str, Sequence[Any]]) -> list[Row]:
    """A row for every alternative, with nothing else changed.

    swaps   for each slot of the plan its alternatives, each as the plan would hold it (a name, a part with parameters, a
            list of them for guides, None for none); under "model" other models, each in its own process

    Raises EbbError for a slot that there is not, and where a plan does not fit.
    """
    known = (*registry.SLOTS, MODEL)
    for slot in swaps:
        if slot not in known:
            raise EbbError(f"there is no slot {slot!r} to swap; {nearest(slot, known)}")
    tried = [(slot, *swapped(model, plan, slot, other)) for slot, others in swaps.items() for other in others]
    base = trial.run(model, plan)
    return [
        Row(slot, one.name if slot == MODEL else _told(getattr(made, slot)), trial.contrast(base, trial.run(one, made)))
        for slot, one, made in tried
    ]


def swapped(model: Model, plan: Plan, slot: str, other: Any) -> tuple[Model, Plan]:
    """Model and plan with this alternative in one slot. Raises EbbError where the plan cannot be."""
    return (other, plan) if slot == MODEL else (model, plan.replace(**{slot: other}))


def table(rows: Sequence[Row]) -> str:
    """The rows as text: a ratio, its interval and what it says, for every figure."""
    lines: list[tuple[str, ...]] = [("slot", "swap", "calls", *Figures._fields)]
    for row in rows:
        cells = [
            f"{c.ratio.value:.3g} [{c.ratio.low:.3g}, {c.ratio.high:.3g}] {c.verdict}" for c in row.changes.values()
        ]
        lines.append((row.slot, row.name, *cells))
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(v.ljust(w) for v, w in zip(line, wide, strict=True)).rstrip() for line in lines)


# -------------------------------------------------------------------- ratios


def _ratios(base: Figures, other: Figures) -> Figures:
    """The logarithms of all ratios."""
    return Figures(*(math.log(max(o, _LEAST) / max(b, _LEAST)) for b, o in zip(base, other, strict=True)))


def _change(name: str, base: float, other: float, ratio: m.Interval, repeats: tuple[float, ...]) -> Change:
    if ratio.low <= 1 <= ratio.high:
        return Change(base, other, ratio, repeats, SAME)
    return Change(base, other, ratio, repeats, BETTER if (ratio.high < 1) == (name in LOWER) else WORSE)


def _told(specs: Any) -> str:
    """What a slot holds, in words."""
    listed = specs if isinstance(specs, list | tuple) else [] if specs is None else [specs]
    return " + ".join(called(spec) for spec in listed) or "none"
