"""Convergence: how far samples are from where the model's own flow would have taken them, for the calls they cost.

    error = |x - x*| / |x*|,   root mean squares over all numbers of all elements, at the end, from the same starts

x* is the model's own fine solution: Heun's method on ever more steps, doubled until the samples stand still. Its error is
given beside it, as the last change that doubling made (three times the error of a method of order 2).

The starts are the same draws: element j of every run has the same z, and begins at c z for the c of its grid's first time,
as it does in `ebb.sample`; x* begins at t = 1. A grid that begins late or stops short of the data therefore carries that
in its error, as its user would.

Calls are counted, not declared: rows the network answers for each sample, so guidance counts twice. Every plan gets the most
steps whose count stays within the budget.

Shapes   x (n, ...) of the model's data; budgets whole numbers of calls
Source   the global error of a numerical method; Hairer, Norsett, Wanner 1993, "Solving ordinary differential equations I",
         section II.3, and section II.4 for the estimate by doubling
Differs  solvers that draw noise have no such error (no path to stay on) and are listed apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.core.time import invert
from ebbtide.measure.survey import Pair, Setting, Watch, called, steps_within

BUDGETS = (5, 8, 10, 15, 20)
KEEP = 24

# -------------------------------------------------------------------- the fine solution


@dataclass(frozen=True, eq=False)
class Reference:
    """The fine solution.

    x      (n, ...) float64
    error  by how much the last doubling of the steps changed it, relative
    calls  each sample cost, all doublings together
    steps  of the last one
    """

    x: Tensor
    error: float
    calls: float
    steps: int


def reference(
    setting: Setting, tol: float = 1e-3, steps: int = 32, most: int = 2048, watch: Watch | None = None
) -> Reference:
    """The model's own fine solution: doubled until it changes by less than `tol`, or stops getting nearer.

    Raises EbbError where it does not stay finite.
    """
    x, spent = setting.run(setting.base.replace(**fine(setting.process, steps)), watch)
    last = math.inf
    while True:
        steps *= 2
        finer, calls = setting.run(setting.base.replace(**fine(setting.process, steps)), watch)
        spent += calls
        change = distance(x, finer)
        if not math.isfinite(change):
            raise EbbError(f"the fine solution of {setting.model.name} does not stay finite; other seeds may.")
        # below some step, rounding is all that changes
        if change <= tol or steps >= most or (change > 0.9 * last and change < 0.01):
            return Reference(finer, change, spent, steps)
        x, last = finer, change


def fine(process: Any, steps: int) -> dict[str, Any]:
    """Solver and grid of a fine run: times even in t and in log-SNR at once, the last noise level falling as 10 / steps^2.

    Both are needed: steps even in t are short where the noise becomes a picture, steps even in log-SNR where its grain goes.
    """
    ends = torch.tensor([1 - 1e-3, 0.0], dtype=torch.float64)
    level = min(0.1, 10 / steps**2)
    ends[1] = process.time(torch.tensor([-math.log(level)], dtype=torch.float64)).clamp_min(1e-7)[0]
    first, last = process.lam(ends).tolist()

    def place(t: Tensor) -> Tensor:
        return (1 - t) / (1 - ends[1]) / 2 + ((process.lam(t) - first) / (last - first)).clamp(0, 1) / 2

    inner = invert(place, torch.arange(1, steps, dtype=torch.float64) / (steps - 1))
    times = [1.0, *inner.tolist(), 0.0]
    return {"solve": "heun", "grid": {"name": "explicit", "times": times}}


def distance(x: Tensor, ref: Tensor) -> float:
    """|x - ref| / |ref|, root mean squares over all numbers; infinite where x is not finite."""
    found = float(((x - ref).square().mean() / ref.square().mean()).sqrt())
    return found if math.isfinite(found) else math.inf


# -------------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Row:
    """One plan at one budget.

    budget  the calls that were allowed, `calls` those counted for each sample, `steps` of the grid
    error   against the fine solution; infinite where some sample did not stay finite
    typical the same for the median sample: a few that went to another mode weigh less
    """

    pair: Pair
    budget: int
    steps: int
    calls: float
    error: float
    typical: float
    seconds: float

    def plan(self, base: Plan) -> Plan:
        """The plan that was run."""
        return self.pair.plan(base, self.steps)


def measure(setting: Setting, ref: Reference, pair: Pair, budget: int, watch: Watch | None = None) -> Row | None:
    """One row; None where not even one step fits the budget."""
    if budget < 1:
        raise EbbError(f"a budget is at least one call, not {budget}.")
    found = steps_within(setting, pair, budget)
    if found is None:
        return None
    steps, _ = found
    started = time.perf_counter()
    x, calls = setting.run(pair.plan(setting.base, steps), watch)
    above = steps + 1 if calls <= budget else steps
    while calls > budget and steps > 1:  # its calls depend on what is predicted
        above, steps = steps, min(steps - 1, max(1, int(steps * budget / calls)))
        x, calls = setting.run(pair.plan(setting.base, steps), watch)
    if calls > budget:
        return None
    while steps + 1 < above:
        more, cost = setting.run(pair.plan(setting.base, steps + 1), watch)
        if cost > budget:
            break
        steps, x, calls = steps + 1, more, cost
    gap = (x - ref.x).flatten(1).square().mean(1).sqrt() / ref.x.square().mean().sqrt()
    typical = float(gap.nan_to_num(math.inf, math.inf).median())
    return Row(pair, budget, steps, calls, distance(x, ref.x), typical, time.perf_counter() - started)


def convergence(
    setting: Setting,
    ref: Reference,
    pairs: Sequence[Pair],
    budgets: Sequence[int] = BUDGETS,
    *,
    keep: int | None = KEEP,
    known: Mapping[tuple[str, int], Row | None] | None = None,
    watch: Watch | None = None,
) -> Iterator[tuple[Pair, int, Row | None]]:
    """The rows of all pairs, the middle budget first; None for a pair with no step so cheap.

    keep    after the middle budget, so many of the best go on, and the best grid of each solver; None: all do
    known   what was measured before, by (name of the pair, budget): given again and not run
    """
    known = known or {}

    def row(pair: Pair, budget: int) -> Row | None:
        key = (pair.name, budget)
        return known[key] if key in known else measure(setting, ref, pair, budget, watch)

    middle = sorted(budgets)[len(budgets) // 2]
    first: list[Row] = []
    for pair in pairs:
        found = row(pair, middle)
        yield pair, middle, found
        first += [] if found is None else [found]
    chosen = pairs if keep is None else best(first, keep)
    for budget in sorted(set(budgets) - {middle}):
        for pair in chosen:
            yield pair, budget, row(pair, budget)


def best(rows: Sequence[Row], keep: int) -> list[Pair]:
    """The pairs of the `keep` smallest errors, and the best of each solver."""
    ordered = sorted(rows, key=lambda r: r.error)
    seen: set[str] = set()
    chosen = []
    for place, r in enumerate(ordered):
        name = called(r.pair.solve)
        if place < keep or name not in seen:
            chosen.append(r.pair)
        seen.add(name)
    return chosen
