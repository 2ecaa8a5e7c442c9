"""`ebb profile`: what changes inside a network from step to step, and where its time goes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app import options as opt
from ebbtide.app.words import describe, note
from ebbtide.core.errors import EbbError

if TYPE_CHECKING:
    from ebbtide.app.request import Request
    from ebbtide.measure.changes import Profile

PROFILE = describe(
    "Show what changes inside a network from step to step, and where its time goes: what a cache could spare.",
    ("ebb profile digits-unet", "a heat map of blocks and steps on the terminal"),
    ("ebb profile digits --plan mine.yaml --guidance 2 -o heat.svg", "of this plan, as a picture"),
    ("ebb profile sd15/ --prompt 'a lighthouse' --steps 25 -n 1 -o heat.svg", "of a pipeline's denoiser"),
    ("ebb profile digits --json -o heat.json", "the figures"),
    more="Pale rows change little: [cyan]ebb sample MODEL --set network=deepcache[/cyan] keeps the deep ones of a U-Net for "
    "some steps. The network is asked twice, once to sample and once to listen.",
)

KINDS = (".svg", ".json")
_LEAST = 0.1


def profile(
    model: opt.Model = None,
    plan: Annotated[str | None, opt.what("--plan", metavar="FILE|PRESET", help="The plan that is looked into.")] = None,
    size: opt.Size = None,
    label: opt.Label = None,
    prompt: opt.Prompt = None,
    negative: opt.Negative = None,
    n: Annotated[int | None, opt.count("How many samples it is averaged over (4).")] = None,
    seed: Annotated[str | None, opt.seeds(0)] = None,
    steps: Annotated[int | None, opt.how("--steps", help="Steps of the grid (20).")] = None,
    solver: Annotated[str | None, opt.how("--solver", metavar="PART", help="How to move (euler).")] = None,
    grid: Annotated[str | None, opt.how("--grid", metavar="PART", help="Which times (linear).")] = None,
    guidance: opt.Guidance = None,
    sets: Annotated[list[str] | None, opt.how("--set", metavar="SLOT.PARAM=VALUE", help="Any other parameter.")] = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    out: Annotated[
        Path | None, opt.shown("--out", "-o", metavar="FILE", help="The heat map, .svg, or its figures, .json.")
    ] = None,
    overwrite: opt.Overwrite = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    from dataclasses import replace

    from ebbtide.app.files import said, vacant, whole, writable

    if out is not None:
        if out.suffix not in KINDS:
            raise EbbError(f"{out}: a profile is written as {' or '.join(KINDS)}.")
        vacant(out, overwrite)
        writable(out.parent)
    from ebbtide.app.request import resolve

    options = opt.typed(locals())
    request = resolve(replace(options, n=4 if n is None else n))
    note([*request.notes, *_alone(request)], quiet or json)
    found = _measured(request, quiet or json)
    about = as_data(request, found)
    if out is not None:
        with whole(out) as part:
            part.write_text(_told(about) if out.suffix == ".json" else _drawn(request, found), encoding="utf-8")
    if json:
        typer.echo(_told({**about, "files": [str(out)] if out else []}).rstrip())
        return
    _table(found)
    if out is not None and not quiet:
        typer.secho(f"{said(out)}", err=True)


def _alone(request: Request) -> list[str]:
    """A word where the plan changes the network, of which the profile is taken as it is."""
    names = [part.called for part in request.plan.parts("network")]
    return [f"the network is looked into without {' and '.join(names)}"] if names else []


def as_data(request: Request, found: Profile) -> dict[str, Any]:
    """The profile as plain data."""
    rows = [
        {"site": s.path, "kind": s.kind, "mean": s.mean, "share": s.seconds / found.seconds, "changes": list(s.changes)}
        for s in found.sites
    ]
    return {"model": request.model.name, "plan": request.recorded.to_dict(), "seconds": found.seconds, "sites": rows}


def _told(about: dict[str, Any]) -> str:
    import json

    return json.dumps(about, indent=None if "files" in about else 1) + "\n"


def _measured(request: Request, quiet: bool) -> Profile:
    """Record the plan and ask again, a bar going along."""
    from ebbtide.app.progress import clock, rest
    from ebbtide.app.screen import Live
    from ebbtide.app.stopping import Stop
    from ebbtide.measure.changes import changes
    from ebbtide.tune.calibrate import record

    r, began = request, time.monotonic()
    if "module" not in r.model.gives({}):
        raise EbbError(f"{r.model.name} has no network to look into; a profile is of one.")
    with Live(r.model.name, "what", "left", quiet=quiet, lines=True) as live, Stop(live.stopping) as stop:

        def watch(done: int, total: int) -> None:
            stop.check()
            if live.due():
                left = f"{clock(rest(time.monotonic() - began, done, total - done))} left"
                live.tell(done, total, line=f"call {done}/{total}, {left}", what=f"call {done}/{total}", left=left)

        try:
            asked = record(r.model, r.plan.replace(network=[]), cond=r.cond, n=r.n, seed=r.seed, watch=watch)
            if asked.steps < 2:
                raise EbbError("one step changes nothing; a profile needs --steps 2 at least.")
            return changes(asked, watch)
        except KeyboardInterrupt:
            typer.secho("stopped. Nothing is kept.", err=True)
            raise typer.Exit(stop.code) from None


def _top(found: Profile) -> float:
    """The change that is shown darkest: the largest, unless all are small."""
    return max(_LEAST, *(c for s in found.sites for c in s.changes))


def _drawn(request: Request, found: Profile) -> str:
    from ebbtide.app.heat import Row, heat

    rows = [
        Row(s.path, f"{s.mean:.0%} a step, {s.seconds / found.seconds:.0%} of the time", s.changes) for s in found.sites
    ]
    about = "by how much each site's answer differs from that of the step before, as a share of its size"
    return heat(rows, f"What changes inside {request.model.name}", about, "step", 2, _top(found))


def _table(found: Profile) -> None:
    """The profile on the terminal."""
    from rich.console import Console
    from rich.table import Table

    from ebbtide.app.heat import line

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for name, side in (
        ("site", "left"),
        ("change a step", "right"),
        ("time", "right"),
        ("steps, from the second", "left"),
    ):
        table.add_column(name, justify=side, no_wrap=name == "site")  # type: ignore[arg-type]
    wide = max(8, console.width - 30 - max(len(s.path) for s in found.sites))
    top = _top(found)
    for s in found.sites:
        inner = any(s.path.startswith(f"{o.path}.") for o in found.sites)
        share = f"{s.seconds / found.seconds:.0%}"
        table.add_row(s.path, f"{s.mean:.0%}", share, line(s.changes, top, wide), style="dim" if inner else "")
    console.print(table)
    tops = [s for s in found.sites if not any(s.path.startswith(f"{o.path}.") for o in found.sites)]
    calm = min(tops, key=lambda s: s.mean)
    slow = max(tops, key=lambda s: s.seconds)
    console.print(
        f"\n{calm.path} changes least, by {calm.mean:.0%} a step; {slow.path} takes longest, "
        f"{slow.seconds / found.seconds:.0%} of the time."
    )
