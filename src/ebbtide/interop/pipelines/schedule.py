"""A plan in a scheduler's place: its times as pipelines count them, its latents as their denoiser knows them.

    timesteps = the network's clock at the times of the grid,  sigmas = c / a there, or the times of a flow
    x_t of the plan's process = r_t x_t of the trained one,    r = |(a, c)| / |(A, C)| at equal log-SNR

Whatever holds a pipeline's scheduler (`driver`, the drop-in `interop.scheduler`) asks this for all but the step itself.

Shapes   times float64 (n + 1,), latents (B, ...)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Loop
from ebbtide.core.parts import Denoiser
from ebbtide.core.plan import Plan
from ebbtide.core.state import State
from ebbtide.core.time import combine, weight
from ebbtide.denoise.network import CLOCKS, TIMES, Border
from ebbtide.interop.pipelines.asked import grid_of, points_of
from ebbtide.interop.pipelines.hearing import signature
from ebbtide.interop.pipelines.learning import whole_of
from ebbtide.interop.pipelines.matching import entry, plan_of
from ebbtide.interop.pipelines.model import facts, process_of

_LISTS = ("timesteps", "sigmas")


class Schedule:
    """The times of one call of a pipeline.

    own    the scheduler that stands in its pipeline, or a copy: it is laid out with the call, and says where that begins
    plan   how the call is sampled; None: as the scheduler itself would, once it is laid out
    whole  how times become whole for the network, where the scheduler's are; None where they do not
    """

    def __init__(self, own: Any, plan: Plan | None) -> None:
        self.own, self.plan = own, plan
        self.facts = facts(own)
        self.trained = process_of(self.facts)
        named = None if plan is None or plan.process is None else plan.parts("process")[0]
        self.process = named or self.trained
        self.points = self.home = torch.ones(1, dtype=torch.float64)
        self.timesteps = self.sigmas = torch.zeros(0)
        self.scales: list[float] | None = None
        self.whole: Callable[[Tensor], Tensor] | None = None

    def lay(self, n: int | None, device: Any, said: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Lay out the times of a call.

        n      the number of steps, where no list is said
        said   what the scheduler is handed beside: timesteps, sigmas, mu
        given  what the caller gave: num_inference_steps and the lists, which go before the plan's own

        Raises EbbError for a list that does not fall, or that the scheduler does not know where it samples by itself.
        """
        said = {k: v for k, v in said.items() if v is not None}
        mu = said.get("mu")
        if self.plan is not None and not self.own.config.get("use_dynamic_shifting"):
            said.pop("mu", None)  # which some classes refuse
        listed = next((k for k in _LISTS if k in said), None)
        count = n if listed is None else len(said[listed])
        known = signature(type(self.own).set_timesteps).parameters
        if said.keys() <= known.keys():
            steps = {} if listed else {"num_inference_steps": count}
            self.own.set_timesteps(**steps, device=device, **said)
        elif self.plan is None:
            strange = min(said.keys() - known.keys())
            raise EbbError(f"{type(self.own).__name__} is not handed {strange!r}; give a plan, or a number of steps.")
        else:
            self.own.set_timesteps(num_inference_steps=count, device=device)
        itself = self.plan is None
        if self.plan is None:
            self.plan = plan_of(self.own, count or len(self.own.timesteps), said)
            grid: Any = self.plan.grid
        else:
            grid = grid_of(self.plan, given, self.facts, mu)
        self.points = self.home = points_of(grid, self.process)
        if not bool((self.points[1:] < self.points[:-1]).all()):
            raise EbbError(f"the times of a run fall at every step; these are {self.points.tolist()} of the whole.")
        self.scales = None
        if self.process != self.trained:
            self.home = self.trained.time(self.process.lam(self.points))
            self.scales = (_size(self.process, self.points) / _size(self.trained, self.home)).tolist()
        told = CLOCKS[self.facts.border["clock"]](self.trained, self.home, self.facts.clock)
        times = told[:-1].to(torch.float32)
        self.whole = whole_of(self.own, self.facts.flow)
        if self.whole is not None:
            if itself and len(self.own.timesteps) == len(times):
                self.whole = _As(self.whole, times, self.own.timesteps.cpu().float())
            times = self.whole(times).to(torch.int64)
        self.timesteps = times.to(device)
        levels = self.home if self.facts.flow else (-self.trained.lam(self.home)).exp()
        self.sigmas = torch.where(self.home == 0, 0.0, levels).to(device, torch.float32)

    @property
    def start(self) -> float:
        """By how much unit noise is multiplied to be what the denoiser is shown first."""
        return entry(self.own) if len(self.timesteps) else 1.0

    def place(self, timestep: Any, expected: int = 0, listed: Tensor | None = None) -> int:
        """The place of a timestep in the list; the expected one where it fits, since whole timesteps may repeat."""
        times = self.timesteps if listed is None else listed
        t = float(timestep)
        if expected < len(times) and float(times[expected]) == t:
            return expected
        return int((times.float() - t).abs().argmin())

    def noised(self, data: Tensor, noise: Tensor, timesteps: Any, expected: int = 0) -> Tensor:
        """x_t of known data and noise, at one timestep for all or one for each element.

        Timesteps are those of the list, and where one is not in it those of the clock that the network was trained on.
        """
        asked, listed = torch.as_tensor(timesteps).reshape(-1).cpu().double(), self.timesteps.cpu().double()
        inside = bool(torch.isin(asked, listed).all()) or self.facts.border["clock"] not in TIMES
        t = self.home[[self.place(v, expected) for v in asked]] if inside else self.facts.times(asked)
        made: Tensor = combine((weight(self.trained.a(t)), data), (weight(self.trained.c(t)), noise))
        return made

    def inward(self, x: Tensor, place: int) -> Tensor:
        """Latents of the pipeline, at a place of the list, as those of the process sampled in."""
        return x if self.scales is None else x * self.scales[place]

    def outward(self, x: Tensor, place: int) -> Tensor:
        """The inverse of `inward`."""
        return x if self.scales is None else x / self.scales[place]

    def bind(self, denoiser: Denoiser, first: int, guides: list[dict[str, Any]], gives: frozenset[str]) -> Loop:
        """The plan from the place `first` on, bound to what answers."""
        assert self.plan is not None
        grid = {"name": "explicit", "times": self.points[first:].tolist()}
        plan = self.plan.replace(start="given", grid=grid, guide=guides, run=None)
        return plan.bind(Border.of(denoiser, self.process, plan.parts("network")), self.process, gives)


