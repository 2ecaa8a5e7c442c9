"""`ebb steer`: samples that a reward likes, by particles, beams, or a search over whole runs."""

from __future__ import annotations

import json as js
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app import options as opt
from ebbtide.app.sampling import default_of, path_at, report
from ebbtide.app.words import describe, note
from ebbtide.core.errors import EbbError, nearest

if TYPE_CHECKING:
    from ebbtide.app.request import Request
    from ebbtide.tune.search import Found

STEER = describe(
    "Draw samples that a reward likes, and show the best of each request with its score.",
    ("ebb steer digits --reward digit -n 8 -o read.png", "four particles to a digit; read.best.png has the winners"),
    ("ebb steer digits --reward digit --label 7 --method dlbs --particles 2", "beams and their children"),
    ("ebb steer shakespeare --reward vowels --method dlbs --steps 32 -o vowels.txt", "text, too"),
    ("ebb steer digits --reward '{name: digit, label: 4}' --method random --budget 320", "the best of 16 runs"),
    ("ebb steer digits --reward judge.py:sharpness --method zero-order --budget 640", "by a function of your own"),
    ("ebb sample --plan read.plan.yaml -o again.png", "the plan repeats it; of a search, without the search"),
    more="Rewards: [cyan]mean[/cyan], [cyan]near[/cyan], [cyan]hit[/cyan], [cyan]digit[/cyan], [cyan]vowels[/cyan], or "
    "FILE.py:FUNCTION, which gets samples (n, ...) and gives n scores. Parameters of a method: --set steer.strength=20.",
)
PARTS = {"fk": "fk-steering", "dlbs": "dlbs"}
SEARCHES = ("random", "zero-order", "paths")


