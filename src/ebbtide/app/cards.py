"""The dated table of cards, a markdown file that grows by one system at a time and can be gone on with."""

from __future__ import annotations

import datetime
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ebbtide.app.checks import figures, verdict
from ebbtide.app.files import whole, writable
from ebbtide.core.errors import EbbError

if TYPE_CHECKING:
    from ebbtide.systems import Report

HEAD = """# Cards

Every system's claim, measured in miniature by `ebb check --all -o {name}` (last with ebbtide {ebbtide}, torch {torch},
Python {python}). *Control* is the same figure with the mechanism switched off: a card holds when it passes and its control
run fails.

"""
COLUMNS = ("system", "outcome", "check", "figure", "published", "threshold", "control", "seconds", "date")


@dataclass
class Table:
    """The rows of a file, by system, in the order of their ids; written whole after each new one."""

    path: Path
    rows: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, overwrite: bool = False) -> Table:
        """The table in a file, empty where there is none or with `overwrite`.

        Raises EbbError for a file that is something else, and where nothing can be written.
        """
        writable(path.parent)
        table = cls(path)
        if not path.exists() or overwrite:
            return table
        lines = path.read_text(encoding="utf-8").splitlines()
        if _line(COLUMNS) not in lines:
            raise EbbError(f"{path} exists and is no table of cards: give another file, or --overwrite.")
        for line in lines[lines.index(_line(COLUMNS)) + 2 :]:
            cells = [c.strip() for c in line.strip("|").split(" | ")]
            if len(cells) == len(COLUMNS):
                table.rows.setdefault(cells[0], []).append(line)
        return table

    def holds(self, id: str) -> bool:
        """Whether the card of this system ran and held."""
        return any(line.startswith(f"| {id} | holds |") for line in self.rows.get(id, []))

    def add(self, id: str, report: Report | None, why: str = "") -> None:
        """Take in one system, or why it could not run, and write the file."""
        today = datetime.date.today().isoformat()
        if report is None:
            self.rows[id] = [_line((id, "cannot run", why, "", "", "", "", "", today))]
        else:
            seconds = f"{report.seconds:.1f}"
            self.rows[id] = [
                _line(
                    (
                        id,
                        verdict(report),
                        row["name"],
                        f"{row['figure']:.4g}",
                        row["published"],
                        row["bounds"],
                        "" if row["control"] is None else f"{row['control']:.4g}",
                        seconds,
                        today,
                    )
                )
                for row in figures(report)
            ]
        self.write()

    def write(self) -> None:
        """Write the file, whole."""
        import torch

        from ebbtide import __version__

        versions = {"ebbtide": __version__, "torch": torch.__version__, "python": platform.python_version()}
        lines = [
            _line(COLUMNS),
            _line(["---"] * len(COLUMNS)),
            *(line for id in sorted(self.rows) for line in self.rows[id]),
        ]
        with whole(self.path) as part:
            part.write_text(HEAD.format(name=self.path, **versions) + "\n".join(lines) + "\n", encoding="utf-8")


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
