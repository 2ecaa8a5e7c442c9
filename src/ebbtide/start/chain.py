"""Chain start: a Markov chain over (x, sigma) visits low noise, and only the short rest of the way is integrated.

    u = x / a, sigma = c / a           what a variance-exploding model sees, whatever the process
    u <- u + (eta / 2) (D - u) + sqrt(eta) sigma z          Langevin with a step of eta sigma^2;  D = E[x0 | u, sigma]
    sigma <- one of `levels` even in log sigma,  by q(sigma | u) ~ p(sigma) p_sigma(u)
    d log p_sigma(u) / d log sigma = E|u - x0|^2 / sigma^2 - d,   E|u - x0|^2 = |u - D|^2 + tr Var[x0 | u]

The last line ties q to the denoiser: `sample` integrates it over all levels, which is exact (with flat p over the levels)
where the model says Var, and costs a call a level; `argmax` moves to its zero, sigma^2 = E|u - x0|^2 / d, for one call, a
step of expectation maximisation. The visited state of lowest sigma is where the run begins,
each element at its own time; the grid's times below it are squeezed into as many steps as the grid has.

Shapes   cond["previous"] like x (B, ...), data: each element's chain goes on from its last result, noised to `first`. It is
         taken out of the condition. Calls an element: 2 a move, with `sample` 1 + levels.
Paper    Kim, Ye 2022, "Denoising MCMC for accelerating diffusion-based generative models" (arXiv 2209.14593), algorithm 1
Off      the baseline is `prior`: the first result of a chain has nothing to go on from.
Differs  no noise classifier is trained: the denoiser itself tells sigma. Langevin's step grows with sigma^2 and has no
         Metropolis test: with a constant one it is unstable at low noise. Where the model says no Var it is taken as 0,
         and sigma comes out too low by the share of the dimensions along the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Start
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.time import right, unit_mean
from ebbtide.core.tree import Tree
from ebbtide.process.affine import Affine
from ebbtide.start.held import held, points

Level = Annotated[float, Field(gt=0)]


@part("start", "chain", paper="2209.14593", needs={"affine"}, refuses={"end"}, baseline="prior")
class Chain(Start):
    """Chain start: a Markov chain over (x, sigma) visits low noise, and only the short rest of the way is integrated.

    moves     of the chain, in x and in sigma
    eta       Langevin's step in units of sigma^2
    first     the noise put on the previous result
    rule      how sigma is drawn
    levels    how many there are between sigma_min and sigma_max
    begin     where the run begins: the "lowest" state visited, or the "last" one
    """

    moves: Annotated[int, Field(ge=0)] = 4
    eta: Annotated[float, Field(gt=0, lt=2)] = 0.5
    first: Level = 0.5
    rule: Literal["argmax", "sample"] = "argmax"
    levels: Annotated[int, Field(ge=2)] = 16
    sigma_min: Level = 0.01
    sigma_max: Level = 50.0
    begin: Literal["lowest", "last"] = "lowest"

    @model_validator(mode="after")
    def _falling(self) -> Chain:
        if self.sigma_min >= self.sigma_max:
            raise ValueError("sigma_min lies below sigma_max")
        return self

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        """Raises EbbError without cond["previous"] and for a grid whose times are not known beforehand."""
        previous, state = held("previous", like, ask, "a result to go on from (the first comes from 'prior')")
        assert isinstance(previous, Tensor)
        ask.state = state
        low, high = self._range(ask)
        sigma = torch.full((len(state),), min(max(self.first, low), high), dtype=torch.float64)
        u = _stir(ask, previous.double(), sigma, 1.0, 0)
        lowest, found = sigma, u
        for j in range(self.moves):
            mean, _ = _look(ask, u, sigma, like)
            u = _stir(ask, u + self.eta / 2 * (mean - u), sigma, self.eta**0.5, j + 1)
            sigma = self._level(ask, u, sigma, like, low, high, j)
            better = (sigma < lowest) | (self.begin == "last")
            lowest, found = torch.where(better, sigma, lowest), torch.where(right(better, u).to(u.device), u, found)
        return _placed(state, ask, found, lowest, like)

    def _range(self, ask: Ask) -> tuple[float, float]:
        """The levels that this part, the process and the grid all have."""
        first = float(points(ask)[..., 0].min())
        ends = _affine(ask).lam(torch.tensor([0.0, first], dtype=torch.float64)).neg().exp().tolist()
        low, high = max(self.sigma_min, ends[0]), min(self.sigma_max, ends[1])
        if low >= high:
            raise EbbError(
                f"start 'chain' has levels from {self.sigma_min:g} to {self.sigma_max:g}, but this grid begins at "
                f"{ends[1]:.3g}: lower sigma_min."
            )
        return low, high

    def _level(self, ask: Ask, u: Tensor, sigma: Tensor, like: Tensor, low: float, high: float, j: int) -> Tensor:
        """The next sigma (B,)."""
        d = u[0].numel()
        if self.rule == "argmax":
            return (_look(ask, u, sigma, like)[1] / d).sqrt().clamp(low, high)
        logs = torch.linspace(math.log(low), math.log(high), self.levels, dtype=torch.float64)
        every = [(s, s.exp().expand(len(u))) for s in logs]
        slope = torch.stack([_look(ask, u, sigma, like)[1] / (2 * s).exp() - d for s, sigma in every], 1)
        rise = ((slope[:, 1:] + slope[:, :-1]) * (logs[1] - logs[0]) / 2).cumsum(1)
        n, noise = len(u), ask.noise
        own = replace(noise, key=noise.key.reshape(n, -1)[:, 0], i=noise.i.reshape(n, -1)[:, 0]).fold(10_000 + j)
        return logs[own.categorical(torch.cat([torch.zeros_like(rise[:, :1]), rise], 1))].exp()


def _affine(ask: Ask) -> Affine:
    """The process, which the plan has checked."""
    assert isinstance(ask.process, Affine)
    return ask.process


def _stir(ask: Ask, u: Tensor, sigma: Tensor, share: float, j: int) -> Tensor:
    """u + share sigma z."""
    return u + share * right(sigma, u).to(u.device) * ask.noise.fold(j).normal(u)


def _time(ask: Ask, sigma: Tensor) -> Tensor:
    """The time of each unit, of the sigma of its element."""
    t: Tensor = _affine(ask).time(-sigma.log())
    return t.reshape(-1, *(1,) * (ask.state.t.ndim - 1)).expand(ask.state.t.shape).clone()


def _look(ask: Ask, u: Tensor, sigma: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The data estimate at (u, sigma), and E|u - x0|^2 of each element, (B,)."""
    t = _time(ask, sigma)
    pred = ask((right(_affine(ask).a(t), u).to(u.device) * u).to(like), t, role="look")
    far = (pred.mean.double() - u) ** 2
    far = far if pred.var is None else far + pred.var.double()
    return pred.mean.double(), unit_mean(far, sigma).cpu() * u[0].numel()


