"""`ebb sample` and `ebb resume`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app.words import describe

if TYPE_CHECKING:
    from ebbtide.app.request import Request
    from ebbtide.app.session import Outcome

WHAT, HOW, SHOWN = "What is sampled", "How", "What is written and shown"

SAMPLE = describe(
    "Draw samples, and write them with the plan that repeats them.",
    ("ebb sample digits -n 64 -o digits.png", "64 digits on one sheet, and digits.plan.yaml"),
    ("ebb sample digits --label 7 --guidance 3 --steps 12 --solver dpmpp-2m --preview", "watch sevens form"),
    ("ebb sample --plan digits.plan.yaml -o again.png", "the same picture, bit for bit"),
    ("ebb sample --plan digits.png --seed 64 -o more.png", "the plan inside a picture, with other seeds"),
    ("ebb sample --data holiday/ -n 16 --size 32 -o new.png", "from your own pictures, with no network"),
    ("ebb sample digits -n 1000 --batch 100 -o digits/", "one file a sample, written batch by batch"),
    more="Parts and their parameters: [cyan]ebb list --parts[/cyan] and [cyan]ebb explain dpmpp-2m[/cyan].",
)

RESUME = describe(
    "Finish a run that was stopped.",
    ("ebb resume digits.state.safetensors", "go on from the state that the run left beside its output"),
    more="The files are those that the whole run would have written, bit for bit.",
)

Preview = Annotated[bool, typer.Option("--preview", help="Show the picture forming.", rich_help_panel=SHOWN)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.", rich_help_panel=SHOWN)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=SHOWN)]


def _what(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=WHAT, show_default=False)


def _how(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=HOW, show_default=False)


def sample(
    model: Annotated[
        str | None, typer.Argument(help="A shipped model, a trained folder, or pictures.", show_default=False)
    ] = None,
    plan: Annotated[
        str | None, _what("--plan", metavar="FILE|PRESET", help="A plan, a PNG that holds one, or a preset.")
    ] = None,
    data: Annotated[
        str | None, _what("--data", metavar="PATH", help="Your own pictures, a folder or .npz: no network.")
    ] = None,
    denoiser: Annotated[
        str | None, _what("--denoiser", help="For --data: local (new pictures), exact (repeats them) or wiener.")
    ] = None,
    size: Annotated[int | None, _what("--size", help="For --data: make all pictures this many pixels square.")] = None,
    label: Annotated[
        str | None, _what("--label", metavar="K|K,K,..|none", help="The class, or several taken in turn.")
    ] = None,
    n: Annotated[int | None, _what("-n", help="How many samples (16).")] = None,
    seed: Annotated[
        str | None, _what("--seed", metavar="S|S,S,..", help="Sample j has seed S + j (0), or the j-th of a list.")
    ] = None,
    steps: Annotated[int | None, _how("--steps", help="Steps of the grid (20).")] = None,
    solver: Annotated[str | None, _how("--solver", metavar="PART", help="How to move (euler).")] = None,
    grid: Annotated[str | None, _how("--grid", metavar="PART", help="Which times (linear).")] = None,
    guidance: Annotated[
        float | None, _how("--guidance", help="Strength of classifier-free guidance; 1 is none.")
    ] = None,
    eta: Annotated[float | None, _how("--eta", help="Fresh noise at every step, 0 to 1.")] = None,
    process: Annotated[str | None, _how("--process", metavar="PART", help="Sample in another process.")] = None,
    sets: Annotated[
        list[str] | None,
        _how("--set", metavar="SLOT.PARAM=VALUE", help="Any other parameter, such as grid.rho=5; may be repeated."),
    ] = None,
    device: Annotated[str | None, _how("--device", help="cpu, cuda, mps...")] = None,
    dtype: Annotated[str | None, _how("--dtype", help="float32, float64, float16 or bfloat16.")] = None,
    batch: Annotated[int | None, _how("--batch", help="How many samples at a time (all).")] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="A sheet (.png .jpg .webp), arrays (.npz), .gif, .txt, or a folder; by default a new MODEL-0.png.",
            rich_help_panel=SHOWN,
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.", rich_help_panel=SHOWN)
    ] = False,
    frames: Annotated[
        bool, typer.Option("--frames", help="Also a GIF of the way there.", rich_help_panel=SHOWN)
    ] = False,
    preview: Preview = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    from ebbtide.app import output
    from ebbtide.app.request import Options, resolve

    path = None if out is None else _output(out)
    if path is not None:
        output.check(path, [], overwrite, frames)
    options = Options(
        source=model,
        data=data,
        denoiser=denoiser,
        size=size,
        plan=plan,
        label=label,
        n=n,
        seed=seed,
        batch=batch,
        device=device,
        dtype=dtype,
        guidance=guidance,
        steps=steps,
        solver=solver,
        grid=grid,
        eta=eta,
        process=process,
        sets=tuple(sets or ()),
    )
    request = resolve(options)
    from ebbtide.app.session import Manner, carry_out
    from ebbtide.denoise.model import seeds_of

    path = _default(request) if path is None else path
    output.check(path, seeds_of(request.seed, request.n), overwrite, frames, request.model, request.recorded)
    manner = Manner(frames, preview, quiet)
    _tell_notes(request, quiet)
    _report(carry_out(request, path, manner), request, manner.quiet, json)


def resume(
    state: Annotated[Path, typer.Argument(help="The .state.safetensors file.", show_default=False)],
    preview: Preview = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    from dataclasses import replace

    from ebbtide.app.session import carry_out, reopen

    request, path, manner, journal = reopen(state)
    _report(carry_out(request, path, replace(manner, preview=preview, quiet=quiet), journal), request, quiet, json)


def _output(out: str) -> Path:
    """The path; one that ends in a slash is a folder, made now so that it is taken for one."""
    from ebbtide.app.files import writable

    path = Path(out)
    if out.endswith("/"):
        writable(path)
    return path


def _default(request: Request) -> Path:
    from ebbtide.app.files import free

    suffix = {"image": ".png", "text": ".txt"}.get(request.model.medium, ".npz")
    return free(Path(request.model.name).name or "samples", suffix)


def _tell_notes(request: Request, quiet: bool) -> None:
    for note in [] if quiet else request.notes:
        typer.secho(f"note: {note}", err=True)


def _report(done: Outcome, request: Request, quiet: bool, json: bool) -> None:
    """The last lines, and the exit code."""
    from ebbtide.app.files import said
    from ebbtide.app.progress import speed

    failed = done.samples.failed if done.samples is not None else []
    names = [said(f) for f in done.files]
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
            **({"state": said(done.state)} if done.state is not None else {}),
        }
        typer.echo(js.dumps(about))
    elif done.samples is not None and not quiet:
        shown = ", ".join(names) if len(names) <= 3 else f"{len(names)} files in {said(done.files[0].parent)}"
        typer.secho(
            f"{request.n} samples, {done.calls} network calls in {done.seconds:.1f} s ({speed(done.rate)}): {shown}",
            err=True,
        )
    if done.samples is None:
        kept = f"{len(names)} files written. " if names else ""
        how = f"Go on with: ebb resume {said(done.state)}" if done.state else "Nothing had begun, nothing is kept."
        typer.secho(f"stopped. {kept}{how}", err=True)
    for failure in failed[:10]:
        typer.secho(f"error: {failure}", err=True, fg="red")
    if len(failed) > 10:
        typer.secho(f"error: and {len(failed) - 10} more", err=True, fg="red")
    if done.code:
        raise typer.Exit(done.code)
