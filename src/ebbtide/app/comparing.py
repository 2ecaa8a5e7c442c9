"""`ebb compare`: the same seeds by two plans or more, side by side, and how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ebbtide.app import options as opt
from ebbtide.app.words import describe, note
from ebbtide.core.errors import EbbError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ebbtide.app.contenders import Contender
    from ebbtide.app.request import Request
    from ebbtide.app.trials import Trials

COMPARE = describe(
    "Sample the same seeds by several plans, and show them side by side: what a change of the plan changes.",
    ("ebb compare a.plan.yaml b.plan.yaml -o both.png", "what the first plan was run for, by both"),
    ("ebb compare euler dpmpp-2m heun --model digits --steps 8 -n 6 -o solvers.png", "solvers by their names"),
    ("ebb compare slow.yaml fast.yaml --model digits --label 3,8 --json", "the figures alone"),
    ("ebb compare confidence first-hitting --model shakespeare -n 2", "texts, with the characters that differ marked"),
    more="Distances are to the sample of the same seed by the first plan. How good a plan is, rather than how near to "
    "another: [cyan]ebb eval[/cyan].",
)

_N, _SHOWN, _CELL = 8, 24, 128
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def compare(
    plans: Annotated[
        list[str],
        typer.Argument(metavar="PLAN PLAN..", help="Plan files, presets, or SOLVER[ on GRID].", show_default=False),
    ],
    model: Annotated[
        str | None, opt.what("--model", "-m", metavar="MODEL", help="The model; by default that of the first plan.")
    ] = None,
    label: opt.Label = None,
    prompt: opt.Prompt = None,
    negative: opt.Negative = None,
    size: opt.Size = None,
    n: Annotated[int | None, opt.count("How many samples (those of the first plan's run, or 8).")] = None,
    seed: Annotated[str | None, opt.seeds(0)] = None,
    steps: Annotated[int | None, opt.how("--steps", help="Every plan at so many steps.")] = None,
    guidance: opt.Guidance = None,
    sets: Annotated[
        list[str] | None, opt.how("--set", metavar="SLOT.PARAM=VALUE", help="Any other parameter, of every plan.")
    ] = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch: Annotated[int | None, opt.how("--batch", help="How many samples at a time (all).")] = None,
    out: Annotated[
        Path | None,
        opt.shown(
            "--out", "-o", metavar="FILE", help="The samples side by side (.png .jpg .webp), or figures (.json)."
        ),
    ] = None,
    overwrite: opt.Overwrite = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    if len(plans) < 2:
        raise EbbError(f"there is one plan, {plans[0]}, and nothing to compare it with: name another.")
    options = opt.typed(locals(), "steps")
    from ebbtide.app.contenders import contenders
    from ebbtide.app.files import said, vacant, whole, writable
    from ebbtide.app.trials import Trials

    if out is not None:
        if out.suffix.lower() not in (*PICTURES, ".json"):
            raise EbbError(f"{out}: a comparison is a picture ({' '.join(PICTURES)}) or a .json file of its figures.")
        vacant(out, overwrite)
        writable(out.parent)
    request = _request(options, plans[0])
    found, notes = contenders(plans, [steps], options, request.model.process)
    if len(found) < 2:
        raise EbbError(f"{notes[-1]}: there is nothing to compare.")
    if out is not None and out.suffix.lower() != ".json" and request.model.medium not in ("image", "video"):
        raise EbbError(f"{request.model.name} makes no pictures: give a .json file, or leave -o out.")
    trials = Trials.of(request, found, 2)
    trials.check(reference=False)
    note([*request.notes, *notes], quiet or json)
    code = trials.fill(reference=False, quiet=quiet or json)
    if code:
        typer.secho("stopped. Nothing is kept.", err=True)
        raise typer.Exit(code)
    rows = [_row(one, trials, request) for one in found]
    about = {"model": request.model.name, "n": request.n, "measure": rows[0].measure, "rows": [r.plain() for r in rows]}
    if out is not None:
        with whole(out) as part:
            if out.suffix.lower() == ".json":
                part.write_text(_json(about, 1), encoding="utf-8")
            else:
                from ebbtide.app import forms

                forms.picture(_sheet(rows, request), part, out.suffix.lower(), found[0].plan)
    if json:
        typer.echo(_json({**about, "files": [str(out)] if out is not None else []}))
        return
    _tell(rows, request)
    if out is not None and not quiet:
        typer.secho(said(out), err=True)


class Row(NamedTuple):
    """A plan, its samples, what one cost, and how far each is from that of the first plan.

    measure   what is measured: "PSNR, dB" (infinite where they are the same), "tokens that differ" or "relative distance"
    """

    contender: Contender
    x: Tensor
    calls: float
    seconds: float
    measure: str
    apart: Tensor

    def plain(self) -> dict[str, Any]:
        """As plain data; null where a figure is infinite."""
        each = [v if math.isfinite(v) else None for v in self.apart.tolist()]
        return {
            "plan": self.contender.name,
            "calls": self.calls,
            "seconds": self.seconds,
            "apart": each,
            "slots": self.contender.plan.to_dict(),
        }


def _json(about: dict[str, Any], indent: int | None = None) -> str:
    import json

    return json.dumps(about, indent=indent)


def _request(o: opt.Options, first: str) -> Request:
    """What all plans share: what was typed, over what the first plan was run for."""
    from dataclasses import replace

    from ebbtide.app.asking import prompts_of
    from ebbtide.app.contenders import is_file
    from ebbtide.app.reading import read_plan
    from ebbtide.app.request import resolve

    run = (read_plan(first).plan.run if is_file(first) else None) or {}
    if o.n is None and "n" not in run:
        o = replace(o, n=max(_N, len(prompts_of(o) or ())))
    o = replace(o, plan=first if run else None)
    return resolve(replace(o, guidance=None, sets=None))


def _row(one: Contender, trials: Trials, request: Request) -> Row:
    drawn, first = trials.kept.of(one.plan), trials.kept.of(trials.contenders[0].plan)
    measure, apart = distance(drawn.samples, first.samples, request.model.medium)
    n = len(drawn)
    return Row(one, drawn.samples, sum(drawn.calls) / n, sum(drawn.seconds) / n, measure, apart)


def distance(x: Tensor, ref: Tensor, medium: str) -> tuple[str, Tensor]:
    """How far apart samples are, one by one (n,), and what that is called."""
    from ebbtide.measure.pictures import psnr

    if medium == "text":
        return "tokens that differ", (x != ref).flatten(1).double().mean(1)
    if medium in ("image", "video") and x.ndim > 3:
        return "PSNR, dB", psnr(x, ref)
    x, ref = x.flatten(1).double(), ref.flatten(1).double()
    return "relative distance", (x - ref).norm(dim=1) / ref.norm(dim=1).clamp_min(1e-30)


# -------------------------------------------------------------------- for people


def _letter(k: int) -> str:
    return chr(ord("A") + k) if k < 26 else str(k)


def _tell(rows: Sequence[Row], request: Request) -> None:
    """The table, what differs in the plans, and texts where there are."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("plan")
    for name in ("calls", "ms a sample", f"{rows[0].measure} from A", "nearest", "farthest"):
        table.add_column(name, justify="right")
    best, worst = (max, min) if "PSNR" in rows[0].measure else (min, max)
    for k, row in enumerate(rows):
        values = row.apart.tolist()
        middle = float(row.apart.median())
        figures = [_figure(v, row.measure) for v in (middle, best(values), worst(values))] if k else ["", "", ""]
        table.add_row(_letter(k), row.contender.name, f"{row.calls:g}", f"{1000 * row.seconds:.3g}", *figures)
    console.print(f"{request.model.name}, samples of seeds {_seeds(request)}, each against that of the first plan\n")
    console.print(table)
    first = rows[0].contender.plan.to_dict()
    for k, row in enumerate(rows[1:], 1):
        mine = row.contender.plan.to_dict()
        slots = [s for s in {**first, **mine} if first.get(s) != mine.get(s)]
        told = "; ".join(f"{s} {_spec(first.get(s))} -> {_spec(mine.get(s))}" for s in slots)
        console.print(f"\n{_letter(k)} differs in {told}", soft_wrap=True, markup=False)
    if request.model.medium == "text":
        _texts(console, rows, request)