def _placed(state: State, ask: Ask, u: Tensor, sigma: Tensor, like: Tensor) -> State:
    """The state at each element's own time, its grid squeezed to begin there."""
    t, grid = _time(ask, sigma), points(ask)
    n = grid.shape[-1] - 1
    old = grid.reshape(len(grid), -1, n + 1)[:, 0]
    first = t.reshape(len(t), -1)[:, 0].minimum(old[:, 0])
    k = (old > first[:, None]).sum(1).clamp(1, n) - 1  # the step of the grid that passes `first`
    before, after = (old.gather(1, (k + j)[:, None])[:, 0] for j in (0, 1))
    place = k + (before - first) / (before - after)
    walk = place[:, None] + torch.arange(n + 1) / n * (n - place)[:, None]
    whole = walk.floor().clamp(0, n - 1).long()
    left, far = old.gather(1, whole), old.gather(1, whole + 1)
    new = left + (walk - whole) * (far - left)
    new = torch.cat([first[:, None], new[:, 1:-1], old[:, -1:]], 1).reshape(len(grid), *(1,) * (grid.ndim - 2), n + 1)
    t = first.reshape(-1, *(1,) * (t.ndim - 1)).expand(t.shape).clone()
    x = (right(_affine(ask).a(t), u).to(u.device) * u).to(like)
    return replace(state, x=x, t=t).remember("grid", {**state.memory["grid"], "points": new})
