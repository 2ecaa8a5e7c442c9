"""`ebb zoo`, and the page of one shipped model, which `ebb explain` shows too; nothing of torch is needed for either."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app.options import option
from ebbtide.app.words import describe
from ebbtide.core.errors import EbbError

if TYPE_CHECKING:
    from rich.console import Console

ZOO = describe(
    "List the models that ship with ebbtide, or show one.",
    ("ebb zoo", "what each makes, its size, and how good it was measured to be"),
    ("ebb zoo digits", "one model: shape, figures, the command that made it"),
    ("ebb zoo --json", "for programs"),
)

_HEAD = 8  # bytes that say how long the header of a safetensors file is


def zoo(
    name: Annotated[str | None, typer.Argument(help="A shipped model.", show_default=False)] = None,
    json: Annotated[bool, option("--json", help="JSON on stdout.")] = False,
) -> None:
    from rich.console import Console

    from ebbtide import zoo

    found = [about(one) for one in (zoo.names() if name is None else [name])]
    if json:
        import json as js

        typer.echo(js.dumps(found if name is None else found[0], indent=2))
    elif name is None:
        _table(found)
    else:
        page(Console(highlight=False), name)


# -------------------------------------------------------------------- what is known of a model


def about(name: str) -> dict[str, Any]:
    """A shipped model as plain data: what recipe.json says of it, and the size of its weights.

    Raises EbbError with the nearest names where none ships, and for a recipe that cannot be read.
    """
    from ebbtide import zoo

    folder = zoo.folder(name)
    try:
        said = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EbbError(f"{folder / 'recipe.json'} cannot be read: {error}.") from None
    files = sorted(folder.glob("*.safetensors"))
    process = said.get("process")
    shape = said.get("shape", [])
    return {
        "name": name,
        "medium": said.get("medium"),
        "shape": shape,
        "range": said.get("range"),
        "labels": said["labels"] if said.get("labels", 1) > 1 else None,
        "parameters": sum(weights_of(f) for f in files),
        "MB": round(sum(f.stat().st_size for f in files) / 1e6, 3),
        "process": process["name"] if isinstance(process, dict) else process,
        "predicts": said.get("predicts"),
        "figures": said.get("figures", {}),
        "command": said.get("command"),
        "recipe": said.get("recipe", {}),
        "data": said.get("data"),
        "loss": said.get("loss"),
    }


def weights_of(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header alone."""
    with file.open("rb") as held:
        length = int.from_bytes(held.read(_HEAD), "little")
        header: dict[str, Any] = json.loads(held.read(length))
    return sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")


def figures(found: dict[str, Any], within: str = "") -> list[tuple[str, str]]:
    """What was measured of a model, by name; figures within others under both names."""
    out: list[tuple[str, str]] = []
    for key, value in found.items():
        name = f"{within}, {key}" if within else key
        if isinstance(value, dict):
            out += figures(value, name)
        else:
            out.append((name.replace("_", " "), f"{value:g}" if isinstance(value, float) else str(value)))
    return out


# -------------------------------------------------------------------- shown


def _table(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, options in (
        ("model", {"style": "cyan", "no_wrap": True}),
        ("medium", {}),
        ("shape", {"no_wrap": True}),
        ("weights", {"justify": "right"}),
        ("MB", {"justify": "right"}),
        ("process", {}),
        ("predicts", {}),
        ("figures", {"ratio": 2}),
        ("made by", {"ratio": 3}),
    ):
        table.add_column(name, **options)
    for one in found:
        measured = "; ".join(f"{k} {v}" for k, v in figures(_first(one["figures"])))
        table.add_row(
            one["name"],
            one["medium"] or "",
            _shape(one["shape"]),
            f"{one['parameters'] / 1e3:.0f}k",
            f"{one['MB']:.1f}",
            one["process"] or "-",
            one["predicts"] or "",
            measured,
            one["command"] or "",
        )
    console = Console(highlight=False)
    Console(highlight=False, width=None if console.is_terminal else 200).print(table)
    console.print(f"\n{len(found)} models. More of one: ebb zoo {found[0]['name'] if found else 'NAME'}", style="dim")


def _first(found: dict[str, Any]) -> dict[str, Any]:
    """The figures alone, without how they were taken and what else was."""
    how = ("measured_by", "samples", "steps", "scale", "batch", "seed", "threads", "note")
    return {k: v for k, v in found.items() if k not in how and isinstance(v, int | float)}


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def page(console: Console, name: str) -> None:
    """One shipped model: what it is, how good it was measured to be, how it was made, how it is run."""
    from ebbtide.app.explain import head, section

    one = about(name)
    head(console, name, f"a model that ships with ebbtide, {one['MB']:.1f} MB, {one['parameters']:,} weights")
    keys = ("medium", "shape", "range", "labels", "process", "predicts", "command")
    _facts(console, "What it is", {k: one[k] for k in keys if one[k] is not None})
    _facts(console, "How good it is", dict(figures(one["figures"])))
    made = {k: one["recipe"][k] for k in ("steps", "batch", "lr", "ema", "seed") if k in one["recipe"]}
    _facts(console, "How it was made", made | {k: one[k] for k in ("loss", "data") if one[k] is not None})
    if one["process"]:
        section(console, "Run it", f"ebb sample {name} -n 16{' --preview' if one['medium'] == 'image' else ''}")


def _facts(console: Console, title: str, facts: dict[str, Any]) -> None:
    from ebbtide.app.explain import section

    wide = max([10, *(len(k) for k in facts)])
    section(console, title, "\n".join(f"{k:<{wide}} {v}" for k, v in facts.items()))
