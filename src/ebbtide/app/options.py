"""The options that commands share, each declared once: its names, its help, and the panel of the help that it stands in.

    def sample(model: Model = None, data: Data = None, n: Annotated[int | None, count("How many samples (16).")] = None): ...

`Options` is what was typed of those that say what is sampled and how; `typed(locals())` takes it from a command's arguments.
Its `given` holds files that samples are given, by the name of the condition, as `ebb.file` says them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from ebbtide.core.errors import EbbError

WHAT, HOW, SHOWN = "What is sampled", "How", "What is written and shown"


@dataclass(frozen=True)
class Options:
    """What was typed; None where nothing was said."""

    model: str | None = None
    data: str | None = None
    denoiser: str | None = None
    size: str | None = None
    plan: str | None = None
    label: str | None = None
    prompt: list[str] | None = None
    negative: str | None = None
    given: Mapping[str, Any] | None = None
    n: int | None = None
    seed: str | None = None
    batch: int | None = None
    group: int | None = None
    device: str | None = None
    dtype: str | None = None
    guidance: float | None = None
    steps: int | None = None
    solver: str | None = None
    grid: str | None = None
    eta: float | None = None
    process: str | None = None
    sets: list[str] | None = None


def typed(given: Mapping[str, Any], *but: str) -> Options:
    """The options among a command's arguments, by their names; those named in `but` mean something else there."""
    known = {f.name for f in fields(Options)} - {*but}
    return Options(**{name: value for name, value in given.items() if name in known})


def files(given: list[str] | None) -> dict[str, Any]:
    """Files by the names that were typed before them, source=cat.png say; several of one name are taken in turn.

    Raises EbbError for one without a name, and for files that cannot be read.
    """
    from ebbtide.denoise.files import file

    found: dict[str, list[Any]] = {}
    for text in given or ():
        name, sign, path = text.partition("=")
        if not sign or not name.isidentifier():
            raise EbbError(f"--given {text}: write NAME=FILE, with the name of the condition, as in source=cat.png.")
        found.setdefault(name, []).append(file(path, fit=True))
    return {name: each if len(each) > 1 else each[0] for name, each in found.items()}


# -------------------------------------------------------------------- how options are declared


def option(*names: str, help: str, panel: str | None = None, metavar: str | None = None) -> Any:
    """An option whose default is told by its help, if at all."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


def what(*names: str, help: str, metavar: str | None = None) -> Any:
    """An option on what is sampled."""
    return option(*names, help=help, metavar=metavar, panel=WHAT)


def how(*names: str, help: str, metavar: str | None = None) -> Any:
    """An option on how it is sampled."""
    return option(*names, help=help, metavar=metavar, panel=HOW)


def shown(*names: str, help: str, metavar: str | None = None) -> Any:
    """An option on what is written and shown."""
    return option(*names, help=help, metavar=metavar, panel=SHOWN)


def count(help: str) -> Any:
    """-n"""
    return what("-n", help=help)


def seeds(first: int) -> Any:
    """--seed, with its default."""
    return what("--seed", metavar="S|S,S,..", help=f"Sample j has seed S + j ({first}), or the j-th of a list.")


# -------------------------------------------------------------------- those that several commands have

Model = Annotated[
    str | None,
    typer.Argument(help="A shipped model, a trained folder, a diffusers pipeline, or pictures.", show_default=False),
]
Data = Annotated[str | None, what("--data", metavar="PATH", help="Your own pictures, a folder or .npz: no network.")]
Denoiser = Annotated[
    str | None, what("--denoiser", help="For --data: local (new pictures), exact (repeats them) or wiener.")
]
Size = Annotated[
    str | None,
    what("--size", metavar="HxW|N", help="Pixels of a pipeline's pictures; for --data: make all so many square."),
]
Label = Annotated[str | None, what("--label", metavar="K|K,K,..|none", help="The class, or several taken in turn.")]
Prompt = Annotated[
    list[str] | None,
    what("--prompt", metavar="TEXT|@FILE", help="What to show; several, or the lines of a file, are taken in turn."),
]
Negative = Annotated[
    str | None, what("--negative", metavar="TEXT", help="What guidance leads away from, in place of the empty prompt.")
]
Given = Annotated[
    list[str] | None,
    what("--given", metavar="NAME=FILE", help="A picture or .npy that samples are given, such as source=cat.png."),
]

Guidance = Annotated[float | None, how("--guidance", help="Strength of classifier-free guidance; 1 is none.")]
Process = Annotated[str | None, how("--process", metavar="PART", help="Sample in another process.")]
Device = Annotated[str | None, how("--device", help="cpu, cuda, mps...")]
Dtype = Annotated[str | None, how("--dtype", help="float32, float64, float16 or bfloat16.")]

Overwrite = Annotated[bool, shown("--overwrite", help="Replace files that exist.")]
Preview = Annotated[bool, shown("--preview", help="Show the picture forming.")]
Quiet = Annotated[bool, shown("--quiet", "-q", help="Show nothing but errors.")]
Json = Annotated[bool, shown("--json", help="One JSON object on stdout.")]
