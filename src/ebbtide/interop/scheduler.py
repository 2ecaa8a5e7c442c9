"""A plan as a scheduler of diffusers, for whoever wants ebbtide's solvers and grids and keeps all else of a pipeline.

    from ebbtide.interop.scheduler import EbbScheduler
    pipe.scheduler = EbbScheduler.from_plan(ebb.Plan(solve="unipc", grid="karras"), pipe.scheduler)
    pipe.scheduler = EbbScheduler.from_config(pipe.scheduler.config)        what it does by itself, by ebbtide's loop

One output of the network is one step of the loop, so the solver must ask once a step, and guidance is the pipeline's;
`ebb.attach` runs whole plans. It is saved and loaded as any scheduler: its config is that of the class that it was made
from, the name of that class (`base`), and the plan, all plain data. `model_index.json` then names this module, which
diffusers imports for folders; from the hub, whose loader knows its own modules alone, hand it over:
`from_pretrained(repo, scheduler=EbbScheduler.from_pretrained(repo, subfolder="scheduler"))`.

State is per run: it begins at the first `step` after `set_timesteps`, or at a timestep that does not follow the one before,
where history is void. Threads that run at one time each need a copy, as `from_config(scheduler.config)` or `copy.deepcopy`
makes, since two runs through one object are steps of one.

Shapes   samples and outputs (B, ...), `timesteps` (n,), `sigmas` (n + 1,)
Source   huggingface/diffusers 0.42 (Apache-2.0): what its pipelines ask of a scheduler
Differs  samples between steps are those of the process (variance-preserving for a table), also where a class of diffusers
         keeps x0 + sigma eps. Noise is drawn from a seed of each element, taken from `generator` at the first step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.loop import Loop
from ebbtide.core.plan import Plan
from ebbtide.core.state import State
from ebbtide.denoise.network import Network
from ebbtide.interop.fields import CLASSES, SILENT
from ebbtide.interop.pipelines.asked import grid_of, made_even, once, points_of
from ebbtide.interop.pipelines.schedule import Schedule, Told, begun
from ebbtide.interop.schedulers import DROP_IN

__all__ = ["EbbScheduler"]


class EbbScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # the two differ in config_name
    """A plan as a scheduler of diffusers.

    base    the class of diffusers that it stands for, which says what the network was trained on and where a run begins
    plan    process, grid and solver, as plain data; None: those of that class and its config
    fields  the config of that class

    Raises EbbError for a plan that a scheduler cannot run, a class without a counterpart, and unknown fields.
    """

    order = 1
    _compatibles = sorted(CLASSES)

    def __init__(
        self, base: str = "FlowMatchEulerDiscreteScheduler", plan: Mapping[str, Any] | None = None, **fields: Any
    ) -> None:
        if base not in CLASSES:
            raise EbbError(f"{base} is no scheduler that can be read; {nearest(base, CLASSES)}")
        own = {k: v for k, v in fields.items() if not k.startswith("_")}
        strange = sorted(own.keys() - {k for known in CLASSES.values() for k in known} - SILENT)
        if strange:
            raise EbbError(f"{base} has no field {strange[0]!r}; {nearest(strange[0], CLASSES[base])}")
        checked = None if plan is None else once(Plan.from_dict(plan)).to_dict()
        self.register_to_config(**{**CLASSES[base], **own, "base": base, "plan": checked})
        self.num_inference_steps: int | None = None
        self.timesteps = torch.zeros(0)
        self.sigmas = torch.zeros(0)
        self._schedule: Schedule | None = None
        self._answer = Told()
        self._begin_index: int | None = None
        self._run: _Run | None = None
        self._times()  # what is wrong with the config is said here

    # ---------------------------------------------------------------- made, saved and loaded

    @classmethod
    def from_plan(cls, plan: Plan | None, scheduler: Any) -> EbbScheduler:
        """The drop-in that samples by `plan` a network for which `scheduler`, or its config, was made.

        plan   its process, grid and solver; `num_inference_steps` goes before the grid's own steps. None: the scheduler's

        Raises EbbError for a plan with several calls a step, with guides, patches, corrections or steering.
        """
        return cls.from_config(scheduler, plan=None if plan is None else plan.to_dict())

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The drop-in of a config, its own or that of a scheduler of diffusers, or of the scheduler itself.

        kwargs  go before the config's fields; `base` names the class, which a config says only once it was saved

        Raises EbbError for a config that does not say whose it is.
        """
        if isinstance(config, ConfigMixin):
            config = {"_class_name": type(config).__name__, **config.config}
        if not isinstance(config, Mapping):
            raise EbbError("give from_config a scheduler or its config, or from_pretrained its folder.")
        kind = kwargs.get("base") or config.get("_class_name") or (cls.__name__ if "base" in config else None)
        if kind is None:
            raise EbbError(
                "this config does not name its class: give from_config the scheduler itself, or base=its name."
            )
        fields = dict(config) if kind == cls.__name__ else {**config, "base": kind, "plan": None}
        own = {k for name in CLASSES for k in CLASSES[name]} | {"base", "plan"}
        unused = {k: v for k, v in kwargs.items() if k not in own}
        made = cls(**{**fields, **{k: v for k, v in kwargs.items() if k in own}})
        return (made, unused) if return_unused_kwargs else made

    def __deepcopy__(self, memo: dict[int, Any]) -> EbbScheduler:
        """A copy that shares no run with this one; its times are laid out where these are."""
        made = type(self).from_config(self.config)
        kept = {k: v for k, v in self.__dict__.items() if k in ("timesteps", "sigmas", "num_inference_steps")}
        made.__dict__.update(copy.deepcopy(kept, memo), _schedule=self._schedule)
        out: EbbScheduler = made
        return out

    # ---------------------------------------------------------------- times

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Lay out the times of a run, and forget the one before.

        With a plan a list goes before its grid, except the even one from 1 to 1 / n, which pipelines hand over where the
        caller gave none. Without a plan all is as the class that this was made from does it.

        Raises EbbError for a list that does not fall, and a grid that cannot have this many steps.
        """
        schedule = self._times()
        handed = sigmas is not None and not (schedule.plan is not None and made_even(sigmas))
        if not handed and sigmas is not None:
            num_inference_steps = len(sigmas)
        given = {
            "num_inference_steps": num_inference_steps,
            "timesteps": timesteps,
            "sigmas": sigmas if handed else None,
        }
        said = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu}
        schedule.lay(num_inference_steps, device, said, given)
        self.timesteps, self.sigmas = schedule.timesteps, schedule.sigmas
        self.num_inference_steps = len(self.timesteps)
        self._schedule, self._begin_index, self._run = schedule, None, None

    def _times(self) -> Schedule:
        """The times of a run to come, not laid out; the config is read anew, since pipelines rewrite it."""
        c = self.config
        own = {k: v for k, v in c.items() if k in CLASSES[c["base"]]}
        plan = None if c["plan"] is None else Plan.from_dict(c["plan"])
        schedule = Schedule(getattr(diffusers, c["base"])(**own), plan)
        if plan is None:
            once(schedule.facts.plan)
        else:
            plan.check(schedule.process, frozenset({"module"}))
            points_of(grid_of(plan, {}, schedule.facts, 0.0), schedule.process)
        return schedule

    @property
    def init_noise_sigma(self) -> float:
        """By how much unit noise is multiplied to begin with."""
        return 1.0 if self._schedule is None else self._schedule.start

    @property
    def step_index(self) -> int | None:
        """The place in the list of the step to come; None before the first."""
        return None if self._run is None else self._run.place

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say where in the list the run begins."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """The place of a timestep in the list."""
        return self._laid().place(timestep, self.step_index or 0, schedule_timesteps)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def _laid(self) -> Schedule:
        if self._schedule is None:
            raise EbbError("this scheduler has no times yet; call set_timesteps first.")
        return self._schedule

    # ---------------------------------------------------------------- samples

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is shown: the sample itself, and what EDM's preconditioning makes of it for an EDM network."""
        schedule = self._laid()
        if schedule.facts.border["predicts"] != "edm":
            return sample
        sigma = float(schedule.sigmas[self.index_for_timestep(timestep)])
        return sample / float(sigma**2 + schedule.facts.border["sigma_data"] ** 2) ** 0.5

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of known data and noise, each element at its own timestep of the list, or of the training clock."""
        schedule = self._schedule or self._times()
        return schedule.noised(original_samples, noise, timesteps, self.step_index or 0)

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise`, as flow schedulers call it."""
        return self.add_noise(sample, noise, torch.as_tensor(timestep).reshape(-1))

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One step of the loop, with the network's output for its one call.

        generator  one or a list, from which the seeds of a stochastic solver are drawn at the first step

        Raises EbbError before `set_timesteps`, and where the solver asks for more than was said.
        """
        schedule, run = self._laid(), self._run
        place = schedule.place(timestep, (self._begin_index or 0) if run is None else run.place)
        if run is None or place != run.place or sample.shape != run.last.shape:
            loop = self._bound(schedule, place)
            state = begun(loop, schedule.inward(sample, place), {}, generator)
        else:
            loop, state = run.loop, run.state
            if sample is not run.last:
                state = replace(state, x=schedule.inward(sample, place).to(state.x))
        self._answer.said = model_output
        state = loop.step(state).state
        last = schedule.outward(state.x, place + 1).to(sample.dtype)
        self._run = _Run(loop, state, place + 1, last)
        return SchedulerOutput(prev_sample=last) if return_dict else (last,)

    def _bound(self, schedule: Schedule, place: int) -> Loop:
        network = Network(self._answer, schedule.trained, **schedule.facts.border)
        return schedule.bind(network, place, [], frozenset({"module"}))


@dataclass(frozen=True, eq=False)
class _Run:
    """Where a run stands: its loop and state, the place of the step to come, and the sample that was handed back."""

    loop: Loop
    state: State
    place: int
    last: Tensor


assert EbbScheduler.__name__ == DROP_IN
