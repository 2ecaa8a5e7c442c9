"""diffusers' schedulers: a `scheduler_config.json` and a number of steps become a plan and the facts of the border.

    found = read("scheduler_config.json", steps=20)
    model = ebb.load(unet, process=found.process, like=..., **found.border)
    ebb.sample(model, found.plan)

Plain data in, plain data out: diffusers is never imported. A field of the class's own is read; a field of another class is
not read by diffusers either, and is told in `notes`; a field of no class, and a value that cannot be honoured, is an
`EbbError` that names it (`ignore` sets such a field aside).

Source   the schedulers of huggingface/diffusers 0.42 (Apache-2.0): their fields, defaults and spacings
Differs  a network is told the time of the level itself, where some schedulers round it; see `levels` for the times.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebbtide.core import registry
from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.plan import Plan
from ebbtide.denoise.network import TIMES
from ebbtide.interop.fields import CLASSES, DISTANT, LEVELS, PREDICTS, REFUSED, SILENT
from ebbtide.interop.files import content, glance
from ebbtide.interop.levels import Times

DROP_IN = "EbbScheduler"
"""The class of `interop.scheduler`, whose config is that of the class it was made from and a plan."""


@dataclass(frozen=True)
class Found:
    """What a scheduler's config says.

    plan    process, grid and solver
    border  what `ebb.load` is told of the network: predicts, clock, steps
    notes   what was passed over, each a sentence
    """

    plan: Plan
    border: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def process(self) -> dict[str, Any]:
        """The process that the network was trained on, as a spec."""
        assert isinstance(self.plan.process, dict)
        return self.plan.process

    @property
    def flow(self) -> bool:
        """Whether that process is a flow, whose levels are its times."""
        return self.process["name"] == "flow"

    @property
    def clock(self) -> float:
        """How many train steps its clock counts; 1 where it counts none."""
        return float(self.border.get("steps", 1.0))

    def times(self, told: Sequence[float] | Tensor) -> Tensor:
        """The times, float64, of timesteps. Raises EbbError where they do not count time."""
        if self.border["clock"] not in TIMES:
            raise EbbError(f"the timesteps of this network are its {self.border['clock']!r}; give sigmas instead.")
        return TIMES[self.border["clock"]](torch.as_tensor(told, dtype=torch.float64), self.clock)


def read(
    source: Any,
    steps: int | None = None,
    *,
    ignore: Iterable[str] = (),
    mu: float | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
) -> Found:
    """The plan and the border of a diffusers scheduler.

    source             the path of a scheduler_config.json (or of its folder, or the pipeline's), its content, or a scheduler
    steps              as in `set_timesteps`, or the length of a list
    ignore             fields to set aside: their defaults of no effect are taken
    mu                 the exponent of a dynamic shift, where the pipeline works it out; by default from the size of the state
    timesteps, sigmas  a list in place of the config's own spacing, as the class takes it: a flow's is shifted and ends in
                       the data, levels of a table are taken as they are, their last one where the run ends

    Raises EbbError for a file that is none, an unknown class or field, and a value that cannot be honoured.
    """
    config = _config(source)
    own = config.get("base") if config.get("_class_name") == DROP_IN else None
    if isinstance(own, str):  # our own: the class that it was made from, and the plan that it was given
        given = config.get("plan")
        config = {**{k: v for k, v in config.items() if k not in ("base", "plan")}, "_class_name": own}
        found = read(config, steps, ignore=ignore, mu=mu, timesteps=timesteps, sigmas=sigmas)
        many = timesteps is not None or sigmas is not None
        return found if given is None else replace(found, plan=_given(given, found.plan, steps, many))
    kind = config.get("_class_name")
    if not isinstance(kind, str):
        raise EbbError("this config names no scheduler class; give it a '_class_name', 'DDIMScheduler' say.")
    if kind not in CLASSES:
        if kind in DISTANT:
            raise EbbError(f"{kind} has no counterpart here; known: {', '.join(sorted(CLASSES))}.")
        raise EbbError(f"{kind} is no scheduler that can be read; {nearest(kind, CLASSES)}")
    if timesteps is not None and sigmas is not None:
        raise EbbError("give timesteps or sigmas, not both.")
    listed = timesteps if sigmas is None else sigmas
    if listed is not None:
        if steps not in (None, len(listed)):
            raise EbbError(f"a list of {len(listed)} values cannot be {steps} steps; leave the number out.")
        steps = len(listed)
    if not isinstance(steps, int) or steps < 1:
        raise EbbError(f"steps is a number of steps, at least 1, not {steps!r}.")
    own, everywhere = CLASSES[kind], {field for fields in CLASSES.values() for field in fields}
    ignore = frozenset(ignore)
    strange = sorted(set(config) - everywhere - SILENT - ignore)
    if strange:
        raise EbbError(
            f"{kind} has no field {strange[0]!r}; {nearest(strange[0], own)} Mend it, or name it in `ignore` (Python)."
        )
    foreign = sorted(k for k in set(config) - set(own) - SILENT - ignore)
    c = {**own, **{k: v for k, v in config.items() if k in own and k not in ignore}}
    for field, (good, why) in REFUSED.items():
        if field in c and c[field] != good and not (field == "disable_corrector" and not c[field]):
            if field in ignore:
                c[field] = good
                continue
            raise EbbError(f"{kind}, {field}={c[field]!r}: {why}; set it to {good!r}, or ignore=[{field!r}].")
    reader = _Reader(kind, c, steps, mu)
    grid = reader.grid() if listed is None else reader.listed([float(v) for v in listed], timesteps is not None)
    plan = Plan(process=reader.process, grid=grid, solve=reader.solve())
    notes = [f"{kind} does not read {field!r}." for field in foreign]
    return Found(plan, reader.border(), (*notes, *reader.notes))


def _given(plan: Mapping[str, Any], base: Plan, steps: int | None, listed: bool) -> Plan:
    """The plan of a drop-in: its own slots, at the times that are asked for, in the process of what it was made from."""
    made = Plan.from_dict(plan)
    grid: Any = base.grid if listed else made.grid
    if steps is not None and "steps" in getattr(registry.find("grid", grid["name"]).cls, "__pydantic_fields__", {}):
        grid = {**grid, "steps": steps}
    return made.replace(process=made.process or base.process, grid=grid)


def config_file(source: str | os.PathLike[str]) -> Path | None:
    """The scheduler's config that a path leads to: the file, its folder, or that of a pipeline; None where it does not."""
    path = Path(source)
    inside = [path / "scheduler_config.json", path / "scheduler" / "scheduler_config.json"]
    if path.is_dir():
        return next((file for file in inside if file.is_file()), None)
    return path if path.is_file() and path.suffix == ".json" and "_class_name" in glance(path) else None


def _config(source: Any) -> dict[str, Any]:
    """The fields of a config: of a file, of a mapping, or of a live scheduler."""
    live = getattr(source, "config", None)
    if isinstance(live, Mapping):
        return {"_class_name": type(source).__name__, **live}
    if isinstance(source, Mapping):
        return dict(source)
    if not isinstance(source, str | os.PathLike):
        raise EbbError(f"a scheduler is read from a file, a dict or a scheduler, not from {type(source).__name__}.")
    path = Path(source)
    return content(config_file(path) or (path / "scheduler_config.json" if path.is_dir() else path))


# ---------------------------------------------------------------- one class


class _Reader(Times):
    """The plan of one config whose fields are all known."""

    def border(self) -> dict[str, Any]:
        kind = self.c.get("prediction_type", "epsilon")
        if kind not in PREDICTS:
            raise self._no("prediction_type", f"known are {', '.join(PREDICTS)}")
        if self.edm:
            if kind != "epsilon":
                raise self._no("prediction_type", "a preconditioned network predicts as in EDM ('epsilon')")
            return {"predicts": "edm", "clock": "log-sigma/4", "sigma_data": self.c["sigma_data"]}
        if self.flow:
            told = "flow" if self.kind.startswith("FlowMatch") else PREDICTS[kind]
            return {"predicts": told, "clock": "scaled", "steps": self.clock}
        if self.kind == "IPNDMScheduler":
            return {"predicts": "v", "clock": "time"}
        return {"predicts": PREDICTS[kind], "clock": "train-index", "steps": self.clock}

    # ------------------------------------------------------------ solver

    def solve(self) -> dict[str, Any]:
        c, order = self.c, int(self.c.get("solver_order", self.c.get("predictor_order", 1)))
        single = self.kind == "DPMSolverSinglestepScheduler"
        if c.get("lower_order_final") and not single and order > 1 and (order > 2 or not self._ends_in_data()):
            self.notes.append("the last steps keep their order; only the one that lands on the data is of order 1.")
        plain: dict[str, dict[str, Any]] = {
            "DDIMScheduler": {"name": "euler"},
            "DDIMParallelScheduler": {"name": "euler"},
            "EulerDiscreteScheduler": {"name": "euler"},
            "EulerAncestralDiscreteScheduler": {"name": "ancestral"},
            "HeunDiscreteScheduler": {"name": "heun"},
            "KDPM2DiscreteScheduler": {"name": "dpm-solver", "order": 2},
            "LMSDiscreteScheduler": {"name": "lms", "order": 4},
            "IPNDMScheduler": {"name": "ipndm"},
            "EDMEulerScheduler": {"name": "euler"},
            "LCMScheduler": {"name": "lcm"},
        }
        if self.kind in plain:
            return plain[self.kind]
        if self.kind.startswith("DDPM"):
            return self._ddpm()
        if self.kind == "FlowMatchEulerDiscreteScheduler":
            return {"name": "lcm" if c["stochastic_sampling"] else "euler"}
        if self.kind == "KDPM2AncestralDiscreteScheduler":
            raise EbbError(
                "KDPM2AncestralDiscreteScheduler has no counterpart here; EulerAncestralDiscreteScheduler has one."
            )
        if self.kind == "PNDMScheduler":
            if not c["skip_prk_steps"]:
                return {"name": "pndm"}
            self.notes.append("the first step is DDIM's; the class asks again at its end and averages.")
            return {"name": "pndm", "warmup": "adams"}
        if self.kind == "FlowMatchHeunDiscreteScheduler":
            self.notes.append(
                "the two slopes are averaged at equal weight in sigma = c / a, which the class does in time."
            )
            return {"name": "heun"}
        if self.kind == "UniPCMultistepScheduler":
            return self._unipc(order)
        if self.kind == "DEISMultistepScheduler":
            return {"name": "deis", "order": order}
        if self.kind == "SASolverScheduler":
            return self._sa()
        if single:
            return self._singlestep(order)
        return self._multistep(order)

    def _unipc(self, order: int) -> dict[str, Any]:
        kind = self.c["solver_type"]
        if order not in (1, 2, 3):
            raise self._no("solver_order", "known are 1, 2 and 3")
        # an older config of another solver is read as bh2 by the class itself
        kind = "bh2" if kind in ("midpoint", "heun", "logrho") else kind
        if kind not in ("bh1", "bh2"):
            raise self._no("solver_type", "known are bh1 and bh2")
        return {"name": "unipc", "predictor": order, "kind": kind}

    def _sa(self) -> dict[str, Any]:
        terms, corrector = self.c["predictor_order"], self.c["corrector_order"]
        if terms not in (1, 2, 3):
            raise self._no("predictor_order", "known are 1, 2 and 3")
        if self.c["algorithm_type"] != "data_prediction":
            raise self._no("algorithm_type", "SA-Solver predicts the data here")
        if corrector not in (0, terms + 1):
            self.notes.append(f"the corrector combines {terms + 1} slopes, not {corrector}.")
        drawn = [min(1.0, (k + 1) / self.clock) for k in (200, 800)]  # the class draws noise between these train steps
        return {"name": "sa-solver", "terms": terms, "corrector": corrector > 0, "between": drawn}

    def _ddpm(self) -> dict[str, Any]:
        kind = self.c["variance_type"]
        if kind in ("fixed_small", "fixed_small_log"):
            return {"name": "ancestral"}
        if kind == "fixed_large":
            return {"name": "ddpm", "variance": "fixed-large"}
        raise self._no(
            "variance_type", "a learned variance needs a network that says it; use fixed_small or fixed_large"
        )

    def _multistep(self, order: int) -> dict[str, Any]:
        algorithm, kind = self.c["algorithm_type"], self.c["solver_type"]
        if order not in (1, 2, 3):
            raise self._no("solver_order", "known are 1, 2 and 3")
        if algorithm not in ("dpmsolver++", "sde-dpmsolver++"):
            raise self._no("algorithm_type", "known are dpmsolver++ and sde-dpmsolver++, which predict the data")
        if order == 1:
            return {"name": "euler" if algorithm == "dpmsolver++" else "ancestral"}
        if order == 2 and kind not in ("midpoint", "heun", "bh1", "bh2", "logrho"):
            raise self._no("solver_type", "known are midpoint and heun")
        sde = algorithm.startswith("sde")
        if order == 3 and sde:
            self.notes.append("the second difference is weighed by its exact integral, which the class halves less 1.")
            return {"name": "dpmpp-3m-sde"}
        if order == 3:
            self.notes.append("the second difference is weighed by its exact integral, which the class halves.")
            return {"name": "dpmpp-3m"}
        if kind == "heun":  # the exact weight of the first difference, which is where the third order begins
            return {"name": "dpmpp-3m-sde", "terms": 2} if sde else {"name": "dpmpp-3m", "order": 2}
        return {"name": "dpmpp-2m-sde" if sde else "dpmpp-2m"}

    def _singlestep(self, order: int) -> dict[str, Any]:
        algorithm = self.c["algorithm_type"]
        if order == 1:
            return {"name": "ancestral" if algorithm.startswith("sde") else "euler"}
        if order not in (2, 3):
            raise self._no("solver_order", "known are 1, 2 and 3")
        if order == 2 and self.c["solver_type"] == "heun":
            raise self._no("solver_type", "the step of order 2 is the midpoint's")
        orders, data = self._orders(), self._ends_in_data()
        if not data and (self.flow or (orders[-1] == 1 and any(self.c[k] for k in LEVELS))):
            orders = orders[:-1]  # the step that repeats the last level
        tail = [k for k in orders if k < order]
        last = {"tail": tail} if tail and not (data and tail == [1]) else {}
        if algorithm == "dpmsolver":
            return {"name": "dpm-solver", "order": order, **last}
        if algorithm == "dpmsolver++":
            return {"name": f"dpmpp-{order}s", **last}
        raise self._no(
            "algorithm_type", "known are dpmsolver and dpmsolver++; the SDE form is DPMSolverMultistepScheduler's"
        )