@dataclass(frozen=True, eq=False)
class _As:
    """How times become whole for a run that is the scheduler's own: `listed` as it tells them, others by the rule."""

    rule: Callable[[Tensor], Tensor]
    listed: Tensor
    told: Tensor

    def __call__(self, clock: Tensor) -> Tensor:
        off, place = (clock.reshape(-1, 1) - self.listed.to(clock.device)).abs().min(1)
        told = self.told.to(clock.device)[place]
        return torch.where(off < 1e-3, told, self.rule(clock).reshape(-1)).reshape(clock.shape)


class Told:
    """A denoiser that answers with what a pipeline's own call of it gave, once a step."""

    said: Tensor | None = None

    def __call__(self, x: Tensor, clock: Tensor) -> Tensor:
        said, self.said = self.said, None
        if said is None:
            raise EbbError(
                "this solver asks the network again within a step, which a scheduler cannot; use ebb.attach."
            )
        return said


def begun(loop: Loop, x: Tensor, cond: Mapping[str, Any], generator: Any) -> State:
    """The first state of a loop at the latents `x`; those of half precision are kept in float32.

    generator  one or a list: seeds are drawn from it where the plan draws noise, and it stays as it is elsewhere
    """
    like = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    seeds = [0] * len(x)
    if loop.solve.stochastic or loop.correct or loop.steer:
        each = generator if isinstance(generator, list) else [generator] * len(x)
        seeds = [_draw(g) for g in each]
    return loop.begin(torch.zeros_like(like), {**cond, "start": like}, seeds)


def _draw(g: torch.Generator | None) -> int:
    return int(torch.randint(2**62, (1,), generator=g, device="cpu" if g is None else g.device))


def _size(process: Any, t: Tensor) -> Tensor:
    size: Tensor = (process.a(t) ** 2 + process.c(t) ** 2).sqrt()
    return size
