"""`ebb plan show` and `ebb plan check`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ebbtide.app.words import describe, note

app = typer.Typer(
    help="Show and check plan files.", rich_markup_mode="rich", no_args_is_help=True, pretty_exceptions_enable=False
)

SHOW = describe(
    "Print a plan: what each slot holds, and what was run.",
    ("ebb plan show sevens.plan.yaml", "a plan file"),
    ("ebb plan show sevens.png > sevens.yaml", "the plan inside a picture, taken out"),
)

CHECK = describe(
    "Check a plan: its parts, their parameters, their fit.",
    ("ebb plan check mine.yaml", "exit code 0 if it is one, 2 and the reason if not"),
)

File = Annotated[
    str,
    typer.Argument(metavar="FILE|PRESET", help="A plan, a PNG, a preset, or a scheduler's config.", show_default=False),
]


def dump(data: Any) -> str:
    """Plain data as YAML, lists and mappings without inner ones on one line."""
    import yaml

    return str(yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True))


@app.command(help=SHOW)
def show(file: File) -> None:
    from rich.console import Console
    from rich.syntax import Syntax

    from ebbtide.app.reading import read_plan

    read = read_plan(file)
    data = read.plan.to_dict()
    run = data.pop("run", None)
    text = dump(data) + ("" if run is None else "\n" + dump({"run": run}))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(Syntax(text.rstrip(), "yaml", background_color="default", word_wrap=True))
    else:
        typer.echo(text, nl=False)
    if run is None:
        note([*read.notes, "this plan says nothing of a run; name a model to sample with it"])


@app.command(help=CHECK)
def check(file: File) -> None:
    from ebbtide.app.reading import read_plan

    read = read_plan(file)
    slots = {k: v for k, v in read.plan.to_dict().items() if k != "run"}
    names = {k: ", ".join(p["name"] for p in (v if isinstance(v, list) else [v])) for k, v in slots.items()}
    typer.echo(f"{file} is a plan: " + "; ".join(f"{slot} {held}" for slot, held in names.items()))
    note(read.notes)
