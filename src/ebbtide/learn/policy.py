"""A sampler as a policy: each stochastic step is an action whose log-probability is known.

    x_s ~ N(k_x x_t + k_0 E[x0 | x_t] + k_y y, k_z^2)       the weights of the process's own move from t to s, eta > 0
    log p = mean over numbers of  -((x_s - mean) / k_z)^2 / 2 - log k_z - log(2 pi) / 2

The move keeps the law of x_t for every eta, so steps with noise and without it may be mixed at will. A state is stepped by
one bound plan or by another: both are pure functions of it, and share its grid.

Shapes   x (B, ...), t and s (B,), log p (B,)
Paper    Black et al. 2024, "Training diffusion models with reinforcement learning" (arXiv 2305.13301), section 4.3; mixed
         steps: Li et al. 2025 (2507.21802), section 3
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Loop
from ebbtide.core.state import State
from ebbtide.core.time import combine, nil, right
from ebbtide.core.tree import Tree
from ebbtide.process.affine import Affine


class Law(NamedTuple):
    """Where a step may lead: mean like x, and its standard deviation, (B,) float64."""

    mean: Tensor
    std: Tensor


class Action(NamedTuple):
    """A step that was taken: the state before it, where it led, and its log-probability then, (B,)."""

    state: State
    s: Tensor
    x: Tensor
    log_p: Tensor


def law(process: Affine, x: Tensor, x0: Tensor, t: Tensor, s: Tensor, eta: float, cond: dict[str, Tree]) -> Law:
    """The law of x_s given x_t and a prediction of the data. Raises EbbError where nothing is drawn."""
    w = process.weights(t, s, eta)
    if nil(w.noise):
        raise EbbError("a step that draws nothing has no log-probability: give it eta > 0, and do not let it land.")
    end = [(w.y, process.end(cond))] if process.ended else []
    mean = combine((w.x, x), *end, (1.0, x0 * _as(w.x0, x0)))
    std = w.noise if isinstance(w.noise, Tensor) else torch.full_like(t, w.noise)
    return Law(mean, std)


def _as(w: float | Tensor, x: Tensor) -> float | Tensor:
    return right(w, x).to(x) if isinstance(w, Tensor) else w


def log_prob(x: Tensor, given: Law) -> Tensor:
    """log p of where a step led, averaged over the numbers of an element, (B,)."""
    std = right(given.std, x).to(x)
    each = -(((x - given.mean) / std) ** 2) / 2 - std.log() - math.log(2 * math.pi) / 2
    return each.flatten(1).mean(1)


def said(loop: Loop, state: State, s: Tensor, x: Tensor, eta: float) -> Tensor:
    """The log-probability that the loop's denoiser gives the step from `state` to x at s, (B,), with its gradient."""
    process = loop.process
    if not isinstance(process, Affine) or not isinstance(state.x, Tensor):
        raise EbbError("the log-probability of a step is known for affine processes of one tensor only.")
    pred = loop.ask(state)(state.x, state.t)
    return log_prob(x, law(process, state.x, pred.mean, state.t, s, eta, state.cond))


def walk(
    still: Loop, drawn: Loop, eta: float, state: State, window: Sequence[int], stop: int | None = None
) -> tuple[State, list[Action], int]:
    """A run that draws in the steps of a window only: its end, the actions there, and its network calls.

    still, drawn   the same plan bound with a solver that draws nothing, and with one that draws by `eta`
    window         the steps that draw; a run may `stop` before the end, after so many steps
    """
    actions: list[Action] = []
    calls = 0
    while not still.done(state) and (i := int(state.i.max())) != stop:
        inside = i in window
        step = (drawn if inside else still).step(state)
        calls += step.calls
        if inside:
            with torch.no_grad():
                process = drawn.process
                assert isinstance(process, Affine)
                assert step.pred is not None
                given = law(process, state.x, step.pred.mean, state.t, step.state.t, eta, state.cond)
                actions.append(Action(state, step.state.t, step.state.x, log_prob(step.state.x, given)))
        state = step.state
    return state, actions, calls


def advantages(rewards: Tensor, group: int, most: float = 5.0) -> Tensor:
    """(r - mean) / std within each `group` in a row, (B,), at most `most` either way; 0 where a group is all alike.

    A reward that is not finite has no say: its advantage is 0, and it does not count in its group.
    """
    r = rewards.double().reshape(-1, group)
    known = r.isfinite()
    count = known.sum(1, keepdim=True).clamp_min(1)
    clean = torch.where(known, r, 0.0)
    off = torch.where(known, clean - clean.sum(1, keepdim=True) / count, 0.0)
    std = (off.square().sum(1, keepdim=True) / count).sqrt()
    return torch.where(std > 1e-8, off / std.clamp_min(1e-8), 0.0).clamp(-most, most).flatten()


def surrogate(log_p: Tensor, before: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - clip, 1 + clip) A), the mean over elements; rho = p / p before."""
    rho = (log_p - before).exp()
    a = advantage.to(rho)
    return -torch.minimum(rho * a, rho.clamp(1 - clip, 1 + clip) * a).mean()


def sliding(steps: int, window: int, stride: int, every: int, iteration: int) -> Sequence[int]:
    """The steps of a window that moves on by `stride` every so many iterations, and back to the start after the end."""
    last = max(0, steps - window)
    places = [*range(0, last, stride), last]
    first = places[(iteration // every) % len(places)]
    return range(first, min(first + window, steps))


__all__ = ["Action", "Law", "advantages", "law", "log_prob", "said", "sliding", "surrogate", "walk"]
