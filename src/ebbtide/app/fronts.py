"""What came out of `ebb eval`: which plan is how good for which cost, as a table, a picture, a page and as JSON."""

from __future__ import annotations

import html
import json
import math
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import typer

from ebbtide.app.contenders import Contender
from ebbtide.app.files import said, whole
from ebbtide.app.meters import LOWER, badness
from ebbtide.app.pareto import Point, Spot, picture, undominated
from ebbtide.measure.certainty import Interval

COSTS = ("calls", "seconds")
_AXES = ("network calls a sample", "seconds a sample")


@dataclass(frozen=True)
class Row:
    """A plan: what a sample costs, and the figures of all of them."""

    contender: Contender
    calls: Interval
    seconds: Interval
    figures: dict[str, Interval]

    def plain(self) -> dict[str, Any]:
        """As plain data; null where a sample was not finite."""
        cells = {"calls": self.calls, "seconds": self.seconds, **self.figures}
        return {"plan": self.contender.name, **{k: _plain(v) for k, v in cells.items()}}


@dataclass(frozen=True)
class Fronts:
    """All rows of an evaluation.

    model, n  of which model, and of how many samples
    names     of the figures; plans are ranked by the first
    against   what the error is against, where it is measured
    """

    model: str
    n: int
    names: tuple[str, ...]
    rows: list[Row]
    against: str = ""

    def front(self, cost: str, name: str | None = None) -> list[bool]:
        """Which rows no other one beats in this cost and this figure (the first)."""
        name = name or self.names[0]
        return undominated([(getattr(r, cost).value, badness(name, r.figures[name].value)) for r in self.rows])

    @cached_property
    def best(self) -> Row | None:
        """The row of the best first figure; the one of fewer calls, where two are equal."""
        name = self.names[0]
        good = [r for r in self.rows if math.isfinite(r.figures[name].value)]
        return min(good, key=lambda r: (badness(name, r.figures[name].value), r.calls.value), default=None)

    @cached_property
    def cheapest(self) -> Row | None:
        """The row of fewest calls whose first figure lies within the interval of the best."""
        name = self.names[0]
        if self.best is None:
            return None
        held = self.best.figures[name]
        within = [r for r in self.rows if held.low <= r.figures[name].value <= held.high]
        return min(within, key=lambda r: (r.calls.value, badness(name, r.figures[name].value)))

    def command(self, row: Row) -> str:
        """The command that samples with the plan of a row."""
        return shlex.join(["ebb", "sample", self.model, *row.contender.words])

    def as_data(self) -> dict[str, Any]:
        """All of it as plain data."""
        rows = [
            {
                **row.plain(),
                "front": [c for c in COSTS if self.front(c)[k]],
                "command": self.command(row),
                "slots": row.contender.plan.to_dict(),
            }
            for k, row in enumerate(self.rows)
        ]
        best = {
            "best": self.best and self.best.contender.name,
            "cheapest": self.cheapest and self.cheapest.contender.name,
        }
        return {
            "model": self.model,
            "n": self.n,
            "figures": list(self.names),
            "against": self.against,
            "rows": rows,
            **best,
        }

    # ---------------------------------------------------------------- for people

    def svg(self) -> str:
        """The picture. Raises ValueError where no plan has a finite figure."""
        name = self.names[0]
        points = [
            Point(r.contender.name, [Spot(*getattr(r, c)) for c in COSTS], Spot(*r.figures[name])) for r in self.rows
        ]
        title = f"{self.model}: {name} of {self.n} samples against what they cost"
        return picture(points, [self.front(c) for c in COSTS], title, f"{name} ({_better(name)})", _AXES)

    def page(self) -> str:
        """A page that stands alone: the picture and the table."""
        head = "".join(f"<th>{html.escape(c)}</th>" for c in ("plan", *COSTS, *self.names, "command"))
        lines = "".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in (*self._cells(k), self.command(r))) + "</tr>"
            for k, r in enumerate(self.rows)
        )
        words = "".join(f"<p>{html.escape(line)}</p>" for line in self._words())
        style = "body{font-family:system-ui,sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:left}"
        title = html.escape(f"{self.model}: plans compared")
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
            f"<h1>{title}</h1>{self.svg()}<table><tr>{head}</tr>{lines}</table>{words}</html>\n"
        )

    def draw(self, path: Path | None) -> list[Path]:
        """Write the picture or the page, where one is wanted and there is something to show."""
        if path is None or path.suffix == ".json" or self.best is None:
            return []
        with whole(path) as part:
            part.write_text(self.page() if path.suffix == ".html" else self.svg(), encoding="utf-8")
        return [path]

    def _words(self) -> list[str]:
        name, best, cheap = self.names[0], self.best, self.cheapest
        lines = []
        if best is not None and cheap is not None:
            f = best.figures[name]
            told = f"Best {name}: {best.contender.name}, {f.value:.4g} ({f.low:.4g} to {f.high:.4g})"
            lines = [told, f"  {self.command(best)}"]
            if cheap is not best:
                lines.append(f"Cheapest within its interval: {cheap.contender.name}, {cheap.calls.value:g} calls")
                lines.append(f"  {self.command(cheap)}")
        return [*lines, *([f"The error is against {self.against}."] if self.against else [])]

    def _cells(self, k: int) -> list[str]:
        """The cells of a row; those of a cost on whose front the row is are marked."""
        row = self.rows[k]
        marks = [" *" if self.front(c)[k] else "" for c in COSTS]
        calls = f"{row.calls.value:g}" if row.calls.low == row.calls.high else _cell(row.calls)
        return [
            row.contender.name,
            calls + marks[0],
            _cell(row.seconds) + marks[1],
            *(_cell(row.figures[name]) for name in self.names),
        ]

    def tell(self, files: list[Path]) -> None:
        """The table and the best of it on stdout."""
        from rich.console import Console
        from rich.table import Table

        if not self.rows:
            return
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"[bold]{self.model}[/bold]: {self.n} samples of each plan, from the same seeds")
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("plan", style="cyan", no_wrap=True)
        for name in (*COSTS, *self.names):
            table.add_column(name, justify="right", no_wrap=True)
        order = sorted(range(len(self.rows)), key=lambda k: self.rows[k].calls.value)
        for k in order:
            cells = self._cells(k)
            best = [self._leads(k, name) for name in self.names]
            lit = [f"[bold green]{c}[/]" if b else c for c, b in zip(cells[3:], best, strict=True)]
            table.add_row(*(f"[bold]{c}[/]" if c.endswith("*") else c for c in cells[:3]), *lit)
        # rich folds a table at the width of a pipe; all of it is wanted there
        wide = Console(highlight=False, width=None if console.is_terminal else 400)
        wide.print(table)
        console.print(f"* on the front: no other plan has {self.names[0]} as good for so little", style="dim")
        typer.echo()
        for line in self._words():
            typer.echo(line)
        if files:
            typer.secho(", ".join(said(f) for f in files), err=True)

    def _leads(self, k: int, name: str) -> bool:
        values = [badness(name, r.figures[name].value) for r in self.rows]
        return values[k] == min((v for v in values if math.isfinite(v)), default=None)


def _better(name: str) -> str:
    return "lower is better" if name in LOWER else "higher is better"


def _plain(v: Interval) -> list[float] | None:
    return [float(f"{x:.6g}") for x in v] if all(map(math.isfinite, v)) else None


def _cell(v: Interval) -> str:
    """1.02 ± 0.05, to the digits that the interval leaves."""
    if not math.isfinite(v.value):
        return "not finite"
    half = v.high - v.value
    if not half > 0:
        return f"{v.value:.4g}"
    digits = max(0, min(6, 1 - math.floor(math.log10(half))))
    return f"{v.value:.{digits}f} ± {half:.{digits}f}"


def read(path: Path) -> dict[str, Any] | None:
    """What a file of `ebb eval` was measured for; None where it is another file."""
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))["asked"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return asked if isinstance(asked, dict) else None
