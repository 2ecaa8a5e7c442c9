"""diffusers' schedulers: a `scheduler_config.json` and a number of steps become a plan and the facts of the border.

    found = read("scheduler_config.json", steps=20)
    model = ebb.load(unet, process=found.process, like=..., **found.border)
    ebb.sample(model, found.plan)

Plain data in, plain data out: diffusers is never imported. A field of the class's own is read; a field of another class is
not read by diffusers either, and is told in `notes`; a field of no class, and a value that cannot be honoured, is an
`EbbError` that names it (`ignore` sets such a field aside).

Source   the schedulers of huggingface/diffusers 0.42 (Apache-2.0): their fields, defaults and spacings
Differs  levels are float64; a network is told the time of the level itself, where some schedulers round it; a last step that
         repeats the level before it is left out; DDIM's and PNDM's steps end where the next begins, also where the number
         of steps does not divide the clock.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.plan import Plan
from ebbtide.grid.beta import beta_quantile
from ebbtide.process.table import VPTable
from ebbtide.solve.dpm_solver import fast

# ---------------------------------------------------------------- what the classes know, with their defaults

_TABLE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_LATENT = {**_TABLE, "beta_start": 0.00085, "beta_end": 0.012}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_CLIP = {"clip_sample": False, "clip_sample_range": 1.0}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_LEVELS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_DYNAMIC = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}
_ZERO = {"rescale_betas_zero_snr": False}
_FINAL = {"final_sigmas_type": "zero"}
_LAMBDA = {"lambda_min_clipped": -math.inf, "variance_type": None}
_DPM = {
    **_TABLE, **_THRESHOLD, **_LEVELS, **_FLOW, **_DYNAMIC, **_FINAL, **_LAMBDA,
    "solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": True,
}  # fmt: skip
_DDIM = {**_TABLE, **_LEADING, **_CLIP, "clip_sample": True, **_THRESHOLD, **_ZERO, "set_alpha_to_one": True}
_DDPM = {**_TABLE, **_LEADING, **_CLIP, "clip_sample": True, **_THRESHOLD, **_ZERO, "variance_type": "fixed_small"}
_KDPM2 = {**_LATENT, **_LINSPACE, **_LEVELS}
_CONSISTENT = {
    **_LATENT, "beta_schedule": "scaled_linear", **_LEADING, **_CLIP, **_THRESHOLD, **_ZERO,
    "set_alpha_to_one": True, "original_inference_steps": 50, "timestep_scaling": 10.0,
}  # fmt: skip
_EDM = {
    "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "rho": 7.0, **_FINAL,
}  # fmt: skip

CLASSES: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "EulerDiscreteScheduler": {
        **_TABLE, **_LINSPACE, **_LEVELS, **_ZERO, **_FINAL,
        "interpolation_type": "linear", "sigma_min": None, "sigma_max": None, "timestep_type": "discrete",
    },
    "EulerAncestralDiscreteScheduler": {**_TABLE, **_LINSPACE, **_ZERO},
    "HeunDiscreteScheduler": {**_KDPM2, **_CLIP},
    "KDPM2DiscreteScheduler": _KDPM2,
    "KDPM2AncestralDiscreteScheduler": _KDPM2,
    "LMSDiscreteScheduler": {**_TABLE, **_LINSPACE, **_LEVELS},
    "PNDMScheduler": {**_TABLE, **_LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
    "IPNDMScheduler": {"num_train_timesteps": 1000, "trained_betas": None},
    "DPMSolverMultistepScheduler": {**_DPM, **_LINSPACE, **_ZERO, "euler_at_final": False, "use_lu_lambdas": False},
    "DPMSolverSinglestepScheduler": {**_DPM, "lower_order_final": False},
    "UniPCMultistepScheduler": {
        **_TABLE, **_THRESHOLD, **_LEVELS, **_FLOW, **_DYNAMIC, **_FINAL, **_LINSPACE, **_ZERO,
        "solver_order": 2, "solver_type": "bh2", "predict_x0": True, "lower_order_final": True,
        "disable_corrector": [], "solver_p": None, "sigma_min": None, "sigma_max": None, "shift_terminal": None,
    },
    "DEISMultistepScheduler": {
        **_TABLE, **_THRESHOLD, **_LEVELS, **_FLOW, **_DYNAMIC, **_LINSPACE,
        "solver_order": 2, "algorithm_type": "deis", "solver_type": "logrho", "lower_order_final": True,
    },
    "SASolverScheduler": {
        **_TABLE, **_THRESHOLD, **_LEVELS, **_FLOW, **_LAMBDA, **_LINSPACE,
        "predictor_order": 2, "corrector_order": 2, "tau_func": None, "algorithm_type": "data_prediction",
        "lower_order_final": True,
    },
    "LCMScheduler": _CONSISTENT,
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000, "shift": 1.0, **_DYNAMIC, **_LEVELS, "base_shift": 0.5, "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None,
        "stochastic_sampling": False,
    },
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": {
        **_EDM, **_THRESHOLD, "solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint",
        "lower_order_final": True, "euler_at_final": False,
    },
}  # fmt: skip
"""Every class that can be read: its fields and their defaults."""

SILENT = frozenset({"_class_name", "_diffusers_version", "_use_default_values", "name_or_path", "_name_or_path"})
"""Fields of the file, not of the sampler."""

_DISTANT = (
    "CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "TCDScheduler", "CMStochasticIterativeScheduler",
    "KarrasVeScheduler", "ScoreSdeVeScheduler", "VQDiffusionScheduler", "UnCLIPScheduler", "RePaintScheduler",
    "DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler", "SCMScheduler",
)  # fmt: skip

_REFUSED: dict[str, tuple[Any, str]] = {
    "thresholding": (False, "dynamic thresholding of the data estimate is not done here"),
    "clip_sample": (False, "the data estimate is not clipped here"),
    "invert_sigmas": (
        False,
        "the data lies at time 0 here, and a network trained the other way needs clock='reversed'",
    ),
    "timestep_type": ("discrete", "a network told log(sigma) / 4 is a model of the process 'edm'"),
    "solver_p": (None, "the predictor of UniPC is its own"),
    "disable_corrector": ([], "the corrector runs at every step"),
    "tau_func": (None, "a function is not plain data; give the plan's solver its `tau`"),
    "predict_x0": (True, "UniPC works on data predictions here"),
}
"""Field -> (the one value that is honoured, why no other is)."""

PREDICTS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}
"""diffusers' prediction types in the words of the border."""


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


