"""The plan by which ebbtide does what a pipeline does by itself: its scheduler, its times, its guidance.

    times = those of `interop.schedulers.read`, or, where the pipeline hands its scheduler a list, that list as it is shifted
    x_t   = what the denoiser is shown at the first time, s(t) latents, for the same latents

Source   the scheduler as the pipeline leaves it after `set_timesteps`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.plan import Plan
from ebbtide.interop.pipelines.hearing import hear
from ebbtide.interop.pipelines.model import PipelineModel, guidance, reading, subject


def matching(model: PipelineModel, steps: int, scale: float = 1.0, *, ignore: Iterable[str] = ()) -> Plan:
    """The plan of the pipeline's own call of `steps` steps, with classifier-free guidance of this scale.

    ignore  fields of the scheduler's config to set aside, as for `interop.schedulers.read`

    Raises EbbError where the scheduler has no counterpart.
    """
    pipe = model.pipe
    heard = hear(pipe, steps, 1, **{**model.size, **subject(pipe), **guidance(pipe, False)})
    plan = plan_of(heard.scheduler, steps, heard.times, ignore)
    return plan.replace(guide=[] if scale == 1 else [{"name": "cfg", "scale": scale}])


def plan_of(scheduler: Any, steps: int, times: Mapping[str, Any], ignore: Iterable[str] = ()) -> Plan:
    """Process, grid and solver of a scheduler whose times are laid out; `times` is what it was given beside `steps`."""
    mu = times.get("mu")
    listed = {k: [float(v) for v in times[k]] for k in ("sigmas", "timesteps") if k in times}
    mu = None if mu is None else float(mu)
    plan = reading(scheduler, None if listed else steps, ignore=list(ignore), mu=mu, **listed).plan
    if listed and isinstance(plan.process, dict) and plan.process["name"] == "flow":
        # as the scheduler has it, shifted and cut in its own way
        return plan.replace(grid={"name": "explicit", "times": scheduler.sigmas.double().tolist()})
    return plan


def first(model: PipelineModel, steps: int, latents: Tensor) -> Tensor:
    """x_t at the first time of a run of `steps`, for the `latents` (B, ...) that the pipeline would be given.

    To be sampled from by `start="given"` and cond={..., "start": x_t}.
    """
    asked = {**model.size, **subject(model.pipe), **guidance(model.pipe, False)}
    scheduler = hear(model.pipe, steps, 1, **asked).scheduler
    return latents * float(entry(scheduler))


def entry(scheduler: Any) -> float:
    """By how much unit latents are multiplied before a denoiser is shown them at the first time of a scheduler."""
    level = torch.as_tensor(getattr(scheduler, "init_noise_sigma", 1.0), dtype=torch.float64).reshape(1)
    scale = getattr(scheduler, "scale_model_input", None)
    if scale is None or hasattr(scheduler, "precondition_inputs"):  # EDM scales for the network alone
        return float(level)
    return float(scale(level, scheduler.timesteps[0]))
