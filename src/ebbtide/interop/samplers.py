"""k-diffusion's and ComfyUI's names: a sampler, a scheduler and a number of steps become a plan.

    plan_of("dpmpp_2m", "karras", 20, process="vp-scaled-linear")

    normal        index_k = (N - 1) (1 - k / (n - 1))            of the N levels that the model was trained on
    sgm_uniform   index_k = (N - 1) (1 - k / n)
    simple        index_k = N - 1 - floor(k N / n)
    ddim_uniform  index_k = 1 + (n - 1 - k) floor(N / n)
    karras, exponential, kl_optimal        between the first and the last of these levels
    beta, linear_quadratic                 over all of time

and the data at the end. The tables are plain data; a name that has no counterpart here says why and names its kin.

Source   Crowson 2022, k-diffusion (MIT), `sampling.py`; ComfyUI, the names of `comfy/samplers.py`
Differs  beta quantiles are not rounded to levels, so none falls together with its neighbour; ddim_uniform takes as many steps
         as it is asked for, where ComfyUI takes one more at times. How samplers differ: `DIFFERS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ebbtide.core import registry
from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.parts import Process
from ebbtide.core.plan import Plan, Spec
from ebbtide.solve.dpm_solver import fast

SAMPLERS: dict[str, dict[str, Any]] = {
    "euler": {"name": "euler"},
    "ddim": {"name": "euler"},
    "euler_ancestral": {"name": "ancestral"},
    "heun": {"name": "heun"},
    "dpm_2": {"name": "dpm-solver", "order": 2},
    "dpm_fast": {"name": "dpm-solver", "order": 3},
    "dpm_adaptive": {"name": "dpm-solver", "order": 3},
    "lms": {"name": "lms", "order": 4},
    "dpmpp_2m": {"name": "dpmpp-2m"},
    "dpmpp_2m_sde": {"name": "dpmpp-2m-sde"},
    "dpmpp_2m_sde_heun": {"name": "dpmpp-3m-sde", "terms": 2},
    "dpmpp_3m_sde": {"name": "dpmpp-3m-sde", "second": 0.5},
    "dpmpp_sde": {"name": "dpmpp-2s-sde"},
    "ddpm": {"name": "ddpm"},
    "lcm": {"name": "lcm"},
    "ipndm": {"name": "ipndm"},
    "ipndm_v": {"name": "lms", "order": 4},
    "deis": {"name": "deis", "order": 3, "variable": "time"},
    "res_multistep": {"name": "res-multistep"},
    "er_sde": {"name": "er-sde"},
    "sa_solver": {"name": "sa-solver", "between": [0.2, 0.8]},
    "uni_pc": {"name": "unipc", "predictor": 3, "kind": "bh1"},
    "uni_pc_bh2": {"name": "unipc", "predictor": 3, "kind": "bh2"},
}
"""Sampler name -> solver. `_gpu` at the end (noise drawn on the device) and k-diffusion's `sample_` in front mean nothing."""

DIFFERS: dict[str, str] = {
    "euler_ancestral": "on a flow it is the posterior of the Markov chain, where ComfyUI steps down by s^2 / t and renews.",
    "dpm_fast": "the last of its calls goes from the last level to the data, where k-diffusion stops.",
    "dpm_adaptive": "steps are chosen unit by unit, by the rule of the grid 'adaptive'; the scheduler's levels are left out.",
    "dpmpp_sde": "the noise of a step's middle is part of the step's own, as the SDE has it.",
    "deis": "the polynomial is in the time of the process, where ComfyUI has that of a linear beta schedule.",
    "uni_pc": "the last steps keep their order; only the one that lands on the data is of order 1.",
    "uni_pc_bh2": "the last steps keep their order; only the one that lands on the data is of order 1.",
}
"""Sampler name -> what is not the same here."""

