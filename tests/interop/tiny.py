"""Tiny pipelines of the real architectures, the schedulers they are tried under, and what they make by themselves."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as df
import torch
from torch import Tensor

SIZE: dict[str, dict[str, Any]] = {
    "sd": {"height": 32, "width": 32},
    "sd3": {"height": 32, "width": 32},
    "flux": {"height": 16, "width": 16, "max_sequence_length": 32},
    "wan": {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16},
    "dit": {},
}
PROMPTS = {"prompt": ["low newer", "wider"], "negative": ["west", "er"]}
SCALE = {"flux": "true_cfg_scale"}
_SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: df.DDIMScheduler(clip_sample=False, steps_offset=1, **_SD),
    "euler": lambda: df.EulerDiscreteScheduler(**_SD),
    "euler-leading": lambda: df.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **_SD),
    "dpmpp": lambda: df.DPMSolverMultistepScheduler(**_SD),
    "dpmpp-karras": lambda: df.DPMSolverMultistepScheduler(use_karras_sigmas=True, **_SD),
    "unipc": lambda: df.UniPCMultistepScheduler(**_SD),
    "flow-euler": lambda: df.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow-euler-dynamic": lambda: df.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "flow-dpmpp": lambda: df.DPMSolverMultistepScheduler(**_FLOW),
    "flow-unipc": lambda: df.UniPCMultistepScheduler(**_FLOW),
}
# DiT hands Euler's `step` the scaled latents, and Flux hands DPM-Solver++ a mu that it refuses: those do not apply
TABLE = ("ddim", "dpmpp", "dpmpp-karras", "unipc")
MATCHED = {
    "sd": (*TABLE, "euler", "euler-leading"),
    "dit": TABLE,
    "sd3": ("flow-euler", "flow-euler-dynamic", "flow-dpmpp"),
    "flux": ("flow-euler", "flow-euler-dynamic"),
    "wan": ("flow-euler", "flow-dpmpp", "flow-unipc"),
}


def tools(shared: Path) -> Any:
    """The module that builds them."""
    spec = importlib.util.spec_from_file_location("tiny_pipelines", shared / "tools" / "tiny_pipelines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ready(pipe: Any) -> Any:
    """The pipeline in evaluation mode, as one from a folder is, and quiet."""
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def build(shared: Path, name: str, scheduler: str | None = None) -> Any:
    """The pipeline, with this scheduler in place of its own."""
    pipe = ready(tools(shared).build(name))
    if scheduler is not None:
        pipe.scheduler = SCHEDULERS[scheduler]()
    return pipe


def asked(name: str) -> dict[str, Any]:
    """Two prompts, or labels, as ebbtide takes them."""
    return {"label": [1, 3]} if name == "dit" else PROMPTS


def call(name: str, pipe: Any, latents: Tensor, steps: int, scale: float, **more: Any) -> Tensor:
    """What the pipeline makes of two prompts and these latents by its own call: pictures in [0, 1]."""
    asked: dict[str, Any] = {
        **SIZE[name],
        SCALE.get(name, "guidance_scale"): scale,
        "num_inference_steps": steps,
        **more,
    }
    asked = {"output_type": "pt", "return_dict": False, **asked}
    if name != "dit":
        prompts = {"prompt": PROMPTS["prompt"], "negative_prompt": PROMPTS["negative"]}
        return torch.as_tensor(pipe(**prompts, latents=latents.clone(), **asked)[0])
    module = sys.modules[df.DiTPipeline.__module__]  # takes no latents
    drawn = module.randn_tensor
    module.randn_tensor = lambda *args, **kwargs: latents.clone()
    try:
        return torch.as_tensor(pipe([1, 3], **asked)[0])
    finally:
        module.randn_tensor = drawn
