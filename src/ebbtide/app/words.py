"""How every command speaks: the shape of its help, and its notes."""

from __future__ import annotations

from collections.abc import Iterable

import typer


def describe(summary: str, *examples: tuple[str, str], more: str = "") -> str:
    """A help text in rich markup: a sentence, what else must be said, then examples, each (command, what it does)."""
    shown = [
        f"[cyan]{command}[/cyan]\n[dim]{what[:1].upper()}{what[1:]}.[/dim]" if what else f"[cyan]{command}[/cyan]"
        for command, what in examples
    ]
    return "\n\n".join([summary, *([more] if more else []), "[bold]Examples[/bold]", *shown])


def note(texts: Iterable[object], quiet: bool = False) -> None:
    """Say on stderr what nobody asked for but should know, a line each."""
    for text in [] if quiet else texts:
        typer.secho(f"note: {text}", err=True)