_GUIDED = "it is a way of guiding, which here goes in the plan's `guide`, beside the solver"
_RENEWED = "it steps below the next level and adds noise"
_STAGED = "it draws noise at its stages"
UNSUPPORTED: dict[str, tuple[str, str]] = {
    "euler_cfg_pp": (_GUIDED, "euler"),
    "euler_ancestral_cfg_pp": (_GUIDED, "euler_ancestral"),
    "dpmpp_2s_ancestral_cfg_pp": (_GUIDED, "dpmpp_2m_sde"),
    "dpmpp_2s_ancestral": (_RENEWED, "dpmpp_2m_sde"),
    "dpmpp_2m_cfg_pp": (_GUIDED, "dpmpp_2m"),
    "res_multistep_cfg_pp": (_GUIDED, "res_multistep"),
    "res_multistep_ancestral_cfg_pp": (_GUIDED, "res_multistep"),
    "gradient_estimation_cfg_pp": (_GUIDED, "lms"),
    "res_multistep_ancestral": (_RENEWED, "res_multistep"),
    "dpm_2_ancestral": (_RENEWED, "dpmpp_2m_sde"),
    "heunpp2": ("its weights are of no known order", "heun"),
    "exp_heun_2_x0": ("it weighs its two slopes by another rule", "heun"),
    "exp_heun_2_x0_sde": (_STAGED, "dpmpp_2m_sde"),
    "gradient_estimation": ("it extrapolates slopes without regard to the steps", "lms"),
    "seeds_2": (_STAGED, "dpmpp_2m_sde"),
    "seeds_3": (_STAGED, "dpmpp_3m_sde"),
    "sa_solver_pece": ("it asks again after each correction", "sa_solver"),
}
"""Sampler name -> (why it has no counterpart, the nearest that has)."""

OWN_LEVELS = ("dpm_fast", "dpm_adaptive")
"""Samplers that no scheduler tells its levels."""

SCHEDULERS = (
    "normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta", "linear_quadratic", "kl_optimal",
)  # fmt: skip
"""The scheduler names."""


def named(label: str) -> tuple[str, str | None]:
    """The sampler, and the scheduler where one is named, of a name as programs show it: "DPM++ 2M Karras", "Euler a".

    The sampler is a key of `SAMPLERS` or of `UNSUPPORTED`, or what is left of an unknown name.
    """
    name = "_".join(label.lower().replace("++", "pp ").split()).removeprefix("sample_")
    scheduler = next((s for s in SCHEDULERS if name.endswith(f"_{s}")), None)
    if scheduler is not None:
        name = name.removesuffix(f"_{scheduler}")
    name = name.removesuffix("_gpu")
    name = re.sub(r"_a$", "_ancestral", re.sub(r"^dpm2(?=_|$)", "dpm_2", name))
    return {"unipc": "uni_pc"}.get(name, name), scheduler


def solver_of(sampler: str) -> dict[str, Any]:
    """The solver that a k-diffusion or ComfyUI sampler is, as a spec; a scheduler in its name is passed over.

    Raises EbbError for a name that is unknown or has no counterpart.
    """
    name = named(sampler)[0]
    if name in UNSUPPORTED:
        why, kin = UNSUPPORTED[name]
        ours = SAMPLERS[kin]["name"]
        raise EbbError(f"the sampler {sampler!r} has no counterpart here, as {why}; take {kin!r}, the solver {ours!r}.")
    if name not in SAMPLERS:
        raise EbbError(f"there is no sampler {sampler!r}; {nearest(name, SAMPLERS)}")
    return dict(SAMPLERS[name])


