"""Calibration: a plan whose parts have learnt from the model what they need to know of it.

    plan, model  ->  runs of the plan without those parts  ->  a record  ->  the same plan, its parts calibrated

What is learnt is plain data and is written into the plan, so a plan file holds all that is needed to repeat a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.denoise.model import Model
from ebbtide.network.record import Heard, Record


def record(
    model: Model,
    plan: Plan,
    *,
    cond: Any = None,
    n: int = 4,
    seed: int | Sequence[int] = 0,
    watch: Callable[[int, int], None] | None = None,
) -> Record:
    """What the network of a model is asked in one run of a plan. Arguments as for `sample`.

    watch   called with the steps made, and with those expected where the grid knows
    """
    heard = Heard(model.denoiser)
    loop, state = begin(replace(model, denoiser=heard), plan, cond, n, seed)
    heard.asked.clear()  # what the start asked
    while not loop.done(state):
        state = loop.step(state).state
        heard.step += 1
        if watch is not None:
            points = state.memory.get("grid", {}).get("points")
            watch(heard.step, heard.step if points is None else points.shape[-1] - 1)
    return Record(model.denoiser, heard.asked)


def calibrate(model: Model, plan: Plan, *, cond: Any = None, n: int = 4, seed: int | Sequence[int] = 1_000_000) -> Plan:
    """The plan with every part of the slot `network` that can be calibrated so for this model.

    Runs the plan once without them. Raises EbbError where there is none.
    """
    parts = plan.parts("network")
    learning = [hasattr(part, "calibrated") for part in parts]
    if not any(learning):
        raise EbbError("nothing in this plan's slot network is calibrated; leave `calibrate` out.")
    plain = [spec for spec, learns in zip(plan.network, learning, strict=True) if not learns]
    found = record(model, plan.replace(network=plain), cond=cond, n=n, seed=seed)
    specs = [
        {"name": part.called, **asdict(part.calibrated(found))} if learns else spec
        for part, spec, learns in zip(parts, plan.network, learning, strict=True)
    ]
    return plan.replace(network=specs)
