"""`ebb check`: run the cards of systems, both as they are and with the mechanism switched off."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app.options import option
from ebbtide.app.words import describe
from ebbtide.core.errors import EbbError

if TYPE_CHECKING:
    from rich.console import Console

    from ebbtide.systems import Report

CHECK = describe(
    "Run the cards of systems, as they are and as controls.",
    ("ebb check locality-denoiser", "figures, thresholds, control and seconds"),
    ("ebb check --family theory", "all of a family"),
    ("ebb check --all -o docs/cards.md", "a dated table; run again, it goes on where it stopped"),
    more="A card holds when it passes as it is and fails in its control run, the mechanism switched off. "
    "Exit code 0: all hold, 1: some do not, 2: some cannot run.",
)


def check(
    id: Annotated[str | None, typer.Argument(help="A system.", show_default=False)] = None,
    family: Annotated[str | None, option("--family", help="All systems of a family.")] = None,
    everything: Annotated[bool, option("--all", help="All systems, slow ones too.")] = False,
    out: Annotated[Path | None, option("--out", "-o", metavar="FILE.md", help="Write a table too.")] = None,
    overwrite: Annotated[bool, option("--overwrite", help="Run again what the table holds already.")] = False,
    json: Annotated[bool, option("--json", help="A JSON list on stdout.")] = False,
) -> None:
    from ebbtide import systems
    from ebbtide.app.cards import Table
    from ebbtide.app.screen import stderr

    if sum([id is not None, family is not None, everything]) != 1:
        raise EbbError("say what to check: the id of a system, --family NAME, or --all.")
    ids = [systems.find(id).id] if id is not None else systems.ids(family)
    table = None if out is None else Table.open(out, overwrite)
    rows, failed, broken = [], False, False
    for one in ids:
        if table is not None and table.holds(one):
            typer.echo(f"{one}: holds, says {out}", err=True)
            continue
        with stderr().status(f"{one} ..."):
            report, why = _run(one)
        if report is None:
            broken = True
            typer.secho(f"{one}: cannot run: {why}", err=True, fg="red")
        else:
            failed = failed or not report.passed
            rows.append(plain(report))
            if not json:
                _show(report)
        if table is not None:
            table.add(one, report, why)
    if json:
        import json as js

        typer.echo(js.dumps(rows, indent=2))
    if failed or broken:
        raise typer.Exit(1 if failed else 2)


def _run(id: str) -> tuple[Report | None, str]:
    """The report of one system, or why there is none."""
    from ebbtide import systems

    try:
        return systems.check(id), ""
    except (EbbError, ImportError, FileNotFoundError, NotImplementedError) as error:
        return None, " ".join(str(error).split())


def figures(report: Report) -> list[dict[str, Any]]:
    """Each figure of a card beside that of its control run; a check that only one of them made has None for the other."""
    control = {c.name: c for c in report.control.checks}
    return [
        {
            "name": c.name,
            "figure": c.figure,
            "published": c.published,
            "bounds": c.bounds,
            "passed": c.passed,
            "control": control[c.name].figure if c.name in control else None,
        }
        for c in report.card.checks
    ]


def plain(report: Report) -> dict[str, Any]:
    """A report as plain data."""
    return {
        "id": report.system.id,
        "passed": report.passed,
        "card_passed": report.card.passed,
        "control_passed": report.control.passed,
        "seconds": round(report.seconds, 2),
        "checks": figures(report),
        "note": report.card.note,
    }


def verdict(report: Report) -> str:
    """One or two words on the outcome."""
    if not report.card.passed:
        return "fails"
    return "passes without the mechanism" if report.control.passed else "holds"


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table

    console: Console = Console(highlight=False)
    style = "green" if report.passed else "red"
    console.print(f"[bold]{report.system.id}[/bold]  [{style}]{verdict(report)}[/{style}]  {report.seconds:.1f} s")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("check", "figure", "published", "threshold", "control"):
        table.add_column(name, justify="right" if name in ("figure", "control") else "left")
    for row in figures(report):
        colour = "green" if row["passed"] else "red"
        control = "" if row["control"] is None else f"{row['control']:.4g}"
        figure = f"[{colour}]{row['figure']:.4g}[/{colour}]"
        table.add_row(row["name"], figure, row["published"], row["bounds"], control)
    console.print(Padding(table, (0, 0, 0, 2)))
    if report.card.note:
        console.print(Padding(report.card.note, (0, 0, 0, 2)), style="dim", markup=False)