def read(source: Any, steps: int, *, ignore: Iterable[str] = (), mu: float | None = None) -> Found:
    """The plan and the border of a diffusers scheduler.

    source  the path of a scheduler_config.json (or of its folder, or the pipeline's), its content, or a scheduler
    steps   as in `set_timesteps`
    ignore  fields to set aside: their defaults of no effect are taken
    mu      the exponent of a dynamic shift, where the pipeline works it out; by default from the size of the state

    Raises EbbError for a file that is none, an unknown class or field, and a value that cannot be honoured.
    """
    config = _config(source)
    kind = config.get("_class_name")
    if not isinstance(kind, str):
        raise EbbError("this config names no scheduler class; give it a '_class_name', 'DDIMScheduler' say.")
    if kind not in CLASSES:
        if kind in _DISTANT:
            raise EbbError(f"{kind} has no counterpart here; known: {', '.join(sorted(CLASSES))}.")
        raise EbbError(f"{kind} is no scheduler that can be read; {nearest(kind, CLASSES)}")
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
    for field, (good, why) in _REFUSED.items():
        if field in c and c[field] != good and not (field == "disable_corrector" and not c[field]):
            if field in ignore:
                c[field] = good
                continue
            raise EbbError(f"{kind}, {field}={c[field]!r}: {why}; set it to {good!r}, or ignore=[{field!r}].")
    reader = _Reader(kind, c, steps, mu)
    plan = Plan(process=reader.process, grid=reader.grid(), solve=reader.solve())
    notes = [f"{kind} does not read {field!r}." for field in foreign]
    return Found(plan, reader.border(), (*notes, *reader.notes))


