"""The work of `ebb eval`: samples of every plan from the same seeds, batch by batch, and of a fine run where it is wanted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebbtide import api
from ebbtide.app.contenders import Contender
from ebbtide.app.files import said, vacant, whole
from ebbtide.app.fronts import Fronts, Row, read
from ebbtide.app.kept import Drawn, Kept
from ebbtide.app.meters import Meters
from ebbtide.app.progress import clock, rest, share
from ebbtide.app.request import Request
from ebbtide.app.screen import Live
from ebbtide.app.stopping import Stop
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.core.state import Step
from ebbtide.core.tree import tree_map
from ebbtide.denoise.model import seeds_of
from ebbtide.measure import metrics as m
from ebbtide.measure.convergence import distance, fine

_STEPS = 20


@dataclass
class Trials:
    """All runs of an evaluation.

    request  what they share: model, seeds, number and batch
    cond     the condition of all samples, encoded once
    fine     steps of the fine run
    """

    request: Request
    contenders: list[Contender]
    fine: int
    cond: dict[str, Any]
    kept: Kept = field(default_factory=lambda: Kept(None))
    path: Path | None = None

    @classmethod
    def of(cls, request: Request, contenders: list[Contender], fine: int) -> Trials:
        """Raises EbbError for a condition that the model does not take, and samples that are more than one tensor."""
        if not isinstance(request.model.like, Tensor):
            raise EbbError(f"{request.model.name} makes samples of several fields, which are not measured yet.")
        return cls(request, contenders, fine, request.model.condition(request.cond, request.n))

    def check(self, reference: bool) -> None:
        """Raise EbbError for plans that do not fit the model; nothing has run by then."""
        first = self._first
        for one in self.contenders:
            try:
                api.begin(self.request.model, one.plan, first, 1, 0, self.request.device, self.request.dtype)
            except EbbError as error:
                raise EbbError(f"--plan {one.name}: {error}") from error
        if reference:
            api.begin(self.request.model, self.references[-1], first, 1)

    @property
    def _first(self) -> dict[str, Any]:
        conds: dict[str, Any] = tree_map(lambda v: v[:1], self.cond)
        return conds

    @property
    def references(self) -> list[Plan]:
        """The fine run of the first plan's guides in its process, at half the steps and at all of them."""
        base = self.contenders[0].plan
        process: Any = base.parts("process")[0] if base.process else self.request.model.process
        return [base.replace(**fine(process, k)) for k in ((self.fine + 1) // 2, self.fine)]

    # ---------------------------------------------------------------- files

    def open(self, out: Path | None, overwrite: bool) -> None:
        """Find what was drawn before beside the output. Raises EbbError for other files that are in the way."""
        if out is None:
            return
        self.path = out.with_suffix(".json")
        folder = out.with_suffix(".samples")
        if overwrite:
            for file in folder.glob("*.safetensors"):
                file.unlink()
        elif self.path.exists():
            held = read(self.path)
            if held != self.asked:
                what = "something else" if held is None else "figures measured for something else"
                raise EbbError(f"{said(self.path)} holds {what}: give another output, or --overwrite.")
        else:
            vacant(out)
        self.kept = Kept(folder)

    @property
    def asked(self) -> dict[str, Any]:
        """What samples were drawn for, in plain data."""
        r = self.request
        run = api.record(r.model, Plan(), r.cond, r.n, r.seed, r.batch, r.dtype).run
        plain: dict[str, Any] = json.loads(json.dumps(run))
        return plain

    def write(self, fronts: Fronts) -> list[Path]:
        """Write the rows beside the picture."""
        if self.path is None:
            return []
        with whole(self.path) as part:
            data = {"asked": self.asked, **fronts.as_data()}
            part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        return [self.path]

    # ---------------------------------------------------------------- the work

    def fill(self, reference: bool, quiet: bool) -> int:
        """Draw what is not there yet; gives the exit code."""
        named = [*(("the fine run", p) for p in (self.references if reference else [])), *self._plans()]
        todo = [(name, plan) for name, plan in named if len(self.kept.of(plan)) < self.request.n]
        if not todo:
            return 0
        if self.path is not None and not self.path.exists():
            self.write(Fronts(self.request.model.name, self.request.n, ("error",), []))
        weights = [_weight(plan) * (1 - len(self.kept.of(plan)) / self.request.n) for _, plan in todo]
        done, began = 0.0, time.monotonic()
        with (
            Live(self.request.model.name, "what", "left", quiet=quiet, lines=True) as live,
            Stop(live.stopping) as stop,
        ):
            try:
                self._warm()
                for (name, plan), weight in zip(todo, weights, strict=True):

                    def tell(part: float, before: float = done, weight: float = weight, name: str = name) -> None:
                        stop.check()
                        now = before + weight * part
                        if live.due():
                            left = f"{clock(rest(time.monotonic() - began, now, sum(weights) - now))} left"
                            live.tell(now, sum(weights), line=f"{name}, {left}", what=name, left=left)

                    self._draw(plan, tell)
                    done += weight
            except KeyboardInterrupt:
                return stop.code
        return 0

    def _plans(self) -> Iterator[tuple[str, Plan]]:
        return ((c.name, c.plan) for c in self.contenders)

    def _warm(self) -> None:
        """One call that is not timed: the first of a process is slow."""
        r = self.request
        size = min(r.batch or r.n, r.n)
        conds = tree_map(lambda v: v[:size], self.cond)
        plan = self.contenders[0].plan
        next(iter(api.run(r.model, plan, cond=conds, n=size, device=r.device, dtype=r.dtype)))

    def _draw(self, plan: Plan, tell: Callable[[float], None]) -> None:
        """Draw what is missing of one plan, a batch at a time; `tell` is given the share of it that is done."""
        r, drawn = self.request, self.kept.of(plan)
        begun, seeds = len(drawn), seeds_of(r.seed, r.n)
        size = r.batch or r.n
        for first in range(begun, r.n, size):
            last = min(first + size, r.n)
            own = tree_map(lambda v, a=first, b=last: v[a:b], self.cond)

            def watch(step: Step, _: list[int], first: int = first, last: int = last) -> None:
                tell((first - begun + (last - first) * share(step.state)) / (r.n - begun))

            made = api.sample(
                r.model,
                plan,
                cond=own,
                n=last - first,
                seed=seeds[first:last],
                device=r.device,
                dtype=r.dtype,
                watch=watch,
            )
            assert isinstance(made.x, Tensor)
            drawn.add(made.x, made.calls, made.seconds)
            self.kept.save(plan)

    # ---------------------------------------------------------------- what it gave

    def rows(self, meters: Meters) -> list[Row]:
        """A row for each plan that is finished; none where the fine run is wanted and is not."""
        ref: Tensor | None = None
        if "error" in meters.names:
            whole = self.kept.of(self.references[-1])
            if len(whole) < self.request.n:
                return []
            ref = whole.samples
        found = []
        for one in self.contenders:
            drawn = self.kept.of(one.plan)
            if len(drawn) == self.request.n:
                figures = meters.measure(drawn.samples, ref)
                found.append(Row(one, _each(drawn, drawn.calls), _each(drawn, drawn.seconds), figures))
        return found

    def against(self, rows: Sequence[Row]) -> str:
        """What the error of these rows is against, in words; nothing where none was measured."""
        errors = [r.figures["error"].value for r in rows if "error" in r.figures]
        if not errors:
            return ""
        half, whole = (self.kept.of(p) for p in self.references)
        if min(len(half), len(whole)) < self.request.n:
            return ""
        own = distance(half.samples.double(), whole.samples.double())
        near = f"; errors below that say nothing: --reference {4 * self.fine} is finer" if min(errors) < own else ""
        return f"a fine run of {self.fine} steps from the same seeds, itself good to {own:.1g}{near}"


def _each(drawn: Drawn, costs: list[float]) -> m.Interval:
    """What one sample costs, with the interval that batches leave."""
    if len({c / r for c, r in zip(costs, drawn.rows, strict=True)}) == 1:
        return m.Interval(*[costs[0] / drawn.rows[0]] * 3)
    total, rows = torch.tensor(costs, dtype=torch.float64), torch.tensor(drawn.rows, dtype=torch.float64)
    return m.bootstrap(m.rate, total, rows, paired=True)


def _weight(plan: Plan) -> float:
    """The calls of a sample, about."""
    grid: Any = plan.grid
    steps = grid.get("steps") or len(grid.get("times") or grid.get("sigmas") or range(_STEPS))
    per = plan.parts("solve")[0].calls
    for guide in plan.parts("guide"):
        per *= guide.calls
    return float(max(per, 0.1) * steps)