def grid_of(
    scheduler: str,
    steps: int,
    *,
    process: Process | Spec | None = None,
    clock: int = 1000,
    shift: float = 1.0,
) -> dict[str, Any]:
    """The grid that a ComfyUI scheduler is, as a spec.

    process  of the model, or its spec: the levels lie between its first and last ones; without it the schedulers that ask
             for levels have those of `karras` by default
    clock    how many levels the model was trained on
    shift    of a flow: t' = s t / (1 + (s - 1) t)

    Raises EbbError for an unknown name and for more steps than there are levels.
    """
    if scheduler not in SCHEDULERS:
        raise EbbError(f"there is no scheduler {scheduler!r}; {nearest(scheduler, SCHEDULERS)}")
    if not 1 <= steps < clock:
        raise EbbError(f"a clock of {clock} levels has 1 to {clock - 1} steps, not {steps}.")
    made = _process(process)
    flow = getattr(getattr(made, "entry", None), "name", None) == "flow"
    if shift != 1 and not flow:
        raise EbbError("a shift belongs to a flow; give process='flow', or leave it out.")
    if scheduler in ("karras", "exponential", "kl_optimal"):
        return _levels(scheduler, steps, made, flow, clock, shift)
    if scheduler == "linear_quadratic":
        top = {} if flow or made is None else {"sigma_max": _level(made, 1.0)}
        return {"name": "linear-quadratic", "steps": steps, **top}
    if scheduler == "beta":
        spec: dict[str, Any] = {"name": "beta", "steps": steps}
    elif scheduler == "simple" and clock % steps:
        index = clock - 1 - (torch.arange(steps, dtype=torch.float64) * clock / steps).floor()
        spec = _times((index + 1) / clock)
    else:
        rule: dict[str, dict[str, Any]] = {
            "normal": {"spacing": "linspace", "rounded": False},
            "sgm_uniform": {"spacing": "linspace", "rounded": False, "spare": True},
            "simple": {"spacing": "trailing"},
            "ddim_uniform": {"spacing": "leading", "offset": 1},
        }
        spec = {"name": "clock", "steps": steps, "clock": clock, **rule[scheduler]}
    if shift == 1:
        return spec
    times = registry.make("grid", spec).points(made, None)[:-1]
    return _times(shift * times / (1 + (shift - 1) * times))


def plan_of(
    sampler: str,
    scheduler: str | None = None,
    steps: int = 20,
    *,
    process: Process | Spec | None = None,
    clock: int = 1000,
    shift: float = 1.0,
) -> Plan:
    """The plan of a sampler and a scheduler, by the names that k-diffusion and ComfyUI give them; see `grid_of`.

    scheduler  by default the one in the sampler's name, as in "DPM++ 2M Karras", or "normal"

    Raises EbbError for names that are unknown or have no counterpart, with the nearest that have one.
    """
    solve = solver_of(sampler)
    name, said = named(sampler)
    grid = grid_of(scheduler or said or "normal", steps, process=process, clock=clock, shift=shift)
    if name == "dpm_fast":  # its levels lie evenly in log sigma, whatever the scheduler
        count, tail = fast(steps - 1) if steps > 1 else (0, ())
        solve["tail"] = [*tail, 1]
        grid = grid_of("exponential", count + 1, process=process, clock=clock, shift=shift)
    if name == "dpm_adaptive":
        grid = {"name": "adaptive", "last": 1 / clock}
    return Plan(process=process if isinstance(process, str | Mapping) else None, grid=grid, solve=solve)


def _process(process: Process | Spec | None) -> Process | None:
    if process is None or isinstance(process, Process):
        return process
    made: Process = registry.make("process", {"name": process} if isinstance(process, str) else process)
    return made


def _level(process: Any, t: float) -> float:
    """sigma = c / a at a time."""
    return float((-process.lam(torch.tensor([t], dtype=torch.float64))).exp())


def _levels(scheduler: str, steps: int, process: Any, flow: bool, clock: int, shift: float) -> dict[str, Any]:
    name = scheduler.replace("_", "-")
    if process is None:
        return {"name": name, "steps": steps}
    if not flow:
        if "affine" not in process.gives:
            raise EbbError(f"the scheduler {scheduler!r} asks for levels of noise, which this process has none of.")
        return {
            "name": name,
            "steps": steps,
            "sigma_min": _level(process, 1 / clock),
            "sigma_max": _level(process, 1.0),
        }
    # a flow's level is its time
    low, high = (shift * t / (1 + (shift - 1) * t) for t in (1 / clock, 1.0))
    made = registry.make("grid", {"name": name, "steps": steps, "sigma_min": low, "sigma_max": high})
    return _times(made.levels(0.0, 1.0))


def _times(times: Tensor) -> dict[str, Any]:
    return {"name": "explicit", "times": [*times.tolist(), 0.0]}
