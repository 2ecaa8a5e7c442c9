"""`ebb sample` and `ebb resume`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ebbtide.app import options as opt
from ebbtide.app.words import describe, note

if TYPE_CHECKING:
    from collections.abc import Callable

    from ebbtide.app.request import Request
    from ebbtide.app.session import Outcome
    from ebbtide.core.plan import Plan

SAMPLE = describe(
    "Draw samples, and write them with the plan that repeats them.",
    ("ebb sample digits -n 64 -o digits.png", "64 digits on one sheet, and digits.plan.yaml"),
    ("ebb sample digits --label 7 --guidance 3 --steps 12 --solver dpmpp-2m --preview", "watch sevens form"),
    ("ebb sample --plan digits.plan.yaml -o again.png", "the same picture, bit for bit"),
    ("ebb sample --plan digits.png --seed 64 -o more.png", "the plan inside a picture, with other seeds"),
    ("ebb sample digits --solver 'DPM++ 2M Karras' --steps 12", "by the name that ComfyUI gives a sampler"),
    ("ebb sample digits --plan scheduler_config.json --steps 12", "by the scheduler of a diffusers pipeline"),
    (
        "ebb sample sd15/ --prompt 'a lighthouse' --negative fog --size 512x512 -n 4 --guidance 6",
        "from the folder of a diffusers pipeline",
    ),
    ("ebb sample emoji --prompt @names.txt", "a picture for each line of a file"),
    ("ebb sample --data holiday/ -n 16 --size 32 -o new.png", "from your own pictures, with no network"),
    ("ebb sample digits -n 1000 --batch 100 -o digits/", "one file a sample, written batch by batch"),
    more="Parts and their parameters: [cyan]ebb list --parts[/cyan] and [cyan]ebb explain dpmpp-2m[/cyan].",
)

RESUME = describe(
    "Finish a run that was stopped.",
    ("ebb resume digits.state.safetensors", "go on from the state that the run left beside its output"),
    more="The files are those that the whole run would have written, bit for bit.",
)


def sample(
    model: opt.Model = None,
    plan: Annotated[
        str | None,
        opt.what(
            "--plan", metavar="FILE|PRESET", help="A plan, a PNG that holds one, a preset, or a scheduler's config."
        ),
    ] = None,
    data: opt.Data = None,
    denoiser: opt.Denoiser = None,
    size: opt.Size = None,
    label: opt.Label = None,
    prompt: opt.Prompt = None,
    negative: opt.Negative = None,
    given: opt.Given = None,
    n: Annotated[int | None, opt.count("How many samples (16, or one a prompt).")] = None,
    seed: Annotated[str | None, opt.seeds(0)] = None,
    steps: Annotated[int | None, opt.how("--steps", help="Steps of the grid (20).")] = None,
    solver: Annotated[
        str | None, opt.how("--solver", metavar="PART", help="How to move (euler); names of ComfyUI too: dpmpp_2m.")
    ] = None,
    grid: Annotated[
        str | None, opt.how("--grid", metavar="PART", help="Which times (linear); names of ComfyUI too: sgm_uniform.")
    ] = None,
    guidance: opt.Guidance = None,
    eta: Annotated[float | None, opt.how("--eta", help="Fresh noise at every step, 0 to 1.")] = None,
    process: opt.Process = None,
    sets: Annotated[
        list[str] | None,
        opt.how("--set", metavar="SLOT.PARAM=VALUE", help="Any other parameter, such as grid.rho=5; may be repeated."),
    ] = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch: Annotated[int | None, opt.how("--batch", help="How many samples at a time (all).")] = None,
    group: Annotated[
        int | None, opt.how("--group", help="How many samples in a row are one request, for plans that steer (1).")
    ] = None,
    out: Annotated[
        str | None,
        opt.shown(
            "--out",
            "-o",
            metavar="PATH",
            help="A sheet (.png .jpg .webp), arrays (.npz), .gif, .txt, or a folder; by default a new MODEL-0.png.",
        ),
    ] = None,
    overwrite: opt.Overwrite = False,
    frames: Annotated[bool, opt.shown("--frames", help="Also a GIF of the way there.")] = False,
    preview: opt.Preview = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    shown = Shown(out, overwrite, frames, preview, quiet, json)
    draw(opt.typed({**locals(), "given": opt.files(given)}), shown)


@dataclass(frozen=True)
class Shown:
    """What was typed of what is written and shown; `aloud`: texts also on standard output."""

    out: str | None
    overwrite: bool = False
    frames: bool = False
    preview: bool = False
    quiet: bool = False
    json: bool = False
    aloud: bool = False


def draw(
    options: opt.Options,
    shown: Shown,
    base: Plan | None = None,
    fits: Callable[[Request], Request] = lambda request: request,
) -> None:
    """Draw what the options say, write it and report: what all commands that make samples come down to.

    base   the plan that options are laid over, where they name none
    fits   sees the request before anything is run or written, and may change or refuse it
    """
    from ebbtide.app import output
    from ebbtide.app.request import resolve

    path = None if shown.out is None else path_at(shown.out)
    if path is not None:
        output.check(path, [], shown.overwrite, shown.frames)
    request = fits(resolve(options, base))
    from ebbtide.app.session import Manner, carry_out
    from ebbtide.denoise.model import seeds_of

    path = default_of(request) if path is None else path
    seeds = seeds_of(request.seed, request.n)
    output.check(path, seeds, shown.overwrite, shown.frames, request.model, request.recorded)
    note(request.notes, shown.quiet)
    manner = Manner(shown.frames, shown.preview, shown.quiet)
    report(carry_out(request, path, manner), request, shown.quiet, shown.json, shown.aloud)


def resume(
    state: Annotated[Path, typer.Argument(help="The .state.safetensors file.", show_default=False)],
    preview: opt.Preview = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    from dataclasses import replace

    from ebbtide.app.session import carry_out, reopen

    request, path, manner, journal = reopen(state)
    report(carry_out(request, path, replace(manner, preview=preview, quiet=quiet), journal), request, quiet, json)


def path_at(out: str) -> Path:
    """The path; one that ends in a slash is a folder, made now so that it is taken for one."""
    from ebbtide.app.files import writable

    path = Path(out)
    if out.endswith("/"):
        writable(path)
    return path


def default_of(request: Request) -> Path:
    """A new file named after the model."""
    from ebbtide.app.files import free

    suffix = {"image": ".png", "video": ".gif", "text": ".txt"}.get(request.model.medium, ".npz")
    return free(Path(request.model.name).name or "samples", suffix)


def report(done: Outcome, request: Request, quiet: bool, json: bool, aloud: bool = False) -> None:
    """The last lines, and the exit code."""
    from ebbtide.app.files import said
    from ebbtide.app.progress import speed
    from ebbtide.app.restored import restored

    failed = done.samples.failed if done.samples is not None else []
    remarks = done.samples.remarks if done.samples is not None else []
    names = [said(f) for f in done.files]
    found = None if done.samples is None else restored(done.samples)
    if json:
        import json as js

        about = {
            "files": names,
            "model": request.model.name,
            "n": request.n,
            "seconds": round(done.seconds, 3),
            "calls": done.calls,
            "calls_per_second": round(done.rate, 2),
            "failed": [f._asdict() for f in failed],
            **({"winners": [w._asdict() for w in done.winners]} if done.winners else {}),
            **({"remarks": remarks} if remarks else {}),
            **({"restored": found.figures} if found else {}),
            **({"text": done.samples.text()} if aloud and done.samples is not None else {}),
            **({"state": said(done.state)} if done.state is not None else {}),
        }
        typer.echo(js.dumps(about))
    elif aloud and done.samples is not None:
        from ebbtide.app.forms import lines

        typer.echo(lines(done.samples.text()))
    if done.samples is not None and not quiet and not json:
        shown = ", ".join(names) if len(names) <= 3 else f"{len(names)} files in {said(done.files[0].parent)}"
        typer.secho(
            f"{request.n} samples, {done.calls} network calls in {done.seconds:.1f} s ({speed(done.rate)}): {shown}",
            err=True,
        )
        if found is not None:
            told = found.figures
            typer.secho(
                f"residual {told['residual']:.3g} (noise {told['noise']:g}), mean standard deviation {told['std']:.3g}",
                err=True,
            )
        if done.winners:
            best = ", ".join(w.said for w in done.winners[:8]) + (", ..." if len(done.winners) > 8 else "")
            typer.secho(f"best of each request: {best}", err=True)
    if done.samples is None:
        kept = f"{len(names)} files written. " if names else ""
        how = f"Go on with: ebb resume {said(done.state)}" if done.state else "Nothing had begun, nothing is kept."
        typer.secho(f"stopped. {kept}{how}", err=True)
    note(remarks)
    for failure in failed[:10]:
        typer.secho(f"error: {failure}", err=True, fg="red")
    if len(failed) > 10:
        typer.secho(f"error: and {len(failed) - 10} more", err=True, fg="red")
    if done.code:
        raise typer.Exit(done.code)
