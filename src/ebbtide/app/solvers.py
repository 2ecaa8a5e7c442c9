"""`ebb solvers`: the error of every solver on every grid against the calls it costs, for a model, and the best named."""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app.words import describe
from ebbtide.core.errors import EbbError

if TYPE_CHECKING:
    from ebbtide.app.record import Record
    from ebbtide.app.request import Request
    from ebbtide.core.state import Step
    from ebbtide.measure.convergence import Reference, Row, Setting, Survey

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

_SHOWN, _LINES, _FINE, _TOL = 12, 10, 256, 1e-6
WHAT, HOW, SHOWN = "What is sampled", "What is compared", "What is written and shown"


def _what(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=WHAT, show_default=False)


def _how(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=HOW, show_default=False)


def _shown(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=SHOWN, show_default=False)


def solvers(
    model: Annotated[
        str | None, typer.Argument(help="A shipped model, a trained folder, or pictures.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, _what("--data", metavar="PATH", help="Your own pictures, a folder or .npz: no network.")
    ] = None,
    denoiser: Annotated[str | None, _what("--denoiser", help="For --data: local, exact or wiener.")] = None,
    size: Annotated[int | None, _what("--size", help="For --data: make all pictures this many pixels square.")] = None,
    label: Annotated[
        str | None, _what("--label", metavar="K|K,K,..|none", help="The class, or several taken in turn.")
    ] = None,
    n: Annotated[int | None, _what("-n", help="How many samples the error is averaged over (16).")] = None,
    seed: Annotated[
        str | None, _what("--seed", metavar="S|S,S,..", help="Sample j has seed S + j (0), or the j-th of a list.")
    ] = None,
    guidance: Annotated[
        float | None, _what("--guidance", help="Strength of classifier-free guidance; 1 is none.")
    ] = None,
    process: Annotated[str | None, _what("--process", metavar="PART", help="Sample in another process.")] = None,
    device: Annotated[str | None, _what("--device", help="cpu, cuda, mps...")] = None,
    dtype: Annotated[str | None, _what("--dtype", help="float32, float64, float16 or bfloat16.")] = None,
    calls: Annotated[
        str | None, _how("--calls", metavar="N|N,N,..", help="Network calls allowed for a sample (5,8,10,15,20).")
    ] = None,
    solver: Annotated[
        str | None, _how("--solver", "--solve", metavar="PART,..", help="Solvers, PART:param=value too (all).")
    ] = None,
    grid: Annotated[
        str | None, _how("--grid", metavar="PART,..", help="Grids, PART:param=value too (all that take steps).")
    ] = None,
    full: Annotated[
        bool, _how("--full", help="Measure all at every number of calls, not only the best at the middle one.")
    ] = False,
    fine: Annotated[
        int | None, _how("--fine", metavar="N", help="Steps of the fine solution, two calls each (256).")
    ] = None,
    out: Annotated[
        Path | None, _shown("--out", "-o", metavar="FILE.svg", help="A chart, and its rows beside it as .json.")
    ] = None,
    save: Annotated[
        Path | None, _shown("--save", metavar="FILE.yaml", help="The best plan at the largest number of calls.")
    ] = None,
    overwrite: Annotated[bool, _shown("--overwrite", help="Replace files that exist, and measure afresh.")] = False,
    everything: Annotated[bool, _shown("--all", help="All rows of the table, not the first 12.")] = False,
    quiet: Annotated[bool, _shown("--quiet", "-q", help="No progress.")] = False,
    json: Annotated[bool, _shown("--json", help="One JSON object on stdout.")] = False,
) -> None:
    budgets = _budgets(calls)
    specs = {slot: _specs(slot, text) for slot, text in (("solve", solver), ("grid", grid))}
    _writable(out, save, overwrite)
    fine = _FINE if fine is None else fine
    if fine < 2:
        raise EbbError(f"--fine is at least 2 steps, not {fine}.")
    from ebbtide.app.record import Record
    from ebbtide.app.request import Options, resolve
    from ebbtide.measure import convergence as cv

    options = Options(
        source=model,
        data=data,
        denoiser=denoiser,
        size=size,
        label=label,
        n=n,
        seed=seed,
        guidance=guidance,
        process=process,
        device=device,
        dtype=dtype,
    )
    request = resolve(options)
    r = request
    setting = cv.Setting(r.model, r.plan, r.cond, r.n, r.seed, r.device, r.dtype)
    found = cv.survey(setting, specs["solve"], specs["grid"])
    if not found.pairs:
        raise EbbError(f"no solver fits {r.model.name} on any grid.")
    asked = {k: v for k, v in r.recorded.to_dict().items() if k not in ("solve", "grid")}
    record = Record.open(out, {**asked, "fine": fine}, overwrite)
    for note in [] if quiet or json else r.notes:
        typer.secho(f"note: {note}", err=True)
    ref, code = _measure(setting, found, budgets, fine, None if full else cv.KEEP, record, quiet or json)
    # a file may hold more than was asked for this time
    names = {pair.name for pair in found.pairs}
    rows = [row for (name, b), row in record.known.items() if row is not None and name in names and b in budgets]
    files = [] if ref is None or not rows else _write(rows, ref, request, budgets, out, save if code == 0 else None)
    _tell(rows, ref, request, found, budgets, record, files, everything, json, quiet)
    if code:
        done = f"{len(record.rows)} rows are kept in {record.path}. " if record.path and record.rows else ""
        again = f"Go on with: {shlex.join(['ebb', *_typed()])}" if done else "Nothing is kept without -o."
        typer.secho(f"stopped. {done}{again}", err=True)
        raise typer.Exit(code)


# -------------------------------------------------------------------- what was typed


def _budgets(text: str | None) -> list[int]:
    """The numbers of calls, sorted. Raises EbbError for anything else."""
    from ebbtide.app.request import numbers
    from ebbtide.measure.convergence import BUDGETS

    found = numbers(text, "--calls") or (0 if text is not None else list(BUDGETS))
    listed = sorted(set(found if isinstance(found, list) else [found]))
    if listed[0] < 1:
        raise EbbError(f"--calls is at least one network call, not {listed[0]}.")
    return listed


def _specs(slot: str, text: str | None) -> list[dict[str, Any]] | None:
    """Parts after commas, each PART or PART:param=value:... Raises EbbError for those that do not exist."""
    import yaml

    from ebbtide.core import registry

    if text is None:
        return None
    specs: list[dict[str, Any]] = []
    for one in text.split(","):
        name, *given = one.strip().split(":")
        spec: dict[str, Any] = {"name": name}
        for pair in given:
            key, sign, value = pair.partition("=")
            if not sign:
                raise EbbError(f"{one}: write PART:param=value, as in deis:order=3.")
            try:
                spec[key] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise EbbError(f"{one}: {value} cannot be read as a value (YAML).") from None
        registry.find(slot, name)
        if "steps" in spec:
            raise EbbError(f"{one}: the steps follow from --calls; leave them out.")
        if slot == "solve" or len(spec) > 1:
            registry.make(slot, spec)
        specs.append(spec)
    return specs


def _writable(out: Path | None, save: Path | None, overwrite: bool) -> None:
    """See before the work that both files can be written."""
    from ebbtide.app.files import said, writable

    if out is not None and out.suffix.lower() != ".svg":
        raise EbbError(f"{out}: the chart is an .svg file; give -o {out.with_suffix('.svg')}.")
    if save is not None and save.exists() and not overwrite:
        raise EbbError(f"{said(save)} exists and is kept: give another output, or --overwrite.")
    for path in (out, save):
        if path is not None:
            writable(path.parent)


def _typed() -> list[str]:
    """The command line, without the word that would throw away what it goes on from."""
    import sys

    return [word for word in sys.argv[1:] if word != "--overwrite"]


# -------------------------------------------------------------------- the work


def _measure(
    setting: Setting,
    found: Survey,
    budgets: list[int],
    fine: int,
    keep: int | None,
    record: Record,
    quiet: bool,
) -> tuple[Reference | None, int]:
    """Fill the record; gives the fine solution, None where it was not reached, and the exit code."""
    from ebbtide.app.stopping import Stop
    from ebbtide.measure import convergence as cv

    middle = budgets[len(budgets) // 2]
    others = [b for b in budgets if b != middle]
    solvers = len({cv.called(p.solve) for p in found.pairs})
    going = len(found.pairs) if keep is None else min(len(found.pairs), keep + solvers)
    ref = None
    show = Show(setting.model.name, middle * len(found.pairs) + sum(others) * going, quiet)
    with show, Stop(show.stopping) as stop:

        def watch(step: Step) -> None:
            show.calls(step.calls / setting.n)
            stop.check()

        try:
            ref = cv.reference(setting, _TOL, (fine + 1) // 2, fine, watch=watch)
            record.about(ref)
            record.write()
            show.begin(len(found.pairs))
            rows = cv.convergence(setting, ref, found.pairs, budgets, keep=keep, known=dict(record.known), watch=watch)
            for pair, budget, row in rows:
                show.row(budget, known=(pair.name, budget) in record.known)
                record.add(pair, budget, row)
                stop.check()
        except KeyboardInterrupt:
            return ref, stop.code
    return ref, 0


class Show:
    """The bar of a comparison, in calls of one sample; without a terminal, a line a minute. All of it on stderr."""

    def __init__(self, title: str, total: int, quiet: bool) -> None:
        from ebbtide.app.progress import bar
        from ebbtide.app.screen import stderr

        self.console, self.quiet, self.total = stderr(), quiet, float(total)
        self.bar = bar("what", "left")
        self.task = self.bar.add_task(title, total=None, what="the fine solution", left="")
        self.rows, self.done, self.inside = 0, 0.0, 0.0
        self.began = self.told = self.looked = time.monotonic()
        self.live: Any = None

    def __enter__(self) -> Show:
        if self.console.is_terminal and not self.quiet:
            from rich.live import Live

            self.live = Live(self.bar, console=self.console, transient=True, refresh_per_second=8)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*error)

    def begin(self, pairs: int) -> None:
        """The rows begin."""
        self.began, self.inside = time.monotonic(), 0.0
        if not self.quiet and self.live is None:
            self.console.print(f"{pairs} pairs of solver and grid")
        self.rows = 0
        self._look(now=True)

    def calls(self, count: float) -> None:
        """Calls were made for each sample."""
        self.inside += count
        self._look()

    def row(self, budget: int, known: bool) -> None:
        """A row is done; one that was known took no time."""
        self.rows += 1
        self.inside = 0.0
        if known:
            self.total -= budget
        else:
            self.done += budget
        self._look()

    def stopping(self) -> None:
        """Say that the end was asked for, which comes after this step."""
        self.bar.update(self.task, description="stopping")

    def _look(self, now: bool = False) -> None:
        from ebbtide.app.progress import clock

        at = time.monotonic()
        made = self.done + self.inside
        left = (at - self.began) * max(0.0, self.total / made - 1) if self.done and made else None
        if self.live is None:
            if not self.quiet and at - self.told > 60:
                self.told = at
                rows = f"{self.rows} rows, {clock(left)} left"
                self.console.print(rows if self.rows else f"the fine solution, {self.inside:.0f} calls")
            return
        if at - self.looked < 0.1 and not now:
            return
        self.looked = at
        if self.rows or self.done:
            what = f"{self.rows} rows"
            self.bar.update(self.task, total=self.total, completed=made, what=what, left=f"{clock(left)} left")
        else:
            self.bar.update(self.task, what=f"the fine solution, {self.inside:.0f} calls")


# -------------------------------------------------------------------- what came out


def winners(rows: list[Row], budgets: list[int]) -> dict[int, Row]:
    """The row of the least error at each number of calls; the cheaper one of two that are equal."""
    found = {}
    for budget in budgets:
        mine = [r for r in rows if r.budget == budget and math.isfinite(r.error)]
        if mine:
            found[budget] = min(mine, key=lambda r: (r.error, r.calls))
    return found


def ranked(rows: list[Row], budgets: list[int]) -> list[dict[int, Row]]:
    """The rows of each pair by budget, the best pair first.

    A pair's figure is the geometric mean of its errors, each over the least at its budget; pairs that were measured at
    all numbers of calls come before those that were not.
    """
    least = {b: r.error for b, r in winners(rows, budgets).items()}
    pairs: dict[str, dict[int, Row]] = {}
    for r in rows:
        pairs.setdefault(r.pair.name, {})[r.budget] = r

    def figure(mine: dict[int, Row]) -> tuple[int, float]:
        logs = [math.log(max(r.error, 1e-300) / max(least.get(b, 1.0), 1e-300)) for b, r in mine.items()]
        return -len(mine), sum(logs) / len(logs)

    return sorted(pairs.values(), key=figure)


def command(row: Row, request: Request) -> str:
    """The command that samples with the plan of a row."""
    run = request.recorded.run or {}
    words = ["ebb", "sample", *(["--data", run["data"]] if "data" in run else [request.model.name])]
    for key in ("denoiser", "size"):
        words += [f"--{key}", str(run[key])] if "data" in run and key in run else []
    if request.plan.process is not None:
        words += ["--process", request.plan.process["name"]]  # type: ignore[index]
    for guide in request.plan.guide:
        words += ["--guidance", f"{guide['scale']:g}"]  # type: ignore[index]
    words += ["--solver", row.pair.solve["name"], "--grid", row.pair.grid["name"], "--steps", str(row.steps)]
    for slot, spec in (("solve", row.pair.solve), ("grid", row.pair.grid)):
        for key, value in spec.items():
            words += ["--set", f"{slot}.{key}={value}"] if key != "name" else []
    return shlex.join(words)


def _write(
    rows: list[Row], ref: Reference, request: Request, budgets: list[int], out: Path | None, save: Path | None
) -> list[Path]:
    """The chart, and the best plan; gives the files written."""
    from ebbtide.app.chart import Line, chart
    from ebbtide.app.files import whole
    from ebbtide.measure.convergence import called

    files: list[Path] = []
    best = winners(rows, budgets)
    if out is not None and best:
        lines: dict[str, Line] = {}
        for mine in ranked(rows, budgets):
            one = next(iter(mine.values())).pair
            points = [(r.calls, r.error) for r in mine.values()]
            lines.setdefault(called(one.solve), Line(one.name, points))
        text = chart(
            list(lines.values())[:_LINES],
            f"{request.model.name}: error of each solver on its best grid",
            "network calls for a sample",
            "error against the fine solution",
            marks=budgets,
            floor=ref.error,
            floor_name="the fine solution's own error",
        )
        with whole(out) as part:
            part.write_text(text, encoding="utf-8")
        files += [out, out.with_suffix(".json")]
    if save is not None and best:
        row = best[max(best)]
        plan = row.plan(request.plan).replace(run=request.recorded.run)
        with whole(save) as part:
            part.write_text(plan.to_yaml(), encoding="utf-8")
        files.append(save)
    return files


def _tell(
    rows: list[Row],
    ref: Reference | None,
    request: Request,
    found: Survey,
    budgets: list[int],
    record: Record,
    files: list[Path],
    everything: bool,
    json: bool,
    quiet: bool,
) -> None:
    """The table and the best, or all of it as JSON."""
    from ebbtide.app.files import said

    best = winners(rows, budgets)
    if json:
        import json as js

        from ebbtide.app.record import plain

        about = {
            "model": request.model.name,
            "n": request.n,
            "reference": record.reference,
            "rows": [plain(r.pair, r.budget, r) for r in rows],
            "best": [
                {
                    "calls": b,
                    **plain(r.pair, b, r),
                    "plan": r.plan(request.plan).to_dict(),
                    "command": command(r, request),
                }
                for b, r in best.items()
            ],
            "drawn": found.drawn,
            "left": found.left,
            "files": [said(f) for f in files],
        }
        typer.echo(js.dumps(about))
        return
    if ref is None or not rows:
        return
    _table(rows, ref, request, budgets, best, everything)
    typer.echo()
    for budget, row in best.items():
        typer.echo(f"Best at {budget} calls: {row.pair.name}, error {row.error:.3g}")
        typer.echo(f"  {command(row, request)}")
    if found.drawn and not quiet:
        typer.echo(
            f"\nThese draw noise at every step, so they have no path to be compared with: {', '.join(found.drawn)}"
        )
    if files and not quiet:
        typer.secho(", ".join(said(f) for f in files), err=True)


def _table(
    rows: list[Row], ref: Reference, request: Request, budgets: list[int], best: dict[int, Row], everything: bool
) -> None:
    from rich.console import Console
    from rich.table import Table

    from ebbtide.measure.convergence import called

    ordered = ranked(rows, budgets)
    shown = ordered if everything else ordered[:_SHOWN]
    console = Console(highlight=False)
    n = request.n
    console.print(
        f"[bold]{request.model.name}[/bold]: error of {n} samples against the model's own fine solution "
        f"({ref.steps} steps, itself good to {ref.error:.1g})",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("solver", style="cyan", no_wrap=True)
    table.add_column("grid", style="cyan", no_wrap=True)
    for budget in budgets:
        table.add_column(f"{budget} calls", justify="right", no_wrap=True)
    for mine in shown:
        pair = next(iter(mine.values())).pair
        cells = [_cell(mine.get(b), ref, best.get(b)) for b in budgets]
        table.add_row(called(pair.solve), called(pair.grid), *cells)
    console.print(table)
    if len(shown) < len(ordered):
        console.print(f"and {len(ordered) - len(shown)} more pairs: --all", style="dim")
    part = sum(len(mine) < len(budgets) for mine in ordered)
    if part:
        console.print(f"{part} pairs were not measured everywhere, being far behind at the middle: --full", style="dim")


def _cell(row: Row | None, ref: Reference, best: Row | None) -> str:
    if row is None:
        return "[dim]-[/dim]"
    if not math.isfinite(row.error):
        return "[red]not finite[/red]"
    text = f"< {ref.error:.1g}" if row.error < ref.error else f"{row.error:.3g}"
    return f"[bold green]{text}[/bold green]" if row is best else text
