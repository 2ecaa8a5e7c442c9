"""Fixed grids: a list of falling times that every unit walks at its own pace.

    linear       t_k = first (1 - k / n)
    cosine       t_k = first cos(pi k / (2 n))                                        MaskGIT's order of unmasking
    karras       sigma_k = (smax^(1/rho) + k/(n-1) (smin^(1/rho) - smax^(1/rho)))^rho, then data
    exponential  log sigma uniform from smax to smin, then data
    log-snr      lam uniform between two times, then data
    explicit     the times, or noise levels, given

sigma = c / a; noise levels outside those of the process are held to its ends. The first three lists of levels are of
length n, so `steps` counts network calls of a one-call solver everywhere.

Paper    Karras et al. 2022 (arXiv 2206.00364), eq. 5; Chang et al. 2022 (2202.04200), section 3.2; Lu et al. 2022
         (2206.00927), section 3.3
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Grid
from ebbtide.core.registry import part
from ebbtide.core.state import Move, State
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine

Steps = Annotated[int, Field(gt=0)]
Time = Annotated[float, Field(gt=0, le=1)]
Level = Annotated[float, Field(gt=0)]


class FixedGrid(Grid):
    """A grid whose times are known beforehand. Memory: `points` (B, 1..., n + 1), so each element may have its own."""

    def points(self, process: Any, state: State) -> Tensor:
        """The times, float64 (n + 1,), falling strictly from the first to the last."""
        raise NotImplementedError

    def init(self, state: State, ask: Ask) -> Memory:
        points = self.points(ask.process, state)
        if not bool((points[1:] < points[:-1]).all()):
            raise EbbError(f"the times of grid {self.entry.name!r} must fall at every step; they are {_short(points)}.")
        if float(points[-1]) < 0 or float(points[0]) > 1:
            raise EbbError(f"the times of grid {self.entry.name!r} must lie in [0, 1]; they are {_short(points)}.")
        return {"points": points.expand(len(state), *(1,) * (state.t.ndim - 1), len(points)).clone()}

    def ahead(self, state: State, memory: Memory, k: int) -> Tensor:
        return self.at(memory, state.i + k)

    def at(self, memory: Memory, index: Tensor) -> Tensor:
        """The time of each unit at its own place `index` in the list, held to its end."""
        points = memory["points"]
        index = index.clamp(max=points.shape[-1] - 1)
        if index.ndim == 1:
            return points.gather(1, index[:, None])[:, 0]
        return points.expand(*index.shape, -1).gather(-1, index[..., None])[..., 0]

    def settle(self, state: State, memory: Memory, s: Tensor, move: Move) -> tuple[Tensor | None, Memory]:
        moved = s != state.t
        return (None if bool(moved.all()) else moved), memory

    def done(self, state: State, memory: Memory) -> Tensor:
        points = memory["points"]
        return state.i >= points.shape[-1] - 1


def _short(points: Tensor) -> str:
    listed = [f"{v:.4g}" for v in points.tolist()]
    return ", ".join(listed if len(listed) <= 8 else [*listed[:4], "...", *listed[-3:]])


@part("grid", "linear")
class Linear(FixedGrid):
    """Times uniform in t, from the first to the data."""

    steps: Steps = 20
    first: Time = 1.0

    def points(self, process: Any, state: State) -> Tensor:
        return torch.linspace(self.first, 0, self.steps + 1, dtype=torch.float64)


@part("grid", "cosine", paper="2202.04200")
class Cosine(FixedGrid):
    """Times along a cosine: slow where little is known, fast where all is."""

    steps: Steps = 20
    first: Time = 1.0

    def points(self, process: Any, state: State) -> Tensor:
        k = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        return self.first * torch.where(k == 1, torch.zeros_like(k), (k * math.pi / 2).cos())


class LevelGrid(FixedGrid):
    """A fixed grid made of noise levels sigma = c / a, which the process turns into times, and the data at its end."""

    def levels(self, low: float, high: float) -> Tensor:
        """The levels, (n,), falling from `high`, within the range low to high of the process."""
        raise NotImplementedError

    def points(self, process: Any, state: State) -> Tensor:
        low, high = (float((-process.lam(torch.tensor([t], dtype=torch.float64))).exp()) for t in (0.0, 1.0))
        levels = self.levels(low, high).clamp(low, high)
        return torch.cat([process.time(-levels.log()), torch.zeros(1, dtype=torch.float64)])


def _ramp(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64) / max(n - 1, 1)


@part("grid", "karras", paper="2206.00364", needs={"affine"})
class Karras(LevelGrid):
    """Noise levels uniform in their rho-th root: short steps at low noise."""

    steps: Steps = 20
    sigma_min: Level = 0.002
    sigma_max: Level = 80.0
    rho: Level = 7.0

    def levels(self, low: float, high: float) -> Tensor:
        first, last = (min(max(v, low), high) ** (1 / self.rho) for v in (self.sigma_max, self.sigma_min))
        return (first + _ramp(self.steps) * (last - first)) ** self.rho


@part("grid", "exponential", needs={"affine"})
class Exponential(LevelGrid):
    """Noise levels uniform in their logarithm, between two given ones."""

    steps: Steps = 20
    sigma_min: Level = 0.002
    sigma_max: Level = 80.0

    def levels(self, low: float, high: float) -> Tensor:
        first, last = (math.log(min(max(v, low), high)) for v in (self.sigma_max, self.sigma_min))
        return (first + _ramp(self.steps) * (last - first)).exp()


@part("grid", "log-snr", paper="2206.00927", needs={"affine"})
class LogSNR(FixedGrid):
    """Times uniform in the process's own log-SNR, between two times, then the data."""

    steps: Steps = 20
    first: Time = 0.999
    last: Time = 1e-3

    def points(self, process: Any, state: State) -> Tensor:
        high, low = process.lam(torch.tensor([self.first, self.last], dtype=torch.float64)).tolist()
        times = process.time(high + _ramp(self.steps) * (low - high))
        return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


@part("grid", "explicit")
class Explicit(FixedGrid):
    """The times given, or the noise levels sigma = c / a given (where 0 is the data)."""

    examples = ({"times": [0.9, 0.6, 0.3, 0.0]}, {"sigmas": [20.0, 2.0, 0.3, 0.0]})
    times: list[float] | None = None
    sigmas: list[float] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Explicit:
        given = self.times if self.sigmas is None else self.sigmas
        if (self.times is None) == (self.sigmas is None) or len(given or ()) < 2:
            raise ValueError("give either times or sigmas, at least two of them")
        return self

    def points(self, process: Any, state: State) -> Tensor:
        if self.times is not None:
            return torch.tensor(self.times, dtype=torch.float64)
        if not isinstance(process, Affine):
            raise EbbError("noise levels need an affine process; give `times` for this one.")
        sigma = torch.tensor(self.sigmas, dtype=torch.float64)
        return torch.where(sigma <= 0, torch.zeros_like(sigma), process.time(-sigma.clamp_min(1e-30).log()))
