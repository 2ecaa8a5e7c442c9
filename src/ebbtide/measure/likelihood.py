"""Log-likelihood: the density that a model gives to data, by the divergence of its probability flow.

    dx/dt = u(x, t) = a' E[x0 | x] + b' y + c' eps,     log p_0(x_0) = log p_1(x_1) + integral_0^1 div u(x_t, t) dt

The state and the integral go up the times of the plan's grid together, by the classical Runge-Kutta method of order 4.

Shapes   x (B, ...) data, answers (B,) float64 in nats; t shaped like the model's units
Paper    Song et al. 2021, "Score-based generative modeling" (arXiv 2011.13456), section 4.3 and appendix D.2;
         Chen et al. 2018, "Neural ordinary differential equations" (1806.07366), theorem 1
Differs  p_1 is the law that samplers start from, N(b y, c^2): where a(1) is not 0 the error is of the order of a(1).
         Velocities at t = 0, where eps is 0 / 0, are taken where c / a is the cube root of the rounding of x's dtype.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.loop import Loop
from ebbtide.core.plan import Plan
from ebbtide.core.state import State
from ebbtide.core.time import combine, right, shared
from ebbtide.core.tree import Tree
from ebbtide.denoise.jacobian import directions, divergence
from ebbtide.denoise.model import Model, seeds_of
from ebbtide.process.affine import Affine

_SALT = 7

Flow = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def log_likelihood(
    model: Model,
    x: Tensor,
    plan: Plan | None = None,
    *,
    cond: Any = None,
    probes: int | None = None,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """log p(x) of every element, in nats, at the last time of the grid (the data, unless it ends before).

    plan     its process, grid and guides are used (its solver is not); by default 100 even steps in the model's process
    cond     as for `ebb.sample`
    probes   random signs an element for the divergence, unbiased; None: exact, with as many backward passes as an
             element has numbers
    seed     of the probes: element j has seed + j, or a list

    Raises EbbError for a process without a flow, one that starts from a point (a bridge), times that differ between units,
    and where plan, model and condition do not fit.
    """
    conds = model.condition(cond, len(x))
    loop = model.loop(plan or Plan(grid={"name": "linear", "steps": 100}), conds)
    process = loop.process
    if not isinstance(process, Affine):
        raise EbbError("a likelihood by divergence needs an affine process, such as 'flow' or 'vp-linear'.")
    seeds = seeds_of(seed, len(x))
    state = State.blank(x, conds, seeds, model.unit_shape())
    along = directions(x, probes, Noise(keys(seeds), torch.zeros(len(x), dtype=torch.int64), _SALT))
    lowest = math.log(torch.finfo(x.dtype).eps) / 3
    floor = float(process.time(torch.tensor([-lowest], dtype=torch.float64)))

    def flow(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The velocity and its divergence; every evaluation is a question of its own."""
        at = torch.full_like(state.t, max(t, floor))
        ask = loop.ask(replace(state, t=at), "solve")
        velocity = lambda x: process.from_x0("flow", ask(x, at, role="stage").mean, x, at, conds)  # noqa: E731
        return divergence(velocity, x, along)

    times = _times(loop, state)
    first = torch.full_like(state.t, times[0])
    if bool((process.c(first) == 0).any()):
        raise EbbError("this process starts from a point, which has no density: give a grid that begins before t = 1.")
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for t, s in itertools.pairwise(reversed(times)):
        x, gained = _rk4(flow, x, t, s - t)
        total = total + gained
    return total + _log_prior(process, x, first, conds)


def _rk4(flow: Flow, x: Tensor, t: float, h: float) -> tuple[Tensor, Tensor]:
    """x at t + h, and the integral of the divergence on the way."""
    k1, d1 = flow(x, t)
    k2, d2 = flow(x + h / 2 * k1, t + h / 2)
    k3, d3 = flow(x + h / 2 * k2, t + h / 2)
    k4, d4 = flow(x + h * k3, t + h)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)


def _times(loop: Loop, state: State) -> list[float]:
    """The times of the grid, falling. Raises EbbError where units differ in time."""
    memory = loop.grid.init(state, loop.ask(state, "start"))
    times: list[float] = []
    for k in itertools.count():
        t = shared(loop.grid.ahead(state, memory, k))
        if t is None:
            raise EbbError("a likelihood needs one time for all units: give a grid such as 'linear'.")
        if times and t >= times[-1]:
            return times
        times.append(t)
    raise AssertionError("unreachable")


def _log_prior(process: Affine, x: Tensor, t: Tensor, conds: dict[str, Tree]) -> Tensor:
    """log N(x; b y, c^2) at the first time of a run."""
    b, c = process.b(t), process.c(t)
    rest = x if b is None else combine((1.0, x), (-b, process.end(conds)))
    scale = right(c, x).expand(x.shape).to(x.device)
    return -((rest.double() / scale) ** 2 / 2 + scale.log() + math.log(2 * math.pi) / 2).flatten(1).sum(1)
