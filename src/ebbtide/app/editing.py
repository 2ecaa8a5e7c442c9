"""`ebb edit`: a picture of yours under another condition."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app import options as opt
from ebbtide.app.sampling import Shown, draw
from ebbtide.app.words import describe
from ebbtide.core.errors import EbbError, nearest

if TYPE_CHECKING:
    from ebbtide.app.request import Request

EDIT = describe(
    "Make a picture into something else, and keep what can be kept of it.",
    ("ebb edit digits three.png --label 8 --from-label 3 -o eights.png", "a three becomes four eights of its shape"),
    (
        "ebb edit emoji cat.png --prompt 'dog face' --from-prompt 'cat face' --strength 0.7",
        "further from the picture, nearer to the words",
    ),
    ("ebb edit digits three.png --label 8 --by magicmix", "the layout of the picture under another content"),
    ("ebb edit digits three.png --label 8 --by encoded", "plain img2img"),
    ("ebb sample --plan eights.plan.yaml -o again.png", "the same edits, bit for bit"),
    more="The sheet shows the picture first. A run that was stopped goes on with [cyan]ebb resume[/cyan].",
)

WAYS = ("edit-friendly", "magicmix", "encoded")
STEPS, STRENGTH, GUIDANCE, N = 30, 0.6, 4.0, 4


def edit(
    model: Annotated[str, typer.Argument(help="As for ebb sample.", show_default=False)],
    picture: Annotated[list[str], typer.Argument(help="The picture; several are taken in turn.", show_default=False)],
    label: opt.Label = None,
    prompt: opt.Prompt = None,
    negative: opt.Negative = None,
    from_label: Annotated[
        int | None, opt.what("--from-label", metavar="K", help="The class that the picture shows.")
    ] = None,
    from_prompt: Annotated[
        str | None, opt.what("--from-prompt", metavar="TEXT", help="What the picture shows, in words.")
    ] = None,
    size: opt.Size = None,
    n: Annotated[int | None, opt.count(f"How many edits ({N}, or one a picture).")] = None,
    seed: Annotated[str | None, opt.seeds(0)] = None,
    by: Annotated[str, opt.how("--by", metavar="|".join(WAYS), help=f"How it is edited ({WAYS[0]}).")] = WAYS[0],
    strength: Annotated[
        float, opt.how("--strength", help=f"How far from the picture, 0 to 1 ({STRENGTH}).")
    ] = STRENGTH,
    steps: Annotated[
        int, opt.how("--steps", help=f"Steps of the whole grid ({STEPS}); a share of them is made.")
    ] = STEPS,
    guidance: Annotated[
        float, opt.how("--guidance", help=f"Strength of classifier-free guidance ({GUIDANCE:g}); 1 is none.")
    ] = GUIDANCE,
    sets: Annotated[
        list[str] | None,
        opt.how(
            "--set", metavar="SLOT.PARAM=VALUE", help="Any other parameter, such as start.scale=2; may be repeated."
        ),
    ] = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch: Annotated[int | None, opt.how("--batch", help="How many edits at a time (all).")] = None,
    out: Annotated[
        str | None,
        opt.shown("--out", "-o", metavar="PATH", help="As for ebb sample; by default a new MODEL-0.png."),
    ] = None,
    overwrite: opt.Overwrite = False,
    frames: Annotated[bool, opt.shown("--frames", help="Also a GIF of the way there.")] = False,
    preview: opt.Preview = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    if label is None and not prompt:
        raise EbbError("say what the picture is to become: --label 8, or --prompt 'a dog' for a model asked in words.")
    source = _source(by, from_label, from_prompt)
    plain = opt.files([f"source={p}" for p in picture])
    options = opt.typed({**locals(), "given": {**plain, **source}}, "steps")
    count = max(N, len(picture), len((label or "").split(",")), len(prompt or ())) if n is None else n
    base = _plan(by, strength, steps, guidance)
    options = replace(options, n=count, guidance=None)
    draw(options, Shown(out, overwrite, frames, preview, quiet, json), base, lambda r: _fits(r, picture, by, source))


def _source(by: str, label: int | None, prompt: str | None) -> dict[str, Any]:
    """The condition of the picture. Raises EbbError for one that would not be read."""
    if by not in WAYS:
        raise EbbError(f"there is no way {by!r} to edit; {nearest(by, WAYS)}")
    said = {k: v for k, v in (("label", label), ("prompt", prompt)) if v is not None}
    if len(said) > 1:
        raise EbbError("a picture is described by --from-label or by --from-prompt: leave one out.")
    if by != "edit-friendly":
        if said:
            raise EbbError(
                f"--from-{next(iter(said))} is read by --by edit-friendly, not by {by}: leave one of both out."
            )
        return {}
    return {"from": said}


def _plan(by: str, strength: float, steps: int, guidance: float) -> Any:
    """The plan of this way to edit."""
    from ebbtide import systems
    from ebbtide.core.plan import Plan

    if not 0 <= strength <= 1:
        raise EbbError(f"--strength is a share between 0 and 1, not {strength:g}.")
    if int(strength * steps) < 1:
        raise EbbError(f"--strength {strength:g} makes none of {steps} steps, so nothing changes: raise one of both.")
    plain = {"start": {"name": "encoded", "strength": strength}}
    preset = {"edit-friendly": "edit-friendly-ddpm"}.get(by, by)
    data: dict[str, Any] = plain if by == "encoded" else dict(systems.find(preset).presets[preset])
    data |= {
        "grid": {"name": "linear", "steps": steps},
        "guide": [] if guidance == 1 else [{"name": "cfg", "scale": guidance}],
        "start": {**data["start"], "strength": strength},
    }
    if by == "magicmix":  # the row's own interval, from wherever the run begins
        (mix,) = data["correct"]
        data["correct"] = [{**mix, "first": strength, "last": strength * mix["last"] / mix["first"]}]
    return Plan.from_dict(data)


def _fits(request: Request, pictures: list[str], by: str, source: dict[str, Any]) -> Request:
    """The request, with what should be said of it. Raises EbbError where the model makes no pictures, or cannot be told."""
    from PIL import Image

    model, told = request.model, []
    if model.medium != "image":
        raise EbbError(f"{model.name} makes no pictures, so it cannot edit one.")
    asked = source.get("from", {})
    if "prompt" in asked and not model.prompted:
        raise EbbError(f"{model.name} is not asked in words: describe the picture by --from-label.")
    if "label" in asked and model.prompted:
        raise EbbError(f"{model.name} is asked in words: describe the picture by --from-prompt.")
    if by == "edit-friendly" and not asked and (model.prompted or model.labels):
        how = "--from-prompt" if model.prompted else "--from-label"
        told.append(f"the picture is read as anything at all ({how} says what it shows)")
    for name in dict.fromkeys(pictures):
        if name.endswith(".npy"):
            continue
        with Image.open(name) as image:
            wide, high = image.size
        h, w = model.like.shape[-2:]
        if (high, wide) != (h, w):
            told.append(f"{name} is {wide} x {high} and is made {w} x {h}, the size of {model.name}'s pictures")
    return replace(request, notes=[*request.notes, *told])