def config_file(source: str | os.PathLike[str]) -> Path | None:
    """The scheduler's config that a path leads to: the file, its folder, or that of a pipeline; None where it does not."""
    path = Path(source)
    inside = [path / "scheduler_config.json", path / "scheduler" / "scheduler_config.json"]
    if path.is_dir():
        return next((file for file in inside if file.is_file()), None)
    return path if path.is_file() and path.suffix == ".json" and _names_a_class(path) else None


def _names_a_class(path: Path) -> bool:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and "_class_name" in data


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
    path = config_file(path) or (path / "scheduler_config.json" if path.is_dir() else path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EbbError(f"{path} cannot be read as a scheduler config: {str(error).splitlines()[0]}.") from None
    if not isinstance(data, dict):
        raise EbbError(f"{path} holds no scheduler config, which is a mapping of fields.")
    return data


# ---------------------------------------------------------------- one class


class _Reader:
    """The plan of one config whose fields are all known."""

    def __init__(self, kind: str, c: dict[str, Any], steps: int, mu: float | None) -> None:
        self.kind, self.c, self.n, self.mu = kind, c, steps, mu
        self.notes: list[str] = []
        self.clock = int(c["num_train_timesteps"])
        self.flow = kind.startswith("FlowMatch") or bool(c.get("use_flow_sigmas"))
        self.edm = kind.startswith("EDM")
        self.process = self._process()

    def _no(self, field: str, why: str) -> EbbError:
        return EbbError(f"{self.kind}, {field}={self.c[field]!r}: {why}.")

    # ------------------------------------------------------------ process and border

    def _process(self) -> dict[str, Any]:
        c = self.c
        if self.flow:
            return {"name": "flow"}
        if self.edm:
            return {"name": "edm", "sigma_max": c["sigma_max"]}
        if self.kind == "IPNDMScheduler":
            if c["trained_betas"] is not None:
                raise self._no("trained_betas", "this class keeps noise levels there; leave it out")
            return {"name": "vp-cosine", "offset": 0.0}
        out: dict[str, Any] = {"name": "vp-table", "steps": self.clock}
        if c["trained_betas"] is not None:
            return {**out, "betas": list(c["trained_betas"]), **self._terminal()}
        if c["beta_schedule"] not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
            raise self._no(
                "beta_schedule", "known are linear, scaled_linear and squaredcos_cap_v2; or give trained_betas"
            )
        if c["beta_schedule"] == "squaredcos_cap_v2":
            return {**out, "beta_schedule": "squaredcos_cap_v2", **self._terminal()}
        betas = {k: c[k] for k in ("beta_schedule", "beta_start", "beta_end")}
        return {**out, **betas, **self._terminal()}

    def _terminal(self) -> dict[str, Any]:
        return {"zero_terminal": True} if self.c.get("rescale_betas_zero_snr") else {}

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

    # ------------------------------------------------------------ times

    def table(self) -> Tensor:
        """sigma of every train step, float64."""
        made = {k: v for k, v in self.process.items() if k != "name"}
        return VPTable(**made).rows.exp()

    def grid(self) -> dict[str, Any]:
        if self.edm:
            return self._edm_grid()
        if self.kind.startswith("FlowMatch"):
            return self._flow_grid()
        if self.flow:
            return self._shifted_grid()
        if self.kind == "IPNDMScheduler":
            c = (math.pi / 2 * torch.linspace(1, 0, self.n + 1, dtype=torch.float64)).sin() ** 2
            return _times(2 / math.pi * c.asin())
        if self.kind == "LCMScheduler":
            return self._consistent_grid()
        return self._table_grid()

    def _indices(self) -> Tensor:
        """The train steps visited, falling; fractions where the class keeps them."""
        c, n = self.c, self.n
        spacing, offset = c.get("timestep_spacing", "linspace"), c.get("steps_offset", 0)
        spare = self.kind.startswith(("DPMSolver", "UniPC", "DEIS", "SASolver"))
        clock = self.clock - self._clipped()
        if n + spare > clock:
            raise EbbError(f"{self.kind}: its clock has {clock} steps and cannot give {n}; ask for fewer.")
        if spacing == "linspace":
            index = torch.linspace(clock - 1, 0, n + spare, dtype=torch.float64)[:n]
            whole = spare or self.kind.startswith(("DDIM", "DDPM", "PNDM"))
            return index.round() if whole else index
        if spacing == "leading":
            index = torch.arange(n + spare, dtype=torch.float64).flip(0)[:n] * (clock // (n + spare)) + offset
            if float(index[0]) > self.clock - 1:
                raise self._no("steps_offset", f"it leaves the clock of {self.clock}")
            return index
        if spacing == "trailing":
            return (clock - torch.arange(n, dtype=torch.float64) * self.clock / n).round() - 1
        raise self._no("timestep_spacing", "known are linspace, leading and trailing")

    def _clipped(self) -> int:
        """Train steps at the noisy end that are left out."""
        limit = self.c.get("lambda_min_clipped", -math.inf)
        limit = -math.inf if limit is None else float(limit)
        return int((-self.table().log() < limit).sum()) if math.isfinite(limit) else 0

    def _table_grid(self) -> dict[str, Any]:
        c, sigma, index = self.c, self.table(), self._indices()
        if self.kind == "DPMSolverSinglestepScheduler":
            index = self._nodes(index)
        chosen = [
            k for k in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas") if c.get(k)
        ]
        if len(chosen) > 1:
            raise EbbError(f"{self.kind}: {' and '.join(chosen)} cannot both be; choose one.")
        data = self._ends_in_data()
        if chosen:
            return self._levels(chosen[0], sigma, index, data)
        if c.get("interpolation_type") == "log_linear":
            every = torch.linspace(float(sigma[-1].log()), float(sigma[0].log()), self.n + 1, dtype=torch.float64).exp()
            return _sigmas(every)
        if c.get("interpolation_type", "linear") != "linear":
            raise self._no("interpolation_type", "known are linear and log_linear")
        if bool((index == index.round()).all()):
            times = (index + 1) / self.clock
            return _times(torch.cat([times, torch.tensor([0.0 if data else 1 / self.clock], dtype=torch.float64)]))
        low = index.floor().long().clamp(max=self.clock - 2)
        between = sigma[low] + (index - low) * (sigma[low + 1] - sigma[low])
        return _sigmas(torch.cat([between, torch.zeros(1, dtype=torch.float64) if data else sigma[:1]]))

    def _ends_in_data(self) -> bool:
        c = self.c
        if self.kind in ("DEISMultistepScheduler", "SASolverScheduler"):
            return False
        if "final_sigmas_type" in c:
            if c["final_sigmas_type"] not in ("zero", "sigma_min"):
                raise self._no("final_sigmas_type", "known are zero and sigma_min")
            return bool(c["final_sigmas_type"] == "zero")
        return bool(c.get("set_alpha_to_one", True))

    def _levels(self, chosen: str, sigma: Tensor, index: Tensor, data: bool) -> dict[str, Any]:
        """A list of levels between two of the table: all of it, or what the spacing visits."""
        whole = self.kind.startswith(("DPMSolver", "UniPC", "DEIS", "SASolver"))
        if whole:
            high, low = float(sigma[-1]), float(sigma[0])
        else:
            k = index.floor().long().clamp(max=self.clock - 2)
            visited = sigma[k] + (index - k) * (sigma[k + 1] - sigma[k])
            high, low = float(visited[0]), float(visited[-1])
        high, low = (self.c.get(f) or v for f, v in (("sigma_max", high), ("sigma_min", low)))
        n = self.n
        every = list_of_levels(chosen, n, low, high)
        if self.kind == "DPMSolverSinglestepScheduler":
            every = self._nodes(every)
        # DEIS and SA end at the last level again, a step of length zero; the others at the table's first
        last = torch.zeros(1, dtype=torch.float64) if data else sigma[:1]
        if not data and (self.kind in ("DEISMultistepScheduler", "SASolverScheduler") or self.kind.startswith("UniPC")):
            last = every[:0]
        return _sigmas(torch.cat([every, last]))

    def _nodes(self, every: Tensor) -> Tensor:
        """Where whole steps of a singlestep method begin; what lies between is the solver's own."""
        orders = self._orders()
        if max(orders) > 1:
            self.notes.append("the stages of a step lie evenly in log-SNR, not at the train steps of the config.")
        return every[[sum(orders[:k]) for k in range(len(orders))]]

    def _orders(self) -> list[int]:
        """The orders of the steps of a singlestep method that makes n calls, as the class deals them out."""
        order, n, data = int(self.c["solver_order"]), self.n, self._ends_in_data()
        if order not in (2, 3):
            return [1] * n
        if n % order == 0 and not data and not self.c["lower_order_final"]:
            return [order] * (n // order)
        tail = list(fast(n)[1]) if order == 3 else [1] * (2 - n % 2)
        orders = [order] * ((n - sum(tail)) // order) + tail
        return [*orders[:-1], *[1] * orders[-1]] if data else orders

    def _consistent_grid(self) -> dict[str, Any]:
        origin = int(self.c["original_inference_steps"])
        if origin > self.clock or self.n > origin:
            raise self._no("original_inference_steps", f"it must lie between the steps ({self.n}) and {self.clock}")
        trained = torch.arange(1, origin + 1, dtype=torch.float64).flip(0) * (self.clock // origin) - 1
        chosen = trained[(torch.arange(self.n, dtype=torch.float64) * origin / self.n).floor().long()]
        self.notes.append("the boundary scaling of the network (timestep_scaling) is left out: 1 to within 4e-6.")
        return _times(torch.cat([(chosen + 1) / self.clock, torch.zeros(1, dtype=torch.float64)]))

    def _edm_grid(self) -> dict[str, Any]:
        c = self.c
        if c["sigma_schedule"] not in ("karras", "exponential"):
            raise self._no("sigma_schedule", "known are karras and exponential")
        made = {"name": c["sigma_schedule"], "steps": self.n, "sigma_min": c["sigma_min"], "sigma_max": c["sigma_max"]}
        if self._ends_in_data():
            return {**made, "rho": c["rho"]} if c["sigma_schedule"] == "karras" else made
        every = list_of_levels(f"use_{c['sigma_schedule']}_sigmas", self.n, c["sigma_min"], c["sigma_max"], c["rho"])
        return _sigmas(every)

    def _strength(self) -> float | None:
        """The shift, or None where the size of the state gives it."""
        c = self.c
        if not c.get("use_dynamic_shifting"):
            return float(c["flow_shift" if "flow_shift" in c else "shift"])
        if c["time_shift_type"] not in ("exponential", "linear"):
            raise self._no("time_shift_type", "known are exponential and linear")
        if self.mu is None:
            if "base_shift" in c:
                return None
            raise self._no("use_dynamic_shifting", "give mu, as the pipeline does, or a fixed flow_shift")
        return math.exp(self.mu) if c["time_shift_type"] == "exponential" else self.mu

    def _flow_grid(self) -> dict[str, Any]:
        c, shift = self.c, self._strength()
        first = 1 / self.clock
        # without a dynamic shift the smallest level is shifted once at birth, and again with the others
        last = first if c.get("use_dynamic_shifting") else c["shift"] * first / (1 + (c["shift"] - 1) * first)
        chosen = [k for k in _LEVELS if c.get(k)]
        made: dict[str, Any] = {"name": "shift", "steps": self.n, "last": last}
        if c.get("shift_terminal"):
            made["terminal"] = c["shift_terminal"]
        if shift is None:
            if chosen:
                raise self._no(chosen[0], "levels of a dynamic shift depend on the size of the state; give mu")
            sizes = {"base_length": c["base_image_seq_len"], "max_length": c["max_image_seq_len"]}
            shifts = {"base_shift": c["base_shift"], "max_shift": c["max_shift"], "form": c["time_shift_type"]}
            return {**made, "dynamic": True, **sizes, **shifts}
        if self.n == 1:  # one level, the noisiest
            return {"name": "explicit", "times": [1.0, 0.0]}
        if not chosen:
            return {**made, "shift": shift}
        ends = [shift * t / (1 + (shift - 1) * t) for t in (1.0, last)]
        low = c["shift_terminal"] or ends[1]
        every = list_of_levels(chosen[0], self.n, low, ends[0])
        return _times(torch.cat([every, torch.zeros(1, dtype=torch.float64)]))

    def _shifted_grid(self) -> dict[str, Any]:
        """Flow levels of a class made for tables."""
        c, shift, end = self.c, self._strength(), 1 - 1 / self.clock
        assert shift is not None
        chosen = [k for k in _LEVELS if c.get(k)]
        if chosen:
            raise self._no(chosen[0], "it does not go together with use_flow_sigmas here")
        even = torch.linspace(end, 0, self.n + 1, dtype=torch.float64)[:-1]
        if self.kind.startswith("UniPC"):
            even = torch.linspace(1, 1 / self.clock, self.n + 1, dtype=torch.float64)[:-1]
        every = shift * even / (1 + (shift - 1) * even)
        if c.get("shift_terminal") and self.n > 1:
            every = 1 - (1 - every) * (1 - c["shift_terminal"]) / (1 - every[-1])
        if self.kind == "DPMSolverSinglestepScheduler":
            every = self._nodes(every)
        data = self._ends_in_data()
        return _times(torch.cat([every, torch.zeros(1, dtype=torch.float64)]) if data else every)

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
        self.notes.append(
            "noise is drawn at all times (tau = 1), where the class draws it between train steps 200 and 800."
        )
        if corrector not in (0, terms + 1):
            self.notes.append(f"the corrector combines {terms + 1} slopes, not {corrector}.")
        return {"name": "sa-solver", "terms": terms, "corrector": corrector > 0}

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
        if order == 3:
            self.notes.append("the second difference is weighed by its exact integral, which the class halves.")
            return {"name": "dpmpp-3m-sde" if sde else "dpmpp-3m"}
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
        if not data and (self.flow or (orders[-1] == 1 and any(self.c[k] for k in _LEVELS))):
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


# ---------------------------------------------------------------- lists


def list_of_levels(chosen: str, n: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """`n` levels falling from `high` to `low`, by the rule of a config's `use_..._sigmas`, float64."""
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    if chosen == "use_karras_sigmas":
        first, last = high ** (1 / rho), low ** (1 / rho)
        return (first + ramp * (last - first)) ** rho
    if chosen == "use_beta_sigmas":
        quantiles = torch.tensor([beta_quantile(v, 0.6, 0.6) for v in (1 - ramp).tolist()], dtype=torch.float64)
        return low + quantiles * (high - low)
    return (math.log(high) + ramp * (math.log(low) - math.log(high))).exp()


def _falling(every: Tensor) -> list[float]:
    """The list without repetitions, which may differ in the last bits."""
    out: list[float] = []
    for v in every.tolist():
        if not out or v < out[-1] * (1 - 1e-12):
            out.append(v)
    return out


def _times(every: Tensor) -> dict[str, Any]:
    return _explicit("times", every)


def _sigmas(every: Tensor) -> dict[str, Any]:
    return _explicit("sigmas", every)


def _explicit(what: str, every: Tensor) -> dict[str, Any]:
    listed = _falling(every)
    if len(listed) < 2:
        raise EbbError("this config leaves no step to take at this number of steps; ask for more.")
    return {"name": "explicit", what: listed}
