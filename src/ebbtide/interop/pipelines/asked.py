"""What a call of an attached pipeline makes of its plan: the grid, its times, the guides.

The times must be known before the run, since pipelines count them. What the caller gives goes before the plan's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.core.state import State
from ebbtide.grid.fixed import FixedGrid
from ebbtide.interop.schedulers import Found

_STATIC = ("name", "steps", "first", "last", "terminal")
"""What a grid that shifts by the size of the picture keeps where its shift is known."""


def grid_of(plan: Plan, given: Mapping[str, Any], facts: Found, mu: float | None = None) -> dict[str, Any]:
    """The grid of a call: the plan's, with the steps or the list that the caller gave.

    facts  what the pipeline's scheduler says of the network
    mu     the exponent by which the pipeline shifts, for a grid that shifts by the size of the picture

    Raises EbbError for a grid that cannot have this many steps.
    """
    grid: dict[str, Any] = dict(plan.grid)  # type: ignore[arg-type]
    n = given.get("num_inference_steps")
    if given.get("sigmas") is not None:
        listed = [float(v) for v in given["sigmas"]]
        return {"name": "explicit", "times" if facts.flow else "sigmas": [*listed, *([] if listed[-1] == 0 else [0.0])]}
    if given.get("timesteps") is not None:
        return {"name": "explicit", "times": [*facts.times(given["timesteps"]).tolist(), 0.0]}
    if mu is not None and grid.get("dynamic") and grid.get("length") is None:
        shift = float(mu) if grid.get("form") == "linear" else math.exp(mu)
        grid = {**{k: v for k, v in grid.items() if k in _STATIC}, "shift": shift}
    if n is None:
        return grid
    if "steps" in getattr(registry.find("grid", grid["name"]).cls, "__pydantic_fields__", {}):
        return {**grid, "steps": n}
    held = len(grid.get("times") or grid.get("sigmas") or ()) - 1
    if held != n:
        raise EbbError(
            f"the plan's grid {grid['name']!r} has {held} steps of its own; num_inference_steps={n} cannot be."
        )
    return grid


def points_of(grid: Mapping[str, Any], process: Any) -> Tensor:
    """The times of a grid, (n + 1,). Raises EbbError where they are not known before the run."""
    made = registry.make("grid", grid)
    if not isinstance(made, FixedGrid):
        raise EbbError(
            f"grid {made.entry.name!r} finds its times on the way, and a pipeline counts them first: "
            "give an attached plan a fixed grid, or sample with ebb.load(pipe)."
        )
    if getattr(made, "dynamic", False) and getattr(made, "length", None) is None:
        raise EbbError(f"grid {made.entry.name!r} shifts by the size of the picture; give it its length in tokens.")
    blank = State.blank(torch.zeros(1, 1), {}, [0])
    return made.points(process, blank)


def guides(plan: Plan, scale: float | None) -> list[dict[str, Any]]:
    """The plan's guides at this scale of classifier-free guidance; those that need a null condition left out for None."""
    listed: Any = plan.guide
    specs: list[dict[str, Any]] = [dict(s) for s in listed]
    if scale is None:
        return [s for s in specs if "null" not in registry.find("guide", s["name"]).needs]
    if any("null" in registry.find("guide", s["name"]).needs for s in specs):
        return [{**s, "scale": scale} if s["name"] == "cfg" else s for s in specs]
    return [*specs, {"name": "cfg", "scale": scale}]


def once(plan: Plan) -> Plan:
    """The process, grid and solver of a plan. Raises EbbError for one that needs more than one output a step."""
    solver: Any = plan.solve
    calls = registry.make("solve", solver).calls
    if calls != 1:
        raise EbbError(
            f"solver {solver['name']!r} asks the network {calls:g} times a step, and a scheduler is told one output; "
            "use ebb.attach, which asks itself."
        )
    for slot in ("guide", "network", "correct", "steer"):
        if getattr(plan, slot):
            raise EbbError(f"a scheduler has no hand in {slot!r}; leave it out of the plan, or use ebb.attach.")
    if plan.start != {"name": "prior"} and plan.start != {"name": "given"}:
        raise EbbError("a scheduler starts where its pipeline does; leave start out of the plan.")
    return Plan(**{slot: getattr(plan, slot) for slot in ("process", "grid", "solve")})


def made_even(sigmas: Sequence[float]) -> bool:
    """Whether a list is the one that pipelines make for themselves: even, from 1 to 1 / n."""
    listed = torch.as_tensor(sigmas, dtype=torch.float64)
    return bool((listed - torch.linspace(1, 1 / len(listed), len(listed), dtype=torch.float64)).abs().max() < 1e-6)
