"""The work of `ebb solvers`, row by row into a record, and the bar that goes along with it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from ebbtide.app.progress import clock, rest
from ebbtide.app.record import Record
from ebbtide.app.screen import Live
from ebbtide.app.stopping import Stop
from ebbtide.core.state import Step
from ebbtide.measure import convergence as cv
from ebbtide.measure import survey as sv

_TOL = 1e-6


def fill(
    record: Record,
    setting: sv.Setting,
    pairs: Sequence[sv.Pair],
    budgets: Sequence[int],
    fine: int,
    keep: int | None,
    quiet: bool,
) -> tuple[cv.Reference | None, int]:
    """Measure what the record lacks; gives the fine solution, None where it was not reached, and the exit code."""
    guided = math.prod(g.calls for g in setting.base.parts("guide"))
    middle, others = budgets[len(budgets) // 2], sum(budgets) - budgets[len(budgets) // 2]
    going = len(pairs) if keep is None else min(len(pairs), keep + len({sv.called(p.solve) for p in pairs}))
    show = Show(setting.model.name, 2 * guided * (fine + (fine + 1) // 2), quiet)
    show.total += middle * len(pairs) + others * going
    ref, first = None, []
    with show, Stop(show.stopping) as stop:

        def watch(step: Step) -> None:
            show.calls(step.calls / setting.n)
            stop.check()

        try:
            ref = cv.reference(setting, _TOL, (fine + 1) // 2, fine, watch=watch)
            record.about(ref)
            record.write()
            show.begin(len(pairs))
            known = dict(record.known)
            rows = cv.convergence(setting, ref, pairs, budgets, keep=keep, known=known, watch=watch)
            for pair, budget, row in rows:
                show.row(budget, known=(pair.name, budget) in known)
                record.add(pair, budget, row)
                stop.check()
                if budget == middle:
                    first += [] if row is None else [row]
                    if show.rows == len(pairs) and keep is not None:  # which go on is known now
                        show.total -= others * (going - len(cv.best(first, keep)))
        except KeyboardInterrupt:
            return ref, stop.code
    return ref, 0


class Show(Live):
    """The bar of a comparison, in calls of one sample.

    fine    calls that the fine solution takes, about
    total   those, and what all rows may take
    """

    def __init__(self, title: str, fine: float, quiet: bool) -> None:
        super().__init__(title, "what", "left", quiet=quiet, lines=True)
        self.quiet, self.fine, self.total = quiet, fine, fine
        self.done, self.inside, self.made = 0.0, 0.0, 0.0
        self.rows: int | None = None
        self.began = time.monotonic()

    def begin(self, pairs: int) -> None:
        """The rows begin."""
        self.done, self.inside, self.rows = self.fine, 0.0, 0
        if not self.on and not self.quiet:
            self.console.print(f"{pairs} pairs of solver and grid")

    def calls(self, count: float) -> None:
        """Calls were made for each sample."""
        self.inside += count
        self._look()

    def row(self, budget: int, known: bool) -> None:
        """A row is done; one that was known took no time."""
        assert self.rows is not None
        self.rows, self.inside = self.rows + 1, 0.0
        if known:
            self.total -= budget
        else:
            self.done += budget
        self._look()

    def _look(self) -> None:
        if not self.due():
            return
        made = self.made = max(self.made, self.done + self.inside)  # a row may try more calls than it may keep
        left = f"{clock(rest(time.monotonic() - self.began, made, self.total - made))} left"
        what = f"the fine solution, {self.inside:.0f} calls" if self.rows is None else f"{self.rows} rows"
        self.tell(made, self.total, line=f"{what}, {left}", what=what, left=left)
