"""What came out of `ebb solvers`: who is best at which number of calls, as a table, a chart, a plan, and as JSON."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import typer

from ebbtide.app.chart import Line, chart
from ebbtide.app.files import said, whole
from ebbtide.app.record import plain
from ebbtide.app.request import Request
from ebbtide.measure.convergence import Reference, Row
from ebbtide.measure.survey import Survey, called

_SHOWN, _LINES = 12, 10


def winners(rows: list[Row], budgets: list[int]) -> dict[int, Row]:
    """The row of the least error at each number of calls; the cheaper one of two that are equal."""
    found = {}
    for budget in budgets:
        mine = [r for r in rows if r.budget == budget and math.isfinite(r.error)]
        if mine:
            found[budget] = min(mine, key=lambda r: (r.error, r.calls))
    return found


def ranked(rows: list[Row], budgets: list[int]) -> list[dict[int, Row]]:
    """The rows of each pair by budget, the best pair first.

    A pair's figure is the geometric mean of its errors, each over the least at its budget; pairs that were measured at
    all numbers of calls come before those that were not.
    """
    least = {b: r.error for b, r in winners(rows, budgets).items()}
    pairs: dict[str, dict[int, Row]] = {}
    for r in rows:
        pairs.setdefault(r.pair.name, {})[r.budget] = r

    def figure(mine: dict[int, Row]) -> tuple[int, float]:
        logs = [math.log(max(r.error, 1e-300) / max(least.get(b, 1.0), 1e-300)) for b, r in mine.items()]
        return -len(mine), sum(logs) / len(logs)

    return sorted(pairs.values(), key=figure)


def command(row: Row, request: Request) -> str:
    """The command that samples with the plan of a row."""
    run = request.recorded.run or {}
    words = ["ebb", "sample", *(["--data", run["data"]] if "data" in run else [request.model.name])]
    for key in ("denoiser", "size"):
        words += [f"--{key}", str(run[key])] if "data" in run and key in run else []
    if request.plan.process is not None:
        words += ["--process", request.plan.process["name"]]  # type: ignore[index]
    for guide in request.plan.guide:
        words += ["--guidance", f"{guide['scale']:g}"]  # type: ignore[index]
    words += ["--solver", row.pair.solve["name"], "--grid", row.pair.grid["name"], "--steps", str(row.steps)]
    for slot, spec in (("solve", row.pair.solve), ("grid", row.pair.grid)):
        for key, value in spec.items():
            words += ["--set", f"{slot}.{key}={value}"] if key != "name" else []
    return shlex.join(words)


@dataclass
class Standings:
    """The rows of a comparison.

    ref   the fine solution, None where it was not reached: nothing is shown then
    """

    request: Request
    budgets: list[int]
    rows: list[Row]
    ref: Reference | None

    @cached_property
    def best(self) -> dict[int, Row]:
        """The best row at each number of calls."""
        return winners(self.rows, self.budgets)

    def draw(self, path: Path | None) -> list[Path]:
        """Write the chart, a line for each solver on its best grid; gives the files that there are."""
        if path is None or self.ref is None or not self.best:
            return []
        lines: dict[str, Line] = {}
        for mine in ranked(self.rows, self.budgets):
            one = next(iter(mine.values())).pair
            lines.setdefault(called(one.solve), Line(one.name, [(r.calls, r.error) for r in mine.values()]))
        text = chart(
            list(lines.values())[:_LINES],
            f"{self.request.model.name}: error of each solver on its best grid",
            "network calls for a sample",
            "error against the fine solution",
            marks=self.budgets,
            floor=self.ref.error,
            floor_name="the fine solution's own error",
        )
        with whole(path) as part:
            part.write_text(text, encoding="utf-8")
        return [path, path.with_suffix(".json")]

    def keep(self, path: Path | None) -> list[Path]:
        """Write the best plan at the largest number of calls; gives the files that there are."""
        if path is None or not self.best:
            return []
        plan = self.best[max(self.best)].plan(self.request.plan).replace(run=self.request.recorded.run)
        with whole(path) as part:
            part.write_text(plan.to_yaml(), encoding="utf-8")
        return [path]

    def as_json(self, reference: dict[str, Any], found: Survey, files: list[Path]) -> str:
        """All of it as one JSON object."""

        def about(budget: int, row: Row) -> dict[str, Any]:
            plan = row.plan(self.request.plan).to_dict()
            told = plain(row.pair, budget, row)
            return {"calls": budget, **told, "plan": plan, "command": command(row, self.request)}

        return json.dumps(
            {
                "model": self.request.model.name,
                "n": self.request.n,
                "reference": reference,
                "rows": [plain(r.pair, r.budget, r) for r in self.rows],
                "best": [about(b, r) for b, r in self.best.items()],
                "drawn": found.drawn,
                "left": found.left,
                "files": [said(f) for f in files],
            }
        )

    def tell(self, everything: bool, drawn: list[str], files: list[Path]) -> None:
        """The table and the best of it on stdout, and what else there is to say."""
        if self.ref is None or not self.rows:
            return
        self._table(self.ref, everything)
        typer.echo()
        for budget, row in self.best.items():
            typer.echo(f"Best at {budget} calls: {row.pair.name}, error {row.error:.3g}")
            typer.echo(f"  {command(row, self.request)}")
        if drawn:
            typer.echo(
                f"\nThese draw noise at every step, so they have no path to be compared with: {', '.join(drawn)}"
            )
        if files:
            typer.secho(", ".join(said(f) for f in files), err=True)

    def _table(self, ref: Reference, everything: bool) -> None:
        from rich.console import Console
        from rich.table import Table

        ordered = ranked(self.rows, self.budgets)
        shown = ordered if everything else ordered[:_SHOWN]
        console = Console(highlight=False)
        console.print(
            f"[bold]{self.request.model.name}[/bold]: error of {self.request.n} samples against the model's own fine "
            f"solution ({ref.steps} steps, itself good to {ref.error:.1g})",
            soft_wrap=True,
        )
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("solver", style="cyan", no_wrap=True)
        table.add_column("grid", style="cyan", no_wrap=True)
        for budget in self.budgets:
            table.add_column(f"{budget} calls", justify="right", no_wrap=True)
        for mine in shown:
            pair = next(iter(mine.values())).pair
            cells = [_cell(mine.get(b), ref, self.best.get(b)) for b in self.budgets]
            table.add_row(called(pair.solve), called(pair.grid), *cells)
        console.print(table)
        if len(shown) < len(ordered):
            console.print(f"and {len(ordered) - len(shown)} more pairs: --all", style="dim")
        part = sum(len(mine) < len(self.budgets) for mine in ordered)
        if part:
            console.print(
                f"{part} pairs were not measured everywhere, being far behind at the middle: --full", style="dim"
            )


def _cell(row: Row | None, ref: Reference, best: Row | None) -> str:
    if row is None:
        return "[dim]-[/dim]"
    if not math.isfinite(row.error):
        return "[red]not finite[/red]"
    text = f"< {ref.error:.1g}" if row.error < ref.error else f"{row.error:.3g}"
    return f"[bold green]{text}[/bold green]" if row is best else text
