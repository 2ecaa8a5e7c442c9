"""Ebbtide: an inference engine for diffusion, flow and masked-diffusion models.

    import ebbtide as ebb

    model = ebb.load("digits")
    plan = ebb.Plan(solve="dpmpp-2m", grid={"name": "karras", "steps": 12}, guide=[{"name": "cfg", "scale": 3.0}])
    ebb.sample(model, plan, cond=7, n=16, seed=0).save("sevens.png")

Names are imported when they are first used, so that `import ebbtide` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from ebbtide import interop
    from ebbtide.api import load, resume, run, sample
    from ebbtide.core.errors import EbbError
    from ebbtide.core.plan import Plan
    from ebbtide.core.registry import part
    from ebbtide.core.state import Pred, Query, State, Step
    from ebbtide.denoise.files import file
    from ebbtide.denoise.model import Model
    from ebbtide.interop.pipelines import attach
    from ebbtide.samples import Samples
    from ebbtide.tune.calibrate import calibrate, record
    from ebbtide.tune.search import search

_HOME = {
    "attach": "interop.pipelines",
    "calibrate": "tune.calibrate",
    "record": "tune.calibrate",
    "load": "api",
    "resume": "api",
    "run": "api",
    "sample": "api",
    "search": "tune.search",
    "EbbError": "core.errors",
    "Plan": "core.plan",
    "part": "core.registry",
    "Pred": "core.state",
    "Query": "core.state",
    "State": "core.state",
    "Step": "core.state",
    "Model": "denoise.model",
    "file": "denoise.files",
    "Samples": "samples",
}

_ROOMS = ("interop",)

__all__ = [
    "EbbError",
    "Model",
    "Plan",
    "Pred",
    "Query",
    "Samples",
    "State",
    "Step",
    "attach",
    "calibrate",
    "file",
    "interop",
    "load",
    "part",
    "record",
    "resume",
    "run",
    "sample",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"ebbtide.{_HOME[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"ebbtide.{name}")
    raise AttributeError(f"module 'ebbtide' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
