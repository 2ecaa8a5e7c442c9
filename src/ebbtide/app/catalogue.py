"""`ebb list`: systems, and the parts that plans are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app.options import option
from ebbtide.app.words import describe

if TYPE_CHECKING:
    from ebbtide.core.registry import Entry

LIST = describe(
    "List the published systems, or the parts of plans.",
    ("ebb list --family theory", "the systems of one family; without it, all"),
    ("ebb list --parts", "every part of every slot"),
    ("ebb list solve", "solvers, with their order and cost"),
    ("ebb list --json", "for programs"),
)


def listing(
    slot: Annotated[str | None, typer.Argument(help="With --parts: one slot.", show_default=False)] = None,
    parts: Annotated[bool, option("--parts", help="Parts instead of systems.")] = False,
    family: Annotated[str | None, option("--family", help="One family of systems.")] = None,
    json: Annotated[bool, option("--json", help="A JSON list on stdout.")] = False,
) -> None:
    rows = part_rows(slot) if parts or slot is not None else system_rows(family)
    if json:
        import json as js

        typer.echo(js.dumps(rows, indent=2))
    elif parts or slot is not None:
        _show_parts(rows)
    else:
        _show_systems(rows)


def system_rows(family: str | None = None) -> list[dict[str, Any]]:
    """The systems as plain data, in the order of their ids. Raises EbbError for a family that has none."""
    from ebbtide import systems

    rows = []
    for id in systems.ids(family):
        record = systems.find(id)
        has_card = "def card(" in systems.source(id).read_text(encoding="utf-8")
        about = {k: getattr(record, k) for k in ("id", "family", "year", "title", "claim", "paper", "slow")}
        rows.append({**about, "card": has_card, "parts": list(record.parts), "presets": list(record.presets)})
    return rows


def part_rows(slot: str | None = None) -> list[dict[str, Any]]:
    """The parts as plain data, slot by slot. Raises EbbError for a slot that does not exist."""
    from ebbtide.core import registry
    from ebbtide.core.errors import EbbError, nearest

    if slot is not None and slot not in registry.SLOTS:
        raise EbbError(f"there is no slot {slot!r}; {nearest(slot, registry.SLOTS)}")
    return [part_row(e) for e in registry.entries(slot)]


def part_row(entry: Entry) -> dict[str, Any]:
    """One part as plain data; solvers with their order and the calls of a step."""
    row: dict[str, Any] = {"slot": entry.slot, "name": entry.name, "sentence": entry.sentence, "paper": entry.paper}
    return {**row, **cost(entry)}


def cost(entry: Entry) -> dict[str, Any]:
    """The order of a solver and the calls of its step, at its defaults; nothing for other parts."""
    from ebbtide.core import registry

    if entry.slot != "solve":
        return {}
    made = registry.make(entry.slot, {"name": entry.name})
    return {"order": made.order, "calls": made.calls}


def order_words(order: float | None) -> str:
    """An order as people write it; a rule that converges to something else has none."""
    return "-" if order is None else f"{order:g}"


def _show_systems(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, options in (("system", {"style": "cyan", "no_wrap": True}), ("family", {}), ("year", {}), ("card", {})):
        table.add_column(name, **options)  # type: ignore[arg-type]
    table.add_column("title")
    for row in rows:
        card = "slow" if row["slow"] and row["card"] else "yes" if row["card"] else "no"
        table.add_row(row["id"], row["family"], str(row["year"]), card, row["title"])
    console = Console(highlight=False)
    if rows:
        console.print(table)
        console.print(f"\n{len(rows)} systems. More of one: ebb explain {rows[0]['id']}", style="dim")
    else:
        console.print("no system stands here yet", style="dim")


def _show_parts(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    wide = max((len(r["name"]) for r in rows), default=0)
    for slot in dict.fromkeys(r["slot"] for r in rows):
        solvers = slot == "solve"
        table = Table(box=None, pad_edge=False, header_style="bold", title=None)
        table.add_column(slot, style="cyan", no_wrap=True, min_width=wide)
        for name in ("order", "calls") if solvers else ():
            table.add_column(name, justify="right")
        table.add_column("what it does", ratio=1)
        table.add_column("paper", no_wrap=True)
        for row in (r for r in rows if r["slot"] == slot):
            figures = [order_words(row["order"]), f"{row['calls']:g}"] if solvers else []
            table.add_row(row["name"], *figures, row["sentence"], row["paper"])
        console.print(table)
        console.print()
    console.print("More of one: ebb explain NAME. In a plan: {solve: NAME} or {solve: {name: NAME, ...}}.", style="dim")
