"""Attaching: a pipeline keeps its call, its type and its parts, and ebbtide runs the loop inside.

    pipe = ebb.attach(plan, pipe)
    pipe("a lighthouse", num_inference_steps=12, guidance_scale=4.0, generator=g).images

Every call works on a copy of the pipeline with an ear for its denoiser and a driver for its scheduler, so calls of several
threads share the networks and nothing else.

Differs  `num_inference_steps` and a guidance scale that the caller gives go before the plan's, and the plan's before the
         pipeline's defaults. A condition that a ControlNet makes of the latents is that of the step's first point.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.interop.pipelines.asked import grid_of, points_of
from ebbtide.interop.pipelines.driver import Driver
from ebbtide.interop.pipelines.hearing import Ear, denoiser, parameters, signature, twin
from ebbtide.interop.pipelines.model import facts, guidance, process_of


def attach(plan: Plan | None, pipe: Any) -> Any:
    """A pipeline that samples by `plan`; the one given stays as it is, and shares its networks.

    plan   None: what the pipeline's own scheduler would do. Its `start` is the pipeline's affair and stays "prior"

    Raises EbbError for a pipeline without a denoiser, and a plan that cannot be attached.
    """
    denoiser(pipe)
    if plan is not None and plan.start != {"name": "prior"}:
        raise EbbError("an attached plan starts where its pipeline does; leave its start out.")
    kind: Any = getattr(type(pipe), "_ebb_kind", type(pipe))
    made = twin(pipe, _ebb_plan=plan)
    made.__class__ = _attached(kind)
    return made


@functools.cache
def _attached(kind: type) -> type:
    """The class of attached pipelines of a kind; it has the kind's name, so that it is saved as one."""

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _run(self, kind, args, kwargs)

    about = {"__call__": call, "_ebb_kind": kind, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), about)


def _run(pipe: Any, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    bound = signature(kind.__call__).bind(pipe, *args, **kwargs)
    given = {**bound.arguments, **bound.arguments.get("kwargs", {})}
    plan: Plan | None = pipe._ebb_plan
    name = denoiser(pipe)
    if plan is not None and given.get("eta"):
        plan = plan.replace(solve={**plan.solve, "eta": given["eta"]})  # type: ignore[dict-item]
    if given.get("guidance_rescale"):
        raise EbbError("an attached pipeline has no guidance_rescale; put a guide that rescales into the plan.")
    scale = _scale(pipe, plan, bound)
    if plan is not None:
        bound.arguments["num_inference_steps"] = _steps(pipe, plan, given)
    ear = Ear(getattr(pipe, name))
    driver = Driver(_laid_apart(pipe.scheduler), plan, ear, given, scale)
    inner = twin(pipe, **{name: ear, "scheduler": driver})
    inner.__class__ = kind
    bound.arguments["self"] = inner
    return kind.__call__(*bound.args, **bound.kwargs)


def _laid_apart(scheduler: Any) -> Any:
    """A copy whose times can be laid out while the scheduler keeps its own, also where one holds another."""
    made = copy.copy(scheduler)
    made.__dict__.update({k: copy.copy(v) for k, v in vars(made).items() if hasattr(v, "set_timesteps")})
    return made


def _scale(pipe: Any, plan: Plan | None, bound: inspect.BoundArguments) -> float | None:
    """The scale of guidance: the caller's, the plan's or the pipeline's; the call is made to encode both conditions for it."""
    switch = next((k for k in guidance(pipe, True) if k.endswith("scale")), None)
    if switch is None:
        return None
    guides: Any = plan.guide if plan else ()
    mine = next((s for s in guides if s["name"] == "cfg"), None)
    if switch not in bound.arguments and mine is not None:
        bound.arguments[switch] = mine.get("scale", 3.0)
    scale = float(bound.arguments.get(switch, parameters(pipe)[switch].default))
    if switch == "true_cfg_scale" and scale > 1:
        said = bound.arguments.keys() & {"negative_prompt", "negative_prompt_embeds"}
        if not said and mine is not None:
            bound.arguments["negative_prompt"] = ""
    return scale


def _steps(pipe: Any, plan: Plan, given: dict[str, Any]) -> int:
    """How many steps the call makes, for pipelines that count by `strength`."""
    found = facts(pipe.scheduler)
    process: Any = plan.parts("process")[0] if plan.process else process_of(found)
    return len(points_of(grid_of(plan, given, found, 0.0), process)) - 1
