"""`ebb grid`: the best few times for a model, found on its own trajectories."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ebbtide.app import options as opt
from ebbtide.app.words import describe, note
from ebbtide.core.errors import EbbError

if TYPE_CHECKING:
    from ebbtide.app.request import Request
    from ebbtide.core.plan import Plan

GRID = describe(
    "Find the best times for a model and a number of steps, and write them as a plan.",
    ("ebb grid digits --steps 8 -o eight.yaml", "then: ebb sample --plan eight.yaml"),
    ("ebb grid digits --steps 12 --guidance 3 --solver unipc -o guided.yaml", "for guided samples and this solver"),
    ("ebb grid --plan mine.yaml --steps 6 -o six.yaml", "for the process, guides and solver of a plan"),
    more="The times are fitted to samples of this model under this condition and serve others like them. Which solver: "
    "[cyan]ebb solvers[/cyan].",
)


def grid(
    model: opt.Model = None,
    plan: Annotated[str | None, opt.what("--plan", metavar="FILE|PRESET", help="The plan to find times for.")] = None,
    data: opt.Data = None,
    denoiser: opt.Denoiser = None,
    size: opt.Size = None,
    label: opt.Label = None,
    prompt: opt.Prompt = None,
    negative: opt.Negative = None,
    n: Annotated[int | None, opt.count("How many samples it is fitted to (16).")] = None,
    seed: Annotated[str | None, opt.seeds(1000)] = None,
    steps: Annotated[int | None, opt.how("--steps", help="Steps of the grid (8).")] = None,
    solver: Annotated[
        str | None, opt.how("--solver", "--solve", metavar="PART", help="The solver they are for (dpmpp-2m).")
    ] = None,
    guidance: opt.Guidance = None,
    process: opt.Process = None,
    *,
    out: Annotated[Path, opt.shown("--out", "-o", metavar="FILE.yaml", help="The plan.")],
    overwrite: Annotated[bool, opt.shown("--overwrite", help="Replace the file if it exists.")] = False,
    quiet: opt.Quiet = False,
) -> None:
    options = opt.typed(locals(), "steps")  # the grid's that is found, not the plan's own
    from ebbtide.app.files import said, vacant, whole, writable

    steps = 8 if steps is None else steps
    if steps < 1:
        raise EbbError(f"--steps is at least 1, not {steps}.")
    if out.suffix not in (".yaml", ".yml", ".json"):
        raise EbbError(f"{out}: a plan is a .yaml or .json file; give -o {out.with_suffix('.yaml')}.")
    vacant(out, overwrite)
    writable(out.parent)
    from ebbtide.app.request import resolve

    if plan is None:  # fitted to other starts than those that people look at first
        options = replace(options, seed=seed or "1000", solver=solver or "dpmpp-2m")
    request = resolve(options)
    note(request.notes, quiet)
    started = time.monotonic()
    found = _optimise(request, steps, quiet)
    run = {k: v for k, v in (request.recorded.run or {}).items() if k != "seed"}  # what it is for, not what it saw
    recorded = found.replace(run=run)
    with whole(out) as part:
        part.write_text(recorded.to_json() if out.suffix == ".json" else recorded.to_yaml(), encoding="utf-8")
    if not quiet:
        times = ", ".join(f"{t:.3g}" for t in found.grid["times"])  # type: ignore[index]
        typer.secho(f"{said(out)}: times {times}, found in {time.monotonic() - started:.0f} s", err=True)
        typer.secho(f"try: ebb sample --plan {said(out)}", err=True)


def _optimise(request: Request, steps: int, quiet: bool) -> Plan:
    """The plan with its grid found, a bar going along."""
    from ebbtide.app.progress import clock, rest
    from ebbtide.app.screen import Live
    from ebbtide.app.stopping import Stop
    from ebbtide.tune.grids import optimise_grid

    r, began = request, time.monotonic()
    with Live(r.model.name, "what", "left", quiet=quiet, lines=True) as live, Stop(live.stopping) as stop:

        def watch(done: float, total: float) -> None:
            stop.check()
            if live.due():
                left = f"{clock(rest(time.monotonic() - began, done, total - done))} left"
                what = f"{done:.0f}/{total:.0f} calls"
                live.tell(done, total, line=f"{what}, {left}", what=what, left=left)

        try:
            return optimise_grid(r.model, r.plan, steps, cond=r.cond, n=r.n, seed=r.seed, watch=watch)
        except KeyboardInterrupt:
            typer.secho("stopped. Nothing is kept.", err=True)
            raise typer.Exit(stop.code) from None
