"""The schedulers of diffusers as benches and oracle tests run them: built from a config, asked at the level that they hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import Tensor

Config = dict[str, Any]
Network = Callable[[Tensor, Tensor], Tensor]

SPACINGS = ("linspace", "leading", "trailing")
LEVELS: tuple[Config, ...] = ({}, *({f"use_{k}_sigmas": True} for k in ("karras", "exponential", "beta")))
LU: Config = {"use_lu_lambdas": True}


def build(config: Config) -> Any:
    """A live scheduler."""
    import diffusers

    diffusers.logging.set_verbosity_error()
    return getattr(diffusers, config["_class_name"])(**{k: v for k, v in config.items() if k != "_class_name"})


def titled(config: Config) -> str:
    """The class, and what is not its default."""
    kind = config["_class_name"].removesuffix("Scheduler").removesuffix("Discrete")
    said = [f"{k}={v}" for k, v in config.items() if k not in ("_class_name", "clip_sample", "prediction_type")]
    return " ".join([kind, *said])


class Again:
    """A scheduler set to some steps that can be run over and over: what a run leaves in it is put back."""

    def __init__(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.is_scale_input_called = True
        self.scheduler, self.timesteps = scheduler, list(scheduler.timesteps)
        self.kept = {k: list(v) if isinstance(v, list) else v for k, v in vars(scheduler).items()}

    def fresh(self) -> Any:
        """The scheduler as it was before its first step."""
        vars(self.scheduler).update({k: list(v) if isinstance(v, list) else v for k, v in self.kept.items()})
        return self.scheduler


def within(config: Config, calls: int) -> int | None:
    """The most steps whose calls stay within the budget; None where none do."""
    for steps in range(calls, 0, -1):
        scheduler = build(config)
        try:
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError):  # some crash on few steps
            continue
        if len(scheduler.timesteps) <= calls:
            return steps
    return None


def time_of(scheduler: Any, process: Any, call: int, t: Tensor) -> Tensor:
    """Our time of a call, (1,): that of the level the scheduler holds, not of the rounded step it tells a network."""
    name = type(scheduler).__name__
    if name == "IPNDMScheduler":
        return t.double().reshape(1)
    if not hasattr(scheduler, "sigmas"):
        kept = scheduler.alphas_cumprod[int(t)].double()
        sigma = ((1 - kept) / kept).sqrt().reshape(1)
        return cast("Tensor", process.time(-sigma.log()))
    sigmas = scheduler.sigmas
    if hasattr(scheduler, "sigmas_interpol") and call % 2:
        sigmas = scheduler.sigmas_interpol
    sigma = sigmas[call].double().reshape(1)
    if name.startswith("EDM"):
        return sigma / scheduler.config.sigma_max
    if name.startswith("FlowMatch") or getattr(scheduler.config, "use_flow_sigmas", False):
        return sigma
    return cast("Tensor", process.time(-sigma.log()))


def in_sigma(scheduler: Any) -> bool:
    """Whether its samples are x / a, as in k-diffusion."""
    return type(scheduler).__name__.startswith(("EulerDiscrete", "EulerAncestral", "Heun", "KDPM2", "LMS"))


def ends(config: Config, steps: int, process: Any, network: Network, start: Tensor, **step: Any) -> Tensor:
    """Where a scheduler takes `start`, which is x at its first time in our scale.

    network   the prediction of its own kind, at x in our scale and our time (1,)
    """
    scheduler = build(config)
    scheduler.set_timesteps(steps)
    x = start
    for call, t in enumerate(scheduler.timesteps):
        time = time_of(scheduler, process, call, t)
        if call == 0 and in_sigma(scheduler):
            x = x / process.a(time).to(x)
        inside = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(inside, time), t, x, return_dict=False, **step)[0]
    return x


def diffusion() -> Iterator[Config]:
    """Every deterministic scheduler of a variance-preserving network that predicts eps, with every spacing and levels."""
    for spacing in SPACINGS:
        at = {"timestep_spacing": spacing}
        yield {"_class_name": "DDIMScheduler", "clip_sample": False, **at}
        for skip in (False, True):
            yield {"_class_name": "PNDMScheduler", "skip_prk_steps": skip, **at}
        for levels in LEVELS:
            for kind in ("Euler", "Heun", "LMS", "KDPM2"):
                yield {"_class_name": f"{kind}DiscreteScheduler", **at, **levels}
            for order in (1, 2, 3):
                yield {"_class_name": "DEISMultistepScheduler", "solver_order": order, **at, **levels}
                for kind in ("bh1", "bh2"):
                    yield {
                        "_class_name": "UniPCMultistepScheduler",
                        "solver_order": order,
                        "solver_type": kind,
                        **at,
                        **levels,
                    }
            for order, kind in itertools.product((2, 3), ("dpmsolver", "dpmsolver++")):
                algorithm = {"solver_order": order, "algorithm_type": kind}
                short: Config = {"final_sigmas_type": "sigma_min"}
                if spacing == "linspace":  # the only one it has
                    final = short if kind == "dpmsolver" else {}
                    yield {"_class_name": "DPMSolverSinglestepScheduler", **algorithm, **levels, **final}
                for final in (short,) if kind == "dpmsolver" else ({}, short, {"euler_at_final": True}):
                    yield {"_class_name": "DPMSolverMultistepScheduler", **algorithm, **at, **levels, **final}
        for order in (2, 3):
            yield {"_class_name": "DPMSolverMultistepScheduler", "solver_order": order, **at, **LU}


def chance() -> Iterator[Config]:
    """Every scheduler of such a network that draws noise, beside them."""
    for spacing in SPACINGS:
        at = {"timestep_spacing": spacing}
        yield {"_class_name": "DDPMScheduler", "clip_sample": False, **at}
        for kind in ("EulerAncestral", "KDPM2Ancestral"):
            yield {"_class_name": f"{kind}DiscreteScheduler", **at}
        for levels in LEVELS:
            for order in (1, 2, 3):
                sde = {"solver_order": order, "algorithm_type": "sde-dpmsolver++"}
                yield {"_class_name": "DPMSolverMultistepScheduler", **sde, **at, **levels}
            for order in (2, 3):
                yield {"_class_name": "SASolverScheduler", "predictor_order": order, **at, **levels}


def flow() -> Iterator[Config]:
    """Every scheduler of a network that predicts the flow, with several shifts; three of them draw noise."""
    for shift in (0.5, 1.0, 2.0, 3.0):
        for levels in LEVELS:
            yield {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift, **levels}
        yield {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift, "stochastic_sampling": True}
        yield {"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": shift}
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        for order in (2, 3):
            for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
                kind: Config = {"algorithm_type": algorithm, "solver_order": order}
                yield {"_class_name": "DPMSolverMultistepScheduler", **kind, **flow}
            yield {"_class_name": "SASolverScheduler", "predictor_order": order, **flow}
            yield {"_class_name": "DPMSolverSinglestepScheduler", "solver_order": order, **flow}
            yield {"_class_name": "DEISMultistepScheduler", "solver_order": order, **flow}
            for form in ("bh1", "bh2"):
                yield {"_class_name": "UniPCMultistepScheduler", "solver_order": order, "solver_type": form, **flow}
