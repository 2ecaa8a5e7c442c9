"""`ebb explain`: what a system, a part or a shipped model is, and how it is used."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app.catalogue import cost, order_words
from ebbtide.app.words import describe
from ebbtide.core.errors import EbbError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from ebbtide.core.registry import Entry
    from ebbtide.systems import System

EXPLAIN = describe(
    "Explain a system, a part or a shipped model.",
    ("ebb explain locality-denoiser", "a system: claim, mechanism, parts, plans, citation"),
    ("ebb explain dpmpp-2m", "a part: formula, parameters, what it needs"),
    ("ebb explain grid/cosine", "a part, where several slots know the name"),
    ("ebb explain digits", "a model: shape, labels, how it was trained"),
)


def explain(
    name: Annotated[str, typer.Argument(help="A system, a part, slot/part, or a model.", show_default=False)],
) -> None:
    from rich.console import Console

    from ebbtide import systems, zoo
    from ebbtide.app.shipped import page
    from ebbtide.core import registry

    console = Console(highlight=False)
    slot, _, last = name.rpartition("/")
    found = [(s, last) for s in registry.SLOTS if slot in ("", s) and last in registry.names(s)]
    if not slot and name in systems.ids():
        _system(console, systems.find(name))
    elif not slot and name in zoo.names():
        page(console, name)
    elif found:
        for k, key in enumerate(found):
            if k:
                console.rule(style="dim")
            _part(console, registry.find(*key))
    else:
        known = {*systems.ids(), *zoo.names(), *(n for s in registry.SLOTS for n in registry.names(s))}
        raise EbbError(f"there is no system, part or model {name!r}; {nearest(last, known)}")


def head(console: Console, title: str, under: str) -> None:
    """The title of a page, and what stands under it."""
    console.print(title, style="bold cyan", markup=False)
    console.print(under, style="dim", markup=False)


def section(console: Console, title: str, text: str) -> None:
    """A part of a page, its lines as they are; nothing where there is no text."""
    if text.strip():
        console.print(f"\n{title}", style="bold")
        for line in text.strip("\n").splitlines():
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _prose(console: Console, title: str, text: str) -> None:
    from rich.padding import Padding
    from rich.text import Text

    if text.strip():
        console.print(f"\n{title}", style="bold")
        console.print(Padding(Text(text.strip()), (0, 0, 0, 2)))


def _yaml(console: Console, data: Any) -> None:
    from rich.padding import Padding
    from rich.syntax import Syntax

    from ebbtide.app.plans import dump

    console.print(
        Padding(Syntax(dump(data).rstrip(), "yaml", background_color="default", word_wrap=True), (0, 0, 0, 2))
    )


# -------------------------------------------------------------------- systems


def _system(console: Console, system: System) -> None:
    from ebbtide import systems
    from ebbtide.core import registry

    head(console, system.title, f"{system.id} · {system.family} · {system.year}{_paper(system.paper, ' · ')}")
    _prose(console, "Claim", system.claim)
    _prose(console, "What it is", system.what)
    section(console, "Mechanism", ast.get_docstring(ast.parse(systems.source(system.id).read_text("utf-8"))) or "")
    lines = [f"{key:<24} {registry.find(*key.split('/', 1)).sentence}" for key in system.parts]
    section(console, "Parts", "\n".join(lines))
    _prose(console, "Differs", system.differs)
    for name, plan in system.presets.items():
        console.print("\nPlan ", style="bold", end="")
        console.print(name, style="cyan")
        _yaml(console, dict(plan))
    run = [f"ebb sample MODEL --plan {name}" for name in system.presets]
    slow = "    takes more than 20 s" if system.slow else ""
    section(console, "Run it", "\n".join([*run, f"ebb check {system.id}{slow}"]))
    section(console, "Cite it", bibtex(system))


def bibtex(system: System) -> str:
    """The entry of the publication, as far as the record goes (it names no authors)."""
    lines = [f"  title = {{{system.title}}}", f"  year = {{{system.year}}}"]
    if re.fullmatch(r"\d{4}\.\d{4,5}|[a-z-]+/\d{7}", system.paper):
        lines += [f"  eprint = {{{system.paper}}}", "  archivePrefix = {arXiv}"]
    elif system.paper:
        lines.append(f"  doi = {{{system.paper}}}")
    return f"@misc{{{system.id},\n" + ",\n".join(lines) + "\n}"


def _paper(paper: str, before: str = "") -> str:
    if not paper:
        return ""
    return before + (f"arXiv {paper}" if re.fullmatch(r"\d{4}\.\d{4,5}", paper) else paper)


# -------------------------------------------------------------------- parts


def _part(console: Console, entry: Entry) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    head(console, entry.sentence, f"{entry.slot}/{entry.name}{_paper(entry.paper, ' · ')}")
    doc = inspect.getdoc(sys.modules[entry.cls.__module__]) or ""
    console.print(f"\n{doc.removeprefix(entry.sentence).strip(chr(10))}", markup=False, soft_wrap=True)
    rows = parameters(entry)
    console.print("\nParameters", style="bold")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Padding(table, (0, 0, 0, 2)) if rows else "  none")
    paid = cost(entry)
    facts = [f"order    {order_words(paid['order'])}, network calls a step {paid['calls']:g}"] if paid else []
    facts += [
        f"{title:<8} {', '.join(sorted(values))}"
        for title, values in (("needs", entry.needs), ("gives", entry.gives), ("refuses", entry.refuses))
        if values
    ]
    if entry.off:
        facts.append(f"off      {', '.join(f'{k}={v!r}' for k, v in entry.off.items())}")
    section(console, "Contract", "\n".join(facts))
    console.print("\nIn a plan", style="bold")
    spec = {"name": entry.name, **{k: v for k, v in defaults(entry).items() if v is not None}}
    many = entry.slot in ("guide", "network", "correct")
    _yaml(console, {entry.slot: [spec] if many else spec})


def parameters(entry: Entry) -> list[tuple[str, str, str]]:
    """Name, type with its bounds, and default of each parameter."""
    return [(k, _type(f), "required" if f.is_required() else f"default {_default(f)!r}") for k, f in _fields(entry)]


def defaults(entry: Entry) -> dict[str, Any]:
    """The defaults of the parameters that have one."""
    return {k: _default(f) for k, f in _fields(entry) if not f.is_required()}


def _default(field: Any) -> Any:
    return field.get_default(call_default_factory=True)


def _fields(entry: Entry) -> list[tuple[str, Any]]:
    return list(getattr(entry.cls, "__pydantic_fields__", {}).items())


_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _type(field: Any) -> str:
    kind = field.annotation
    text = kind.__name__ if isinstance(kind, type) and not getattr(kind, "__args__", ()) else str(kind)
    text = (
        re.sub(r"FieldInfo\([^()]*(\([^()]*\)[^()]*)*\)", "", text).replace("typing.", "").replace("NoneType", "None")
    )
    text = re.sub(r"Annotated\[(\w+), \]", r"\1", text)
    if text.startswith("Literal["):
        text = " | ".join(v.strip().strip("'") for v in text[8:-1].split(","))
    bounds = [f"{sign} {getattr(m, k):g}" for m in field.metadata for k, sign in _BOUNDS.items() if hasattr(m, k)]
    return " ".join([re.sub(r"Optional\[(.*)\]", r"\1 | None", text), ", ".join(bounds)]).strip()
