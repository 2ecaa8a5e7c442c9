"""`ebb write`: text by a masked language model, its tokens shown as they are decided."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from ebbtide.app import options as opt
from ebbtide.app.sampling import Shown, draw
from ebbtide.app.words import describe
from ebbtide.core.errors import EbbError

if TYPE_CHECKING:
    from ebbtide.app.request import Request
    from ebbtide.core.plan import Plan

WRITE = describe(
    "Write text: fill the blanks of a prompt, or go on from it, and watch its tokens as they are decided.",
    ('ebb write shakespeare --prompt "ROMEO: ____ love ____."', "one character for each underscore"),
    ('ebb write shakespeare --prompt "JULIET:" --new 60 -n 3', "three ways to go on, each of 60 characters"),
    ("ebb write shakespeare --prompt @lines.txt -o filled.txt", "a text for each line of a file, all at once"),
    ('ebb write bert/ --prompt "The ___ sat on the [MASK]."', "a masked language model of transformers"),
    (
        'ebb write shakespeare --prompt "O ____!" --plan credit-decoding --set solve.threshold=0.7',
        "by the plan of a system",
    ),
    ("ebb write --plan filled.plan.yaml -o again.txt", "the same text, token for token"),
    more="The text comes on standard output, and into a file with its plan beside it. A run that is stopped goes on with "
    "[cyan]ebb resume[/cyan]. Solvers for text: [cyan]threshold, credit-decoding, confidence, first-hitting[/cyan].",
)

DEFAULT: dict[str, Any] = {
    "solve": {"name": "threshold", "threshold": 0.9, "temperature": 0.7},
    "grid": {"name": "events"},
}
STEPS = 32


def write(
    model: opt.Model = None,
    plan: Annotated[
        str | None, opt.what("--plan", metavar="FILE|PRESET", help="A plan, or the preset of a system.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        opt.what("--prompt", metavar="TEXT|@FILE", help="Text with blanks (____), or to go on from; may be repeated."),
    ] = None,
    new: Annotated[
        int | None, opt.what("--new", help="Tokens to write after a prompt (to the end of the row).")
    ] = None,
    n: Annotated[int | None, opt.count("How many texts (one a prompt).")] = None,
    seed: Annotated[str | None, opt.seeds(0)] = None,
    steps: Annotated[
        int | None, opt.how("--steps", help="Steps, for a solver that needs a grid of times (32).")
    ] = None,
    solver: Annotated[
        str | None, opt.how("--solver", metavar="PART", help="How tokens are decided (threshold).")
    ] = None,
    grid: Annotated[str | None, opt.how("--grid", metavar="PART", help="Which times (events, or linear).")] = None,
    guidance: opt.Guidance = None,
    sets: Annotated[
        list[str] | None,
        opt.how(
            "--set", metavar="SLOT.PARAM=VALUE", help="Any other parameter, as solve.temperature=1; may be repeated."
        ),
    ] = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch: Annotated[int | None, opt.how("--batch", help="How many texts at a time (all).")] = None,
    out: Annotated[
        str | None,
        opt.shown("--out", "-o", metavar="PATH", help="A .txt or .npz, or a folder; by default a new MODEL-0.txt."),
    ] = None,
    overwrite: opt.Overwrite = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    options = opt.typed(locals())
    if n is None and plan is None and not prompt:
        options = replace(options, n=1)
    shown = Shown(out, overwrite, preview=True, quiet=quiet, json=json, aloud=True)
    draw(options, shown, None if plan is not None else usual(solver), lambda request: written(request, new))


def usual(solver: str | None) -> Plan:
    """The plan where none is given: thresholds, each text ending by itself; for a solver that asks for times, 32 steps."""
    from ebbtide.core import registry
    from ebbtide.core.plan import Plan

    plain = Plan.from_dict(DEFAULT)
    if solver is None or (solver in registry.names("solve") and "events" in registry.find("solve", solver).needs):
        return plain
    return Plan(grid={"name": "linear", "steps": STEPS})


def written(request: Request, new: int | None) -> Request:
    """The request, with as many new tokens as were asked for.

    Raises EbbError for a model that writes no text, a prompt that does not fit, and one with nothing to write.
    """
    import torch

    model = request.model
    if model.medium != "text":
        raise EbbError(f"{model.name} writes no text; `ebb sample {model.name}` draws from it.")
    if new is not None:
        held = request.cond if isinstance(request.cond, dict) else {"prompt": request.cond or ""}
        request = replace(request, cond={**held, "new_tokens": new})
    start = model.condition(request.cond, request.n).get("start")
    mask = getattr(model.process, "mask", None)
    if isinstance(start, torch.Tensor) and mask is not None:
        full = (~(start == mask).flatten(1).any(1)).nonzero()[:, 0].tolist()
        if full:
            raise EbbError(
                f"text {full[0]} has no blank to fill: write ____ where tokens are wanted, or leave --new out."
            )
    return request
