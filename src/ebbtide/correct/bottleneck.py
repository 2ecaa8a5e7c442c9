"""Bottleneck sampling: the first and the last steps at full size, those between at a smaller one.

    at a switch   x0 <- resize(E[x0 | x_t]),   x <- a_s x0 + c_s eps with fresh noise
    s = time(lam(tau) - log(scale))            tau of the grid: half the size bears half the noise for the same picture
    tau <- up to `restart`                     the times to the next switch stretched, so that they begin there

The mean over 2 x 2 pixels halves white noise and keeps the picture, so at equal tau all sizes show the same picture through as
much noise; for flow s is the resolution shift scale tau / (1 + (scale - 1) tau). Fresh noise covers what resizing did to x0.

Shapes   x (B, C, H, W), one time each, for a network that takes several sizes; leaves of the condition of x's shape are resized
         too. All elements are at one step: one State has one shape. Memory: `size` (B, 2), `points` (B, n + 1). No call.
Paper    Tian et al. 2025, "Training-free diffusion acceleration with bottleneck sampling" (arXiv 2503.18940), section 3
Off      scales = (1,) is the plain run, bit for bit.
Differs  each stage's shift follows from its size, where the paper chooses one; the shift of the full size is the grid's own.
         A network must have been taught every size: `digits`, taught one, does worse than with fewer steps (Frechet distance
         63 against 7.7 for 200 samples).

Raises EbbError for elements that are no pictures of one time each, or are at different steps.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Correct, Process
from ebbtide.core.registry import part
from ebbtide.core.state import Pred, State
from ebbtide.core.tree import Memory, tree_map
from ebbtide.process.affine import Affine

Share = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=0, le=1)]


@part(
    "correct",
    "bottleneck",
    paper="2503.18940",
    needs={"affine", "module"},
    off={"scales": (1.0,)},
    exempt={
        "shapes": "to change the shape is what it does; tests/correct/test_bottleneck.py says how",
        "batch": "one state has one shape, so requests at different steps are no batch; tests/correct/test_bottleneck.py",
    },
)
class Bottleneck(Correct):
    """Bottleneck sampling: the first and the last steps at full size, those between at a smaller one.

    scales     of the sides, stage by stage; the first and the last are 1
    at         the shares of the grid's steps after which a stage ends
    restart    the times of the grid at which the later stages begin again, where they are above those reached
    shift      whether times follow the size
    multiple   sides are rounded to one of these
    """

    examples = ({}, {"at": (0.3, 0.6), "restart": (0.9,)})
    scales: tuple[Scale, ...] = (1.0, 0.5, 1.0)
    at: tuple[Share, ...] = (0.25, 0.65)
    restart: tuple[Share, ...] = ()
    shift: bool = True
    multiple: Annotated[int, Field(gt=0)] = 1

    @model_validator(mode="after")
    def _stages(self) -> Bottleneck:
        if not self.scales or self.scales[0] != 1 or self.scales[-1] != 1:
            raise ValueError("the first and the last of scales are 1")
        if len(self.at) < len(self.scales) - 1 or list(self.at) != sorted(set(self.at)):
            raise ValueError("at rises, and has a place for each stage but the last")
        return self

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise: at every switch."""
        return len(self.scales) > 1

    def init(self, state: State, ask: Ask) -> Memory:
        """Nothing, but each size is tried on one element. Raises EbbError for one that the network does not take."""
        x = state.x
        if not isinstance(x, Tensor) or x.ndim != 4 or len(self.scales) == 1 or bool(state.i.any()):
            return {}  # only where a run begins
        for scale in sorted(set(self.scales) - {1.0}):
            side = self._side(list(x.shape[2:]), scale)
            try:
                cond = tree_map(lambda v, side=side: (_resized(v, side) if v.shape == x.shape else v)[:1], state.cond)
                row = torch.zeros(1, dtype=torch.int64)
                ask(_resized(x[:1], side), state.t[:1], "look", {k: v for k, v in cond.items() if k != "null"}, of=row)
            except (RuntimeError, ValueError) as error:
                raise EbbError(
                    f"correct 'bottleneck' makes pictures of {side[0]} x {side[1]}, which this network does not take: give "
                    "other scales, or multiple=8, say."
                ) from error
        return {}

    def _side(self, size: list[int], scale: float) -> list[int]:
        """The sides of a stage."""
        return [self.multiple * max(1, round(v * scale / self.multiple)) for v in size]

    def __call__(
        self, state: State, memory: Memory, pred: Pred | None, ask: Ask, process: Process
    ) -> tuple[State, Memory]:
        if len(self.scales) == 1:
            return state, memory
        points = state.memory["grid"].get("points")
        if not isinstance(state.x, Tensor) or state.x.ndim != 4 or state.t.ndim != 1 or points is None:
            raise EbbError(
                "correct 'bottleneck' resizes pictures (C, H, W) of one time each, on a grid whose times are known "
                "beforehand, such as 'linear'."
            )
        if not memory:
            sides = torch.tensor(state.x.shape[2:]).expand(len(state), 2)
            memory = {"size": sides.clone(), "points": points.clone()}
        ends = self._ends(points.shape[-1] - 1)
        here = torch.stack([state.i == end for end in ends[:-1]]).any(0)
        if pred is None or not bool(here.any()):
            return state, memory
        if bool((state.i != state.i[0]).any()):
            raise EbbError(
                "correct 'bottleneck' resizes all elements at once: sample those that are at one step together."
            )
        assert isinstance(process, Affine)
        stage = ends.index(int(state.i[0])) + 1
        base = memory["points"][..., ends[stage - 1] : ends[stage] + 1]
        times = self._times(process, base, stage)
        state = state.remember("grid", {**state.memory["grid"], "points": _written(points, ends[stage - 1], times)})
        side = self._side(memory["size"][0].tolist(), self.scales[stage])
        ask.note("bottleneck", len(state))
        cond = tree_map(lambda v: _resized(v, side) if v.shape == state.x.shape else v, state.cond)
        t = times[:, 0]
        x = process.corrupt(_resized(pred.mean, side), t, ask.noise, cond)
        return replace(state, x=x, t=t, cond=cond), memory

    def _ends(self, n: int) -> list[int]:
        """The steps after which the stages end."""
        return [*(int(share * n) for share in self.at[: len(self.scales) - 1]), n]

    def _times(self, process: Affine, base: Tensor, stage: int) -> Tensor:
        """The times of a stage (B, m + 1), of those that the grid has there."""
        first, last = base[..., :1], base[..., -1:]
        if stage <= len(self.restart):
            high = first.clamp_min(self.restart[stage - 1])
            span = torch.where(first == last, 1.0, first - last)
            base = torch.where(high > first, last + (base - last) * (high - last) / span, base)
        scale = self.scales[stage]
        if not self.shift or scale == 1:
            return base
        moved: Tensor = process.time(process.lam(base) - math.log(scale))
        return torch.where(base == 0, 0.0, moved)


def _written(points: Tensor, begin: int, times: Tensor) -> Tensor:
    """The times of a grid with some of them replaced."""
    out = points.clone()
    out[..., begin : begin + times.shape[-1]] = times
    return out


def _resized(x: Tensor, side: list[int]) -> Any:
    """Pictures (B, C, H, W) of this size."""
    if list(x.shape[2:]) == side:
        return x
    return torch.nn.functional.interpolate(x, side, mode="bilinear", antialias=True)
