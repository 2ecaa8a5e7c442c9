"""A part as it is typed: PART, PART:param=value, or what k-diffusion and ComfyUI call it.

    deis:order=3          a solver and a parameter of it; values are YAML
    dpmpp_2m              solve dpmpp-2m
    "DPM++ 2M Karras"     the same, on the grid karras
    sgm_uniform           grid clock, its levels even and the last one left out

A name of this package always means its own part. What another name became is told in a note.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml

from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.interop import samplers
from ebbtide.measure.survey import called


class Typed(NamedTuple):
    """A part that was typed.

    spec    of the part, whose parameters have been checked where any were given
    foreign whether the name is another library's
    grid    what a sampler's name says of the grid: the name of one, or the spec of its own
    note    what should be said
    """

    spec: dict[str, Any]
    foreign: bool = False
    grid: str | dict[str, Any] | None = None
    note: str = ""


def part(slot: str, text: str) -> Typed:
    """PART or PART:param=value:... Raises EbbError for parts, parameters and values that do not exist."""
    name, *given = text.strip().split(":")
    spec: dict[str, Any] = {"name": name}
    for pair in given:
        key, sign, value = pair.partition("=")
        if not sign:
            raise EbbError(f"{text}: write PART:param=value, as in deis:order=3.")
        try:
            spec[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise EbbError(f"{text}: {value} cannot be read as a value (YAML).") from None
    registry.find(slot, name)
    if given:
        registry.make(slot, spec)
    return Typed(spec)


def solver(text: str, steps: int, process: Any = None) -> Typed:
    """A solver, by its own name or by that of a sampler, for so many steps of this process.

    Raises EbbError for names that are neither.
    """
    name, scheduler = samplers.named(text)
    known = name in samplers.SAMPLERS or name in samplers.UNSUPPORTED
    if text.partition(":")[0] in registry.names("solve") or not known:
        return part("solve", text)
    own = name in samplers.OWN_LEVELS
    plan = samplers.plan_of(text, steps=steps, process=process) if own else None
    spec = samplers.solver_of(text) if plan is None else plan.to_dict()["solve"]
    differs = f"; {samplers.DIFFERS[name]}" if name in samplers.DIFFERS else ""
    note = f"the sampler {text} is the solver {called(spec)} here{differs}".rstrip(".")
    return Typed(spec, True, scheduler if plan is None else plan.to_dict()["grid"], note)


def grid(text: str, steps: int, process: Any = None) -> Typed:
    """A grid, by its own name or by that of a scheduler, which is laid for so many steps of this process.

    Raises EbbError for names that are neither.
    """
    if text in registry.names("grid") or text not in samplers.SCHEDULERS:
        return part("grid", text)
    spec = samplers.grid_of(text, steps, process=process)
    return Typed(spec, True, note=f"the scheduler {text} is the grid {spec['name']} here")
