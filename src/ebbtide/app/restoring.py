"""`ebb restore`: what a picture was, from what is left of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ebbtide.app import options as opt
from ebbtide.app.words import describe
from ebbtide.core.errors import EbbError, nearest

RESTORE = describe(
    "Restore a picture from what is left of it, several times over: where the restorations differ, it is not known.",
    ("ebb restore digits torn.png --operator mask --mask hole.png -o whole.png", "fill in where the mask is white"),
    ("ebb restore digits small.png --operator downsample --with factor=4 -n 8", "a picture of four times the width"),
    (
        "ebb restore digits soft.png --operator blur --with width=2 --noise 0.05 --by red-diff",
        "undo a blur, with noise",
    ),
    (
        "ebb restore digits seen.npy --operator lens.py:warp",
        "an operator of your own: a function of samples (B, C, H, W)",
    ),
    ("ebb sample --plan whole.plan.yaml -o again.png", "the same once more, from the plan alone"),
    more="The picture that is written shows what was measured, the mean of the restorations, their standard deviation, "
    "and each of them.",
)

METHODS = ("copaint", "red-diff")
WHOLE = ("mask", "blur", "grayscale", "clip")
"""Operators whose measurements have the size of the pictures."""


def restore(
    model: Annotated[str, typer.Argument(help="A shipped model or a trained folder.", show_default=False)],
    picture: Annotated[
        str, typer.Argument(metavar="PICTURE", help="What was measured: a picture or .npy.", show_default=False)
    ],
    operator: Annotated[
        str,
        opt.what("--operator", metavar="NAME|FILE.py:F", help="What was done to it: mask, downsample, blur... (mask)."),
    ] = "mask",
    mask: Annotated[
        str | None, opt.what("--mask", metavar="PICTURE", help="White where the picture is to be made.")
    ] = None,
    with_: Annotated[
        list[str] | None,
        opt.what(
            "--with", metavar="PARAM=VALUE", help="A parameter of the operator, such as factor=4; may be repeated."
        ),
    ] = None,
    noise: Annotated[
        float | None, opt.what("--noise", help="Standard deviation of what was measured, in units of -1 to 1 (0).")
    ] = None,
    label: opt.Label = None,
    n: Annotated[int | None, opt.count("How many restorations (4).")] = None,
    seed: Annotated[str | None, opt.seeds(0)] = None,
    by: Annotated[str, opt.how("--by", metavar="copaint|red-diff", help="The method (copaint).")] = "copaint",
    steps: Annotated[int | None, opt.how("--steps", help="Steps of the grid (those of the method's preset).")] = None,
    sets: Annotated[
        list[str] | None,
        opt.how("--set", metavar="SLOT.PARAM=VALUE", help="Any other parameter, such as correct.iters=4."),
    ] = None,
    device: opt.Device = None,
    batch: Annotated[int | None, opt.how("--batch", help="How many restorations at a time (all).")] = None,
    out: Annotated[
        str | None,
        opt.shown("--out", "-o", metavar="PATH", help="As for ebb sample; by default a new MODEL-0.png."),
    ] = None,
    overwrite: opt.Overwrite = False,
    preview: opt.Preview = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    spec = _operator(operator, with_, noise)
    base = _base(by, spec)
    options = opt.typed({**locals(), "given": _given(operator, picture, mask), "label": label or "none", "n": n or 4})
    from ebbtide.app import sampling
    from ebbtide.interop import pipelines

    if pipelines.is_pipeline(model):
        raise EbbError(f"{model} makes latents, and restoration fits pixels: name a model that makes these.")
    sampling.draw(options, sampling.Shown(out, overwrite, preview=preview, quiet=quiet, json=json), base=base)


def _operator(name: str, given: list[str] | None, noise: float | None) -> dict[str, Any]:
    """The operator as plans say it. Raises EbbError for one that there is not, and for parameters it does not have."""
    import yaml

    from ebbtide.measure import operators

    spec: dict[str, Any] = {"name": name}
    for text in given or ():
        key, sign, value = text.partition("=")
        if not sign or not key.isidentifier():
            raise EbbError(f"--with {text}: write PARAM=VALUE, as in factor=4.")
        try:
            spec[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise EbbError(f"--with {text}: {value} cannot be read as a value (YAML).") from None
    spec |= {} if noise is None else {"noise": noise}
    operators.check(spec)
    if ".py" in name:
        operators.find(spec, {})  # a file that is missing, or lacks the function, is told before a model is loaded
    return spec


def _base(by: str, spec: dict[str, Any]) -> Any:
    """The plan of a method, with this operator. Raises EbbError for methods that there are not."""
    from ebbtide import systems
    from ebbtide.core.plan import Plan

    if by not in METHODS:
        raise EbbError(f"--by {by}: {nearest(by, METHODS)}")
    data = dict(systems.find(by).presets[by])
    for slot, value in data.items():
        own = [{**v, "operator": spec} if v.get("name") == by else v for v in (value if slot == "correct" else [value])]
        data[slot] = own if slot == "correct" else own[0]
    return Plan.from_dict(data)


def _given(operator: str, picture: str, mask: str | None) -> dict[str, Any]:
    """The files that the restorations are given. Raises EbbError for those that cannot be read, and masks out of place."""
    from ebbtide.denoise.files import file

    if operator == "mask" and mask is None:
        raise EbbError("--operator mask needs --mask PICTURE, white where the picture is to be made.")
    if mask is not None and operator != "mask" and ".py" not in operator:
        raise EbbError(f"the operator {operator!r} takes no mask: leave --mask out, or say --operator mask.")
    given = {"measured": file(picture, fit=operator in WHOLE)}
    return given if mask is None else {**given, "mask": file(mask, fit=True, mask=True)}