def steer(
    model: opt.Model = None,
    plan: Annotated[
        str | None,
        opt.what("--plan", metavar="FILE|PRESET", help="The plan that is steered; its own steer is replaced."),
    ] = None,
    data: opt.Data = None,
    denoiser: opt.Denoiser = None,
    size: opt.Size = None,
    label: opt.Label = None,
    prompt: opt.Prompt = None,
    negative: opt.Negative = None,
    n: Annotated[int | None, opt.count("How many winners (4).")] = None,
    seed: Annotated[str | None, opt.seeds(0)] = None,
    *,
    reward: Annotated[
        str, opt.how("--reward", metavar="NAME|FILE.py:F|{name: ...}", help="What makes a sample better than another.")
    ],
    method: Annotated[
        str, opt.how("--method", help="fk, dlbs, or over whole runs: random (search), zero-order, paths (fk).")
    ] = "fk",
    particles: Annotated[
        int | None, opt.how("--particles", help="Of fk and dlbs: how many compete for each winner (4).")
    ] = None,
    budget: Annotated[
        int | None, opt.how("--budget", help="Of searches: network calls for each winner (8 times the steps).")
    ] = None,
    steps: Annotated[int | None, opt.how("--steps", help="Steps of the grid (20).")] = None,
    solver: Annotated[
        str | None, opt.how("--solver", metavar="PART", help="How to move (ancestral; of searches, euler).")
    ] = None,
    grid: Annotated[str | None, opt.how("--grid", metavar="PART", help="Which times (linear).")] = None,
    guidance: opt.Guidance = None,
    eta: Annotated[float | None, opt.how("--eta", help="Fresh noise at every step, 0 to 1.")] = None,
    process: opt.Process = None,
    sets: Annotated[
        list[str] | None,
        opt.how("--set", metavar="SLOT.PARAM=VALUE", help="Any other parameter, such as steer.strength=20."),
    ] = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch: Annotated[int | None, opt.how("--batch", help="How many samples at a time (all).")] = None,
    out: Annotated[
        str | None, opt.shown("--out", "-o", metavar="PATH", help="Where samples go, as for `ebb sample`.")
    ] = None,
    overwrite: opt.Overwrite = False,
    preview: opt.Preview = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    options = opt.typed(locals())
    from ebbtide.app import output, winners
    from ebbtide.app.files import vacant
    from ebbtide.app.request import resolve
    from ebbtide.denoise.model import seeds_of

    wanted = _method(method)
    spec = _reward(reward)
    n = n if n is not None or plan is not None else 4
    if wanted in SEARCHES:
        _refuse("--particles", particles is not None, wanted)
        _refuse("--preview", preview, wanted)
        request = resolve(replace(options, n=n))
        request = replace(request, plan=request.plan.replace(steer=None), group=1)
    else:
        _refuse("--budget", budget is not None, wanted)
        particles = 4 if particles is None else particles
        if particles < 1 or (n is not None and n < 1):
            raise EbbError("-n and --particles are at least 1.")
        how = [f"steer={js.dumps({'name': PARTS[wanted], 'reward': spec})}", *(sets or ())]
        solver = "ancestral" if plan is None and solver is None and eta is None else solver
        count = None if n is None else n * particles
        request = resolve(replace(options, n=count, group=particles, sets=how, solver=solver))
    path = default_of(request) if out is None else path_at(out)
    output.check(path, seeds_of(request.seed, request.n), overwrite, False, request.model, None)
    vacant(winners.path_of(path, request.model.medium), overwrite)
    note(request.notes, quiet)
    if wanted in SEARCHES:
        _searched(request, spec, wanted, budget, path, overwrite, quiet, json)
        return
    from ebbtide.app.session import Manner, carry_out

    report(carry_out(request, path, Manner(preview=preview, quiet=quiet)), request, quiet, json)


def _method(name: str) -> Any:
    known = {**{k: k for k in (*PARTS, *SEARCHES)}, **{v: k for k, v in PARTS.items()}, "search": "random"}
    if name not in known:
        raise EbbError(f"there is no method {name!r}; {nearest(name, known)}")
    return known[name]


def _refuse(option: str, given: bool, method: str) -> None:
    if given:
        raise EbbError(f"{option} is not for the method {method}; leave it out.")


def _reward(text: str) -> str | dict[str, Any]:
    """A name, or a mapping in braces. Raises EbbError for what is neither, and for unknown names."""
    import yaml

    from ebbtide.measure import rewards

    spec: Any = text
    if text.lstrip().startswith("{"):
        try:
            spec = yaml.safe_load(text)
        except yaml.YAMLError:
            raise EbbError(f"--reward {text}: this cannot be read; write '{{name: near, point: [1, 0]}}'.") from None
    rewards.check(spec)
    return spec


def _searched(
    r: Request, spec: Any, method: Any, budget: int | None, path: Path, overwrite: bool, quiet: bool, json: bool
) -> None:
    """A search, its bar, and its files; the journal lies beside them until it is over."""
    from ebbtide.app import output, winners
    from ebbtide.app.files import said, vacant

    stem = path if output.kind_of(path) == "folder" else path.with_suffix("")
    journal, noise = (stem.with_name(f"{stem.name}.{kind}.safetensors") for kind in ("search", "noise"))
    if method != "random":
        vacant(noise, overwrite)
    if overwrite:
        journal.unlink(missing_ok=True)
    budget = 8 * int(r.plan.to_dict()["grid"].get("steps", 20)) if budget is None else budget
    found = _run(r, spec, method, budget, journal, noise, quiet)
    best = winners.best(found.samples, found.scores)
    files = output.write(found.samples, path, overwrite=True)
    files += [noise] if found.samples.plan.parts("start")[0].called == "saved" else []
    files.append(winners.write(found.samples, best, path))
    journal.unlink(missing_ok=True)
    out, tried = found.samples, len(found.tried)
    if json:
        about = {
            "files": [said(f) for f in files],
            "model": r.model.name,
            "n": r.n,
            "seconds": round(out.seconds, 3),
            "calls": out.calls,
            "candidates": tried,
            "winners": [w._asdict() for w in best],
            **({"remarks": out.remarks} if out.remarks else {}),
        }
        typer.echo(js.dumps(about))
    elif not quiet:
        names = ", ".join(said(f) for f in files) if len(files) <= 4 else f"{len(files)} files in {said(path)}"
        scores = ", ".join(w.said for w in best[:8])
        typer.secho(f"{r.n} winners of {tried} candidates each, scores {scores}: {names}", err=True)
    note(out.remarks)


def _run(r: Request, spec: Any, method: Any, budget: int, journal: Path, noise: Path, quiet: bool) -> Found:
    """The search, a bar going along."""
    import time

    from ebbtide.app.files import said
    from ebbtide.app.progress import clock, rest
    from ebbtide.app.screen import Live
    from ebbtide.app.stopping import Stop, again
    from ebbtide.tune.search import search

    began = time.monotonic()
    with Live(r.model.name, "what", "left", quiet=quiet, lines=True) as live, Stop(live.stopping) as stop:

        def watch(done: float, total: float) -> None:
            stop.check()
            if live.due():
                what = f"{done:.0f}/{total:.0f} calls"
                left = f"{clock(rest(time.monotonic() - began, done, total - done))} left"
                live.tell(done, total, line=f"{what}, {left}", what=what, left=left)

        about = {k: v for k, v in r.asked.items() if k not in ("model", "plan", "group")}
        try:
            return search(r.model, r.plan, spec, budget, method, journal=journal, noise=noise, watch=watch, **about)
        except KeyboardInterrupt:
            kept = f"Go on with: {again('--overwrite')}" if journal.exists() else "Nothing is kept."
            typer.secho(f"stopped. {kept}" + (f" ({said(journal)})" if journal.exists() else ""), err=True)
            raise typer.Exit(stop.code) from None
