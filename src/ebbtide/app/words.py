"""The shape of every command's help: a sentence, what else must be said, then examples, each with what it does."""

from __future__ import annotations


def describe(summary: str, *examples: tuple[str, str], more: str = "") -> str:
    """A help text in rich markup; an example is (command, what it does)."""
    shown = [
        f"[cyan]{command}[/cyan]\n[dim]{what[:1].upper()}{what[1:]}.[/dim]" if what else f"[cyan]{command}[/cyan]"
        for command, what in examples
    ]
    return "\n\n".join([summary, *([more] if more else []), "[bold]Examples[/bold]", *shown])
