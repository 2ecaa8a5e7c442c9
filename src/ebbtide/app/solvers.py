"""`ebb solvers`: the error of every solver on every grid against the calls it costs, for a model, and the best named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ebbtide.app import options as opt
from ebbtide.app.words import describe, note
from ebbtide.core.errors import EbbError

SOLVERS = describe(
    "Measure which solver and grid suit a model: error against network calls.",
    ("ebb solvers digits", "a table of the best, and the command that samples with each"),
    ("ebb solvers digits --calls 8 --save best.yaml", "the best plan of 8 calls, for ebb sample --plan best.yaml"),
    ("ebb solvers digits --guidance 3 -o digits.svg", "for guided samples, with a chart and its rows as JSON"),
    ("ebb solvers digits --solver unipc,deis:order=3 --grid karras,log-snr", "these alone, with parameters"),
    ("ebb solvers --data holiday/ --size 32 -n 8", "for the closed form of your own pictures"),
    more="The error is that of the samples against the model's own fine solution from the same starts, relative. Calls "
    "are counted: guidance takes two for each prediction. With -o, the same command goes on where it was stopped.",
)

COMPARED = "What is compared"
_FINE = 256


def _compared(*names: str, help: str, metavar: str | None = None) -> Any:
    return opt.option(*names, help=help, metavar=metavar, panel=COMPARED)


def solvers(
    model: opt.Model = None,
    data: opt.Data = None,
    denoiser: opt.Denoiser = None,
    size: opt.Size = None,
    label: opt.Label = None,
    prompt: opt.Prompt = None,
    negative: opt.Negative = None,
    n: Annotated[int | None, opt.count("How many samples the error is averaged over (16).")] = None,
    seed: Annotated[str | None, opt.seeds(0)] = None,
    calls: Annotated[
        str | None, _compared("--calls", metavar="N|N,N,..", help="Network calls allowed for a sample (5,8,10,15,20).")
    ] = None,
    solver: Annotated[
        str | None, _compared("--solver", "--solve", metavar="PART,..", help="Solvers, PART:param=value too (all).")
    ] = None,
    grid: Annotated[
        str | None, _compared("--grid", metavar="PART,..", help="Grids, PART:param=value too (all that take steps).")
    ] = None,
    full: Annotated[
        bool, _compared("--full", help="Measure all at every number of calls, not only the best at the middle one.")
    ] = False,
    fine: Annotated[
        int | None, _compared("--fine", metavar="N", help="Steps of the fine solution, two calls each (256).")
    ] = None,
    guidance: opt.Guidance = None,
    process: opt.Process = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    out: Annotated[
        Path | None, opt.shown("--out", "-o", metavar="FILE.svg", help="A chart, and its rows beside it as .json.")
    ] = None,
    save: Annotated[
        Path | None, opt.shown("--save", metavar="FILE.yaml", help="The best plan at the largest number of calls.")
    ] = None,
    overwrite: Annotated[bool, opt.shown("--overwrite", help="Replace files that exist, and measure afresh.")] = False,
    everything: Annotated[bool, opt.shown("--all", help="All rows of the table, not the first 12.")] = False,
    quiet: Annotated[bool, opt.shown("--quiet", "-q", help="No progress.")] = False,
    json: opt.Json = False,
) -> None:
    options = opt.typed(locals(), "solver", "grid")  # which are lists here
    budgets = _budgets(calls)
    fine = _FINE if fine is None else fine
    if fine < 2:
        raise EbbError(f"--fine is at least 2 steps, not {fine}.")
    _writable(out, save, overwrite)
    specs = {slot: _specs(slot, text) for slot, text in (("solve", solver), ("grid", grid))}
    from ebbtide.app.record import Record
    from ebbtide.app.request import resolve
    from ebbtide.app.standings import Standings
    from ebbtide.app.stopping import again
    from ebbtide.app.surveying import fill
    from ebbtide.measure import convergence as cv
    from ebbtide.measure import survey as sv

    r = resolve(options)
    setting = sv.Setting(r.model, r.plan, r.cond, r.n, r.seed, r.device, r.dtype)
    found = sv.survey(setting, specs["solve"], specs["grid"])
    if not found.pairs:
        raise EbbError(f"no solver fits {r.model.name} on any grid.")
    asked = {k: v for k, v in r.recorded.to_dict().items() if k not in ("solve", "grid")}
    record = Record.open(out, {**asked, "fine": fine}, overwrite)
    note(r.notes, quiet or json)
    ref, code = fill(record, setting, found.pairs, budgets, fine, None if full else cv.KEEP, quiet or json)
    # a file may hold more than was asked for this time
    names = {pair.name for pair in found.pairs}
    rows = [row for (name, b), row in record.known.items() if row is not None and name in names and b in budgets]
    standings = Standings(r, budgets, rows, ref)
    files = [*standings.draw(out), *(standings.keep(save) if code == 0 else [])]
    if json:
        typer.echo(standings.as_json(record.reference, found, files))
    else:
        standings.tell(everything, [] if quiet else found.drawn, [] if quiet else files)
    if code:
        done = f"{len(record.rows)} rows are kept in {record.path}. " if record.path and record.rows else ""
        how = f"Go on with: {again('--overwrite')}" if done else "Nothing is kept without -o."
        typer.secho(f"stopped. {done}{how}", err=True)
        raise typer.Exit(code)


# -------------------------------------------------------------------- what was typed


def _budgets(text: str | None) -> list[int]:
    """The numbers of calls, sorted. Raises EbbError for anything else."""
    from ebbtide.app.asking import numbers
    from ebbtide.measure.convergence import BUDGETS

    found = numbers(text, "--calls") or (0 if text is not None else list(BUDGETS))
    listed = sorted(set(found if isinstance(found, list) else [found]))
    if listed[0] < 1:
        raise EbbError(f"--calls is at least one network call, not {listed[0]}.")
    return listed


def _specs(slot: str, text: str | None) -> list[dict[str, Any]] | None:
    """Parts after commas. Raises EbbError for those that do not exist, and for steps, which follow from the calls."""
    from ebbtide.app import parts

    if text is None:
        return None
    specs = []
    for one in text.split(","):
        found = parts.solver(one, 8) if slot == "solve" else parts.part(slot, one)
        if "steps" in found.spec:
            raise EbbError(f"{one}: the steps follow from --calls; leave them out.")
        if found.grid is not None:
            raise EbbError(f"{one} says which grid, which is what is compared here; name the solver alone.")
        specs.append(found.spec)
    return specs


def _writable(out: Path | None, save: Path | None, overwrite: bool) -> None:
    """See before the work that both files can be written."""
    from ebbtide.app.files import vacant, writable

    if out is not None and out.suffix.lower() != ".svg":
        raise EbbError(f"{out}: the chart is an .svg file; give -o {out.with_suffix('.svg')}.")
    if save is not None:
        vacant(save, overwrite)
    for path in (out, save):
        if path is not None:
            writable(path.parent)
