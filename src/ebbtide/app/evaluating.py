"""`ebb eval`: how good the samples of several plans are, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app import options as opt
from ebbtide.app.words import describe, note
from ebbtide.core.errors import EbbError

if TYPE_CHECKING:
    from ebbtide.app.fronts import Row
    from ebbtide.app.meters import Meters
    from ebbtide.app.request import Request
    from ebbtide.app.trials import Trials

EVAL = describe(
    "Compare plans on a model: quality against network calls and seconds, each figure with its interval.",
    ("ebb eval digits --plan slow.yaml --plan fast.yaml", "Fréchet distance and agreement with a classifier"),
    ("ebb eval digits --plan euler --plan dpmpp-2m --steps 4,8,16 -o front.svg", "solvers at several lengths"),
    ("ebb eval digits --plan 'heun on karras' --plan 'unipc on log-snr' --guidance 2", "as ebb solvers names them"),
    ("ebb eval pipe/ --plan a.yaml --plan b.yaml --prompt @prompts.txt", "pictures against their own fine runs"),
    ("ebb eval mine/model --plan euler --plan heun --data holiday/", "against pictures, in their pixels"),
    ("ebb eval shakespeare --plan confidence --plan ancestral --steps 16,64", "text, by a causal judge"),
    more="All plans start from the same seeds. A plan is on the front when none is as good for less. With -o, samples are "
    "kept beside the output: the same command goes on where it was stopped, and other figures cost no network call.",
)

MEASURED = "What is measured"
_N, _PROMPTED, _FINE = 256, 8, 64


def _measured(*names: str, help: str, metavar: str | None = None) -> Any:
    return opt.option(*names, help=help, metavar=metavar, panel=MEASURED)


def evaluate(
    model: opt.Model = None,
    plans: Annotated[
        list[str] | None,
        opt.what("--plan", metavar="FILE|PRESET|SOLVER[ on GRID]", help="What is compared; repeat it."),
    ] = None,
    label: opt.Label = None,
    prompt: opt.Prompt = None,
    negative: opt.Negative = None,
    size: opt.Size = None,
    n: Annotated[int | None, opt.count("How many samples of each plan (256; of prompts 8, or one each).")] = None,
    seed: Annotated[str | None, opt.seeds(0)] = None,
    metric: Annotated[
        str | None,
        _measured(
            "--metric",
            metavar="NAME,..",
            help="Figures, by the first of which plans are ranked: frechet, kernel, precision, recall, density, coverage, "
            "agreement, error; of text perplexity, distinct, entropy (those that tell most).",
        ),
    ] = None,
    data: Annotated[
        str | None, _measured("--data", metavar="PATH", help="Pictures to compare with, a folder or .npz.")
    ] = None,
    features: Annotated[
        str | None, _measured("--features", metavar="NAME", help="In which space: classifier (digits) or pixels.")
    ] = None,
    judge: Annotated[
        str | None, _measured("--judge", metavar="MODEL", help="The causal model that judges text.")
    ] = None,
    reference: Annotated[
        int | None, _measured("--reference", metavar="N", help="Steps of the fine run, two calls each (64).")
    ] = None,
    steps: Annotated[str | None, opt.how("--steps", metavar="N|N,N,..", help="Every plan at so many steps.")] = None,
    guidance: opt.Guidance = None,
    eta: Annotated[float | None, opt.how("--eta", help="Fresh noise at every step, 0 to 1.")] = None,
    process: opt.Process = None,
    sets: Annotated[
        list[str] | None, opt.how("--set", metavar="SLOT.PARAM=VALUE", help="Any other parameter, of every plan.")
    ] = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch: Annotated[int | None, opt.how("--batch", help="How many samples at a time (an eighth of them).")] = None,
    out: Annotated[
        Path | None, opt.shown("--out", "-o", metavar="FILE", help="The front: .svg, .html or .json, and its rows.")
    ] = None,
    overwrite: Annotated[bool, opt.shown("--overwrite", help="Replace files that exist, and measure afresh.")] = False,
    quiet: Annotated[bool, opt.shown("--quiet", "-q", help="No progress.")] = False,
    json: opt.Json = False,
) -> None:
    options = opt.typed(locals(), "steps", "data")  # those of all plans, and the pictures that samples are held to
    lengths = _lengths(steps)
    if not plans:
        raise EbbError("say what to compare: --plan FILE or --plan SOLVER, once for each.")
    if reference is not None and reference < 2:
        raise EbbError(f"--reference is at least 2 steps, not {reference}.")
    _writable(out)
    figures = [f.strip() for f in metric.split(",")] if metric is not None else []
    from ebbtide.app.contenders import contenders
    from ebbtide.app.fronts import Fronts
    from ebbtide.app.meters import meters
    from ebbtide.app.stopping import again
    from ebbtide.app.trials import Trials

    request = _request(options, plans)
    found, notes = contenders(plans, lengths, options, request.model.process)
    trials = Trials.of(request, found, reference or _FINE)
    measured = meters(request.model, trials.cond, request.n, figures, data, features, judge)
    trials.check("error" in measured.names)
    trials.open(out, overwrite)
    note([*request.notes, *notes, *_remarks(trials, measured)], quiet or json)
    code = trials.fill("error" in measured.names, quiet or json)
    rows: list[Row] = trials.rows(measured)
    fronts = Fronts(request.model.name, request.n, measured.names, rows, trials.against(rows))
    files = [*fronts.draw(out), *trials.write(fronts)]
    if json:
        import json as js

        typer.echo(js.dumps({**fronts.as_data(), "files": [str(f) for f in files]}))
    else:
        fronts.tell([] if quiet else files)
    if code:
        kept = trials.kept.folder is not None
        how = f"Go on with: {again('--overwrite')}" if kept else "Nothing is kept without -o."
        typer.secho(f"stopped. {len(rows)} of {len(found)} plans are measured. {how}", err=True)
        raise typer.Exit(code)
    lost = [r.contender.name for r in rows if not all(math.isfinite(f.value) for f in r.figures.values())]
    if lost:
        typer.secho(f"error: samples of {'; '.join(lost)} are not finite", err=True, fg="red")
        raise typer.Exit(1)


# -------------------------------------------------------------------- what was typed


def _lengths(text: str | None) -> Sequence[int | None]:
    from ebbtide.app.asking import numbers

    found = numbers(text, "--steps")
    listed = found if isinstance(found, list) else [found]
    for count in listed:
        if count is not None and count < 1:
            raise EbbError(f"--steps is at least 1, not {count}.")
    return listed


def _writable(out: Path | None) -> None:
    """See before the work that the output can be written."""
    from ebbtide.app.files import writable

    if out is not None and out.suffix.lower() not in (".svg", ".html", ".json"):
        raise EbbError(f"{out}: the front is an .svg, .html or .json file; give -o {out.with_suffix('.svg')}.")
    if out is not None:
        writable(out.parent)


def _request(o: opt.Options, plans: Sequence[str]) -> Request:
    """What all plans share. The model is the one named, or that of the first plan which names one."""
    from dataclasses import replace

    from ebbtide.app.asking import prompts_of
    from ebbtide.app.request import resolve

    if o.model is None:
        o = replace(o, **_said(plans))
    prompts = prompts_of(o)
    n = o.n if o.n is not None else max(_PROMPTED, len(prompts)) if prompts else _N
    if n < 2:
        raise EbbError(f"-n is at least 2 here, not {n}: one sample has no interval.")
    made = resolve(replace(o, n=n, guidance=None, eta=None, process=None, sets=None))
    return made if made.batch is not None else replace(made, batch=min(64, math.ceil(n / 8)))


def _said(plans: Sequence[str]) -> dict[str, Any]:
    """The model that the first plan says it was run with."""
    from ebbtide.app.contenders import is_file
    from ebbtide.app.reading import read_plan

    for text in plans:
        run = dict((read_plan(text).plan.run if is_file(text) else None) or {})
        if "data" in run:
            size = run.get("size")
            return {"data": run["data"], "denoiser": run.get("denoiser"), "size": None if size is None else str(size)}
        if "model" in run:
            size = run.get("size")
            return {"model": run["model"], "size": f"{size['height']}x{size['width']}" if size else None}
    return {}


# -------------------------------------------------------------------- what should be said


def _remarks(trials: Trials, meters: Meters) -> list[str]:
    """What should be said of too few samples, and of plans that a fine run is no fair reference for."""
    wide, n = 0 if meters.moments is None else len(meters.moments[0]), trials.request.n
    few = f"{n} samples scatter in {wide} features: distances fall with -n, so compare at one number only"
    told = [few] if wide and n < 2 * wide else []
    if "error" not in meters.names:
        return told
    first = trials.contenders[0]
    others = [
        c.name for c in trials.contenders if (c.plan.guide, c.plan.process) != (first.plan.guide, first.plan.process)
    ]
    drawn = dict.fromkeys(
        c.plan.solve["name"]  # type: ignore[index]
        for c in trials.contenders
        if c.plan.parts("solve")[0].stochastic
    )
    other = f"the fine run is guided as {first.name} is, so the error of {', '.join(others)} holds the difference"
    noisy = f"noise that {', '.join(drawn)} draws at every step is part of the error"
    return [*told, *(text for text, found in ((other, others), (noisy, drawn)) if found)]
