"""`ebb grid`: the best few times for a model, found on its own trajectories."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app.words import describe
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


def _option(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, show_default=False)


def grid(
    out: Annotated[Path, _option("--out", "-o", metavar="FILE.yaml", help="The plan.")],
    model: Annotated[
        str | None, typer.Argument(help="A shipped model, a trained folder, or pictures.", show_default=False)
    ] = None,
    plan: Annotated[str | None, _option("--plan", metavar="FILE|PRESET", help="The plan to find times for.")] = None,
    steps: Annotated[int | None, _option("--steps", help="Steps of the grid (8).")] = None,
    solver: Annotated[
        str | None, _option("--solver", "--solve", metavar="PART", help="The solver they are for (dpmpp-2m).")
    ] = None,
    data: Annotated[
        str | None, _option("--data", metavar="PATH", help="Your own pictures, a folder or .npz: no network.")
    ] = None,
    denoiser: Annotated[str | None, _option("--denoiser", help="For --data: local, exact or wiener.")] = None,
    size: Annotated[
        int | None, _option("--size", help="For --data: make all pictures this many pixels square.")
    ] = None,
    label: Annotated[
        str | None, _option("--label", metavar="K|K,K,..|none", help="The class, or several taken in turn.")
    ] = None,
    n: Annotated[int | None, _option("-n", help="How many samples it is fitted to (16).")] = None,
    seed: Annotated[
        str | None, _option("--seed", metavar="S|S,S,..", help="Sample j has seed S + j (1000), or the j-th of a list.")
    ] = None,
    guidance: Annotated[
        float | None, _option("--guidance", help="Strength of classifier-free guidance; 1 is none.")
    ] = None,
    process: Annotated[str | None, _option("--process", metavar="PART", help="Sample in another process.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")] = False,
) -> None:
    from ebbtide.app.files import said, whole, writable

    steps = 8 if steps is None else steps
    if steps < 1:
        raise EbbError(f"--steps is at least 1, not {steps}.")
    if out.suffix not in (".yaml", ".yml", ".json"):
        raise EbbError(f"{out}: a plan is a .yaml or .json file; give -o {out.with_suffix('.yaml')}.")
    if out.exists() and not overwrite:
        raise EbbError(f"{said(out)} exists and is kept: give another output, or --overwrite.")
    writable(out.parent)
    from ebbtide.app.request import Options, resolve

    request = resolve(
        Options(
            source=model,
            data=data,
            denoiser=denoiser,
            size=size,
            plan=plan,
            label=label,
            n=n,
            # fitted to other starts than those that people look at first
            seed="1000" if seed is None and plan is None else seed,
            guidance=guidance,
            solver="dpmpp-2m" if solver is None and plan is None else solver,
            process=process,
        )
    )
    for note in [] if quiet else request.notes:
        typer.secho(f"note: {note}", err=True)
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
    from rich.live import Live

    from ebbtide.app.progress import bar, clock
    from ebbtide.app.screen import stderr
    from ebbtide.app.stopping import Stop
    from ebbtide.tune.grids import optimise_grid

    console = stderr()
    shown = bar("what", "left")
    task = shown.add_task(request.model.name, total=None, what="", left="")
    seen = console.is_terminal and not quiet
    live: Any = Live(shown, console=console, transient=True) if seen else nullcontext()
    began = time.monotonic()
    with live, Stop(lambda: shown.update(task, description="stopping")) as stop:

        def watch(done: int, total: int) -> None:
            left = (time.monotonic() - began) * (total / done - 1) if done else None
            shown.update(task, total=total, completed=done, what=f"run {done}/{total}", left=f"{clock(left)} left")
            stop.check()

        try:
            return optimise_grid(
                request.model, request.plan, steps, cond=request.cond, n=request.n, seed=request.seed, watch=watch
            )
        except KeyboardInterrupt:
            typer.secho("stopped. Nothing is kept.", err=True)
            raise typer.Exit(stop.code) from None
