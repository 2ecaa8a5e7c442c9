"""The rows of `ebb solvers` as a JSON file beside the chart: what the chart shows, and what a stopped run goes on from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ebbtide.app.files import said, vacant, whole
from ebbtide.core.errors import EbbError
from ebbtide.measure.convergence import Reference, Row
from ebbtide.measure.survey import Pair

Key = tuple[str, int]


def plain(pair: Pair, budget: int, row: Row | None) -> dict[str, Any]:
    """A row as plain data; null where a sample is not finite, no steps where none is so cheap."""
    about: dict[str, Any] = {"solve": dict(pair.solve), "grid": dict(pair.grid), "budget": budget}
    if row is None:
        return about
    figures = {"error": row.error, "typical": row.typical}
    finite = {k: v if math.isfinite(v) else None for k, v in figures.items()}
    return {**about, "steps": row.steps, "calls": row.calls, **finite, "seconds": round(row.seconds, 4)}


def row_of(data: dict[str, Any]) -> tuple[Key, Row | None]:
    """The inverse of `plain`, under the key that `convergence` knows it by."""
    pair, budget = Pair(data["solve"], data["grid"]), data["budget"]
    if "steps" not in data:
        return (pair.name, budget), None
    figures = {k: math.inf if data[k] is None else float(data[k]) for k in ("error", "typical")}
    return (pair.name, budget), Row(pair, budget, data["steps"], data["calls"], **figures, seconds=data["seconds"])


@dataclass
class Record:
    """A file that grows by one row at a time, written whole each time; without a path it is kept in memory alone.

    asked   what the rows were measured for: model, seeds, guides, versions
    known   rows by (pair, budget)
    """

    path: Path | None
    asked: dict[str, Any]
    known: dict[Key, Row | None] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    reference: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, chart: Path | None, asked: dict[str, Any], overwrite: bool = False) -> Record:
        """The record beside a chart, gone on with where it is of the same model, starts and versions.

        Raises EbbError for other files that are in the way, unless `overwrite`.
        """
        if chart is None:
            return cls(None, asked)
        path = chart.with_suffix(".json")
        if overwrite or not path.exists():
            vacant(chart, overwrite)
            return cls(path, asked)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rows = dict(row_of(r) for r in data["rows"]) if data["asked"] == asked else None
        except (OSError, ValueError, KeyError, TypeError):
            rows, data = None, {}
        if rows is None:
            what = "rows measured for something else" if "asked" in data else "something else"
            raise EbbError(f"{said(path)} holds {what}: give another output, or --overwrite.")
        return cls(path, asked, rows, data["rows"])

    def add(self, pair: Pair, budget: int, row: Row | None) -> None:
        """Take in one row, and write the file, unless it was known."""
        if (pair.name, budget) in self.known:
            return
        self.known[pair.name, budget] = row
        self.rows.append(plain(pair, budget, row))
        self.write()

    def about(self, ref: Reference) -> None:
        """Say what the errors are against."""
        self.reference = {"error": ref.error, "steps": ref.steps, "calls": ref.calls}

    def write(self) -> None:
        """Write the file, whole."""
        if self.path is not None:
            rows = ",\n  ".join(json.dumps(r) for r in self.rows)
            head = f'{{"asked": {json.dumps(self.asked)},\n "reference": {json.dumps(self.reference)},\n'
            with whole(self.path) as part:
                part.write_text(f'{head} "rows": [\n  {rows}\n ]}}\n', encoding="utf-8")