def _seeds(request: Request) -> str:
    from ebbtide.denoise.model import seeds_of

    each = seeds_of(request.seed, request.n)
    return (
        f"{each[0]} to {each[-1]}" if each == list(range(each[0], each[0] + len(each))) else ", ".join(map(str, each))
    )


def _figure(value: float, measure: str) -> str:
    if math.isinf(value):
        return "the same"
    return f"{value:.1%}" if measure.startswith("tokens") else f"{value:.1f}" if "dB" in measure else f"{value:.3g}"


def _spec(spec: Any) -> str:
    """A slot in words: dpmpp-2m, karras(steps=8)."""
    if not spec:
        return "none"
    if isinstance(spec, list):
        return " + ".join(map(_spec, spec))
    rest = ", ".join(f"{k}={v}" for k, v in spec.items() if k != "name")
    return f"{spec['name']}({rest})" if rest else str(spec["name"])


def _texts(console: Any, rows: Sequence[Row], request: Request) -> None:
    """Each seed's texts, the characters that differ from the first plan's marked."""
    from rich.text import Text

    each = [request.model.text(row.x) for row in rows]
    for j in range(min(request.n, _SHOWN)):
        console.print(f"\nsample {j}", style="bold")
        for k, texts in enumerate(each):
            shown = Text(f"{_letter(k)}  ")
            for place, character in enumerate(texts[j]):
                same = place < len(each[0][j]) and each[0][j][place] == character
                shown.append(character, style="" if same else "bold yellow")
            console.print(shown, soft_wrap=True)


def _sheet(rows: Sequence[Row], request: Request) -> Image:
    """A row for each seed: the sample of every plan, and, of two, what differs, grey where nothing does."""
    import torch
    from PIL import Image, ImageDraw

    from ebbtide.app.sheets import contact

    count = min(request.n, _SHOWN)
    pixels: list[Any] = [request.model.pixels(row.x[:count]) for row in rows]
    names = [f"{_letter(k)}: {row.contender.name}" for k, row in enumerate(rows)]
    if len(rows) == 2:
        pixels.append((pixels[1] - pixels[0]).clamp(-1, 1))
        names.append("B - A")
    x = torch.stack(pixels, 1).flatten(0, 1)
    paper = contact(x, request.model.medium, len(pixels), _CELL)
    head = 16
    out = Image.new(paper.mode, (paper.width, paper.height + head), "white")
    out.paste(paper, (0, head))
    draw, wide = ImageDraw.Draw(out), paper.width / len(pixels)
    for k, name in enumerate(names):
        draw.text((k * wide + 4, 2), _cut(name, wide - 6, draw), fill="black")
    return out


def _cut(name: str, wide: float, draw: Any) -> str:
    """As much of a name as fits."""
    while draw.textlength(name) > wide and len(name) > 1:
        name = f"{name[:-2]}…"
    return name
