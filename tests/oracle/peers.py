"""diffusers' schedulers as oracles: in float64, on an exact model, fed with the noise that we draw.

Their tables and upcasts are float32. Here the modules of the schedulers see a `torch` and a `numpy` whose float32 is
float64, so that what remains of a difference is the algorithm.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core import registry
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.interop.schedulers import Found, read
from schedulers import build, in_sigma, time_of

EVENT, ROWS = (5,), 6


class Lifted(ModuleType):
    """A module whose float32 is float64."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner.__name__)
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "float32":
            return self._inner.float64
        return getattr(self._inner, name)


def modules() -> list[Any]:
    """The modules of diffusers' schedulers."""
    found = (getattr(diffusers.schedulers, name) for name in dir(diffusers.schedulers))
    return list({cls.__module__: sys.modules[cls.__module__] for cls in found if isinstance(cls, type)}.values())


def lift(monkeypatch: Any) -> None:
    """Make every scheduler of diffusers compute in float64; the default dtype is the test's to restore."""
    torch.set_default_dtype(torch.float64)
    for module in modules():
        for alias, inner in (("torch", torch), ("np", np)):
            if getattr(module, alias, None) is inner:
                monkeypatch.setattr(module, alias, Lifted(inner))


def mixture(process: Any) -> GaussianMixture:
    """Three bent components in five dimensions: far from Gaussian at small noise."""
    draw = torch.Generator().manual_seed(3)
    means = torch.randn(3, *EVENT, generator=draw, dtype=torch.float64) * 1.2
    return GaussianMixture(process, [0.5, 0.3, 0.2], means, torch.tensor([0.05, 0.2, 0.4], dtype=torch.float64))


def tape(steps: int) -> Tensor:
    """The noise of every step of every element, (B, T, *event)."""
    return torch.randn(ROWS, steps, *EVENT, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


def ours(found: Found, noise: Tensor | None = None, **slots: Any) -> tuple[list[Tensor], list[float], Tensor]:
    """The states of a run of the plan on the exact model of its process, the times, and the start.

    noise  the solver's draws, (B, T, *event): the slot from which every run can be replayed
    """
    process = registry.make("process", found.process)
    model = ebb.load(mixture(process), like=torch.zeros(EVENT, dtype=torch.float64))
    plan = found.plan.replace(**slots) if slots else found.plan
    loop, state = ebb.api.begin(model, plan, n=ROWS, seed=7)
    if noise is not None:
        state = state.remember("noise", {"x": noise})
    states, times = [state.x], [float(state.t[0])]
    for step in loop.run(state):
        states.append(step.state.x)
        times.append(float(step.state.t[0]))
    return states, times, states[0]


class Exact:
    """The same exact model as diffusers' pipelines would call it: by level, on the network's input, for its prediction."""

    def __init__(self, process: Any, predicts: str) -> None:
        self.process, self.predicts, self.inner = process, predicts, mixture(process)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction at x, in the process's own scale, and its time t (1,)."""
        t = t.expand(ROWS)
        x0 = self.inner(x, t, {}).mean
        if self.predicts == "edm":  # F with D = c_skip x + c_out F, table 1 of Karras et al. 2022
            sigma, data = self.process.c(t)[:, None], 0.5
            norm = (sigma**2 + data**2).sqrt()
            return (x0 - data**2 / norm**2 * x) * norm / (sigma * data)
        return self.process.from_x0(self.predicts, x0, x, t, {})


def theirs(
    scheduler: Any,
    steps: int,
    start: Tensor,
    found: Found,
    noise: Tensor | None = None,
    skip: int = 0,
    **step: Any,
) -> Iterator[Tensor]:
    """The samples after each call of a scheduler, in the scale of its own process.

    start   x at the first time, in our scale; schedulers in units of sigma are given x / a
    noise   what `randn_tensor` gives out, draw by draw, (B, T, *event)
    skip    calls left out at the beginning
    step    further arguments of `scheduler.step`
    """
    process = registry.make("process", found.process)
    model = Exact(process, found.border["predicts"])
    if noise is not None:
        draws = iter(noise.unbind(1))
        vars(sys.modules[type(scheduler).__module__])["randn_tensor"] = lambda *a, **k: next(draws)
    scheduler.set_timesteps(steps)
    levels = hasattr(scheduler, "sigmas") and in_sigma(scheduler)
    x = start
    if skip:
        scheduler.set_begin_index(skip)
    for call, t in list(enumerate(scheduler.timesteps))[skip:]:
        time = time_of(scheduler, process, call, t)
        if levels and call == 0:
            x = x / process.a(time)
        inside = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        inside = x if model.predicts == "edm" else inside  # the exact one takes x as it is
        out = model(inside, time)
        x = scheduler.step(out, t, x, return_dict=False, **step)[0]
        yield x


def gap(
    config: dict[str, Any], steps: int, noise: Tensor | None = None, step: dict[str, Any] | None = None, **slots: Any
) -> float:
    """The largest difference of the two runs at their ends, of the plan that this config becomes (`slots` changed)."""
    found = read(config, steps)
    states, times, start = ours(found, noise, **slots)
    scheduler = build(config)
    *_, last = theirs(scheduler, steps, start, found, noise, **(step or {}))
    if in_sigma(scheduler):
        last = last * registry.make("process", found.process).a(torch.tensor([times[-1]], dtype=torch.float64))
    return float((last - states[-1]).abs().max())
