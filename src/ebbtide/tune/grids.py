"""The best n steps for a model: found on its own trajectories, first by dynamic programming, then by what the end shows.

    1. some trajectories on a fine grid of log-SNR, with Heun: x and x0 at every candidate time
    2. the local error of every step i -> j (after h -> i) of the two-step rule in its data form, u = exp(lam) = a / c:

           e_hij = c_j (int_{u_i}^{u_j} x0 du - (u_j - u_i) (x0_i + (lam_j - lam_i) / (2 (lam_i - lam_h)) (x0_i - x0_h)))

       and of the landing, x0_end - x0_i; all of them are quadratic forms in one Gram matrix of the x0, so none costs a call
    3. the path of n steps with the least sum of |e_hij| g_j, where g_j = s / sqrt(a_j^2 s^2 + c_j^2) is by how much an error
       at t_j is carried to the end for data of spread s
    4. points moved one at a time while the true distance of the ends, run with the plan's own solver, falls

Shapes   works on one tensor of any shape under a Gaussian process; guides, network parts and start are those of the plan.
Paper    Watson et al. 2021, "Learning to efficiently sample from diffusion probabilistic models" (arXiv 2106.03802), for the
         programme; Xue et al. 2024, "Accelerating diffusion sampling with optimized time steps" (2402.17376), for the local
         error of multistep rules; Sabour et al. 2024, "Align your steps" (2404.14507), for moving points by what comes out
Differs  the error of steps is measured on trajectories, where those papers bound it; solvers of other orders than 1 and 2 are
         planned with the two-step rule, and set right by the fourth stage.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.core.state import State
from ebbtide.denoise.model import Model
from ebbtide.process.affine import Affine

_NOISY = -7.0  # half log-SNR below which a step learns nothing
_GROWTH = (
    2.0  # a step this much longer than the one before it extrapolates: what fits these trajectories fits no others
)


def optimise_grid(
    model: Model,
    plan: Plan,
    steps: int,
    *,
    cond: Any = None,
    n: int = 32,
    seed: int | Sequence[int] = 0,
    candidates: int = 80,
    last: float = 1e-3,
    trials: int = 120,
    watch: Callable[[float, float], None] | None = None,
) -> Plan:
    """The plan with the grid of `steps` times, as an `explicit` one, that ends nearest the model's own fine trajectories.

    steps       steps of the grid; a solver of k calls a step makes k times as many calls
    cond, n, seed   the trajectories, as for `sample`: the grid is made for this condition and fits others like it
    candidates  log-SNR points that the programme chooses from
    last        the cleanest time from which the last step may be taken; the noisiest is where the plan begins
    trials      runs of the plan's solver that move points; 0 leaves the grid as the programme found it
    watch       called with the calls of one sample (made, expected in all); the search may end with fewer

    Raises EbbError for a process that is not Gaussian, a solver that draws noise, and too few candidates.
    """
    if steps < 1 or candidates < steps + 2:
        raise EbbError(f"{candidates} candidates are too few for {steps} steps; give at least {max(steps, 1) + 2}.")
    plain = plan.replace(correct=[], steer=None)
    solver = plan.parts("solve")[0]
    if solver.stochastic:
        raise EbbError(
            "ends of runs that draw noise cannot be compared; optimise the grid with eta 0 and take it over."
        )
    loop, state = begin(model, plain, cond, n, seed)
    process, first = loop.process, float(state.t.reshape(-1)[0])
    if not isinstance(process, Affine) or "gaussian" not in process.gives or not isinstance(state.x, Tensor):
        raise EbbError("grids are optimised for one tensor under a Gaussian process; sample this model in another.")

    guided = math.prod(g.calls for g in plan.parts("guide"))
    work = _Work(watch, solver.calls * guided, steps, trials if steps > 1 else 0, 2 * guided * candidates)
    lam = _candidates(process, first, last, candidates)
    times = [first, *process.time(lam[1:]).tolist()]
    x0 = _reference(model, plain, cond, n, seed, times, work)
    if steps == 1:
        return plan.replace(grid={"name": "explicit", "times": [first, 0.0]})

    search = _Search(model, plain, cond, n, seed, steps, process, first, x0[-1], work)
    costs = _Costs(process, torch.tensor(times, dtype=torch.float64), x0, 1 if solver.order == 1 else 2)
    low, high = float(lam[1]), float(lam[-1])
    even = torch.linspace(max(float(lam[0]), _NOISY), high, steps, dtype=torch.float64)
    for chosen in {tuple(costs.best(steps, power)) for power in (1, 2)}:
        search.offer(lam[list(chosen)].tolist())
    search.offer(even.tolist())
    search.refine(low, high)
    work.end()
    return plan.replace(grid={"name": "explicit", "times": [*search.times, 0.0]})


@dataclass
class _Work:
    """The calls of one sample: made, and still to come in the `fine` trajectories and in as many trials as are left.

    each   calls of a step of the plan's solver; a trial runs from the point that was moved, which is half way on average
    """

    watch: Callable[[float, float], None] | None
    each: float
    steps: int
    trials: int
    fine: float
    made: float = 0.0

    def add(self, calls: float) -> None:
        """So many calls were made."""
        self.made, self.fine = self.made + calls, max(0.0, self.fine - calls)
        if self.watch is not None:
            self.watch(self.made, self.made + self.fine + self.trials * self.each * self.steps / 2)

    def end(self) -> None:
        """No more are to come."""
        self.trials, self.fine = 0, 0.0
        self.add(0.0)


def _candidates(process: Affine, first: float, last: float, n: int) -> Tensor:
    """Half log-SNR (n,), rising: that of the first time, then uniform from there (or where signal begins) to the last."""
    ends = process.lam(torch.tensor([first, last], dtype=torch.float64))
    if not float(ends[0]) < float(ends[1]):
        raise EbbError(f"the plan begins at t = {first:g}, not before last = {last:g}; give a smaller `last`.")
    noisy = max(float(ends[0]), _NOISY)
    if float(ends[0]) < noisy:
        return torch.cat([ends[:1], torch.linspace(noisy, float(ends[1]), n - 1, dtype=torch.float64)])
    return torch.linspace(noisy, float(ends[1]), n, dtype=torch.float64)


def _reference(
    model: Model, plan: Plan, cond: Any, n: int, seed: int | Sequence[int], times: list[float], work: _Work
) -> Tensor:
    """The predictions x0 along fine trajectories, and their end: (M + 1, n * numbers) float64."""
    fine = plan.replace(solve={"name": "heun", "space": "data"}, grid={"name": "explicit", "times": [*times, 0.0]})
    loop, state = begin(model, fine, cond, n, seed)
    rows = []
    for step in loop.run(state):
        assert step.pred is not None
        rows.append(step.pred.mean.double().cpu().reshape(-1))
        state = step.state
        work.add(step.calls / n)
    return torch.stack([*rows, state.x.double().cpu().reshape(-1)])


class _Costs:
    """The local errors of all steps between candidates, carried to the end: sums of squares over all trajectories."""

    def __init__(self, process: Affine, t: Tensor, x0: Tensor, order: int) -> None:
        m = len(t)
        lam, a, c = process.lam(t), process.a(t), process.c(t)
        u = lam.exp()
        end = x0[-1]
        spread = (x0[-1] - x0[-1].mean()).square().mean().clamp_min(1e-12)
        away = x0[:-1] - end
        gram = away @ away.T
        # int x0 du from the first candidate to each, by trapezoids: rows of weights on the candidates' x0
        half = torch.zeros(m, m, dtype=torch.float64)
        for k in range(1, m):
            half[k] = half[k - 1]
            half[k, k - 1 : k + 1] += (u[k] - u[k - 1]) / 2
        one = torch.eye(m, dtype=torch.float64)
        carry = c * (spread / (a**2 * spread + c**2)).sqrt()
        self.m = m
        self.land = gram.diagonal().clamp_min(0).sqrt()
        self.cost = torch.full((m, m, m), torch.inf, dtype=torch.float64)  # h, i, j; h = i where there is no history
        for i in range(m):
            later = slice(i + 1, m)
            miss = half[later] - half[i] - (u[later, None] - u[i]) * one[i]  # (J, M)
            scale = (u[later] - u[i]) * (lam[later] - lam[i])
            slopes = torch.zeros(i + 1, m, dtype=torch.float64)
            if order == 2 and i > 0:
                slopes[:i] = (one[i] - one[:i]) / (2 * (lam[i] - lam[:i]))[:, None]
            aa = ((miss @ gram) * miss).sum(1)
            ab = miss @ gram @ slopes.T
            bb = ((slopes @ gram) * slopes).sum(1)
            wild = (lam[later, None] - lam[i]) > _GROWTH * (lam[i] - lam[: i + 1])  # (J, H)
            wild[:, i] = False
            error = aa[:, None] - 2 * scale[:, None] * ab + scale[:, None] ** 2 * bb  # (J, H)
            cost = error.clamp_min(0).sqrt() * carry[later, None]
            self.cost[: i + 1, i, later] = torch.where(wild, torch.inf, cost).T

    def best(self, steps: int, power: int) -> list[int]:
        """The candidates of the path of `steps` steps, the landing among them, with the least sum of errors^power."""
        cost, land = self.cost**power, self.land**power
        total = torch.full((self.m, self.m), torch.inf, dtype=torch.float64)  # h, i
        total[0, 0] = 0.0
        before = []
        for _ in range(steps - 1):
            total, came = (total[:, :, None] + cost).min(0)  # i, j
            before.append(came)
        last = total + land
        i, j = divmod(int(last.argmin()), self.m)
        path = [j]
        for came in reversed(before):
            path.append(i)
            i, j = int(came[i, j]), i
        return path[::-1]


@dataclass
class _Search:
    """The best grid so far, with the states along its run, so that a trial starts where it departs."""

    model: Model
    plan: Plan
    cond: Any
    n: int
    seed: int | Sequence[int]
    steps: int
    process: Affine
    first: float
    end: Tensor
    work: _Work
    error: float = float("inf")
    times: list[float] = field(default_factory=list)
    lam: list[float] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    def __post_init__(self) -> None:
        even = [self.first * (1 - k / self.steps) for k in range(self.steps + 1)]
        plan = self.plan.replace(grid={"name": "explicit", "times": even})
        self.loop, self.start = begin(self.model, plan, self.cond, self.n, self.seed)

    def offer(self, lam: list[float], at: int = 0) -> bool:
        """Run a grid, the same as the best one before its point `at`, and keep it if its ends are nearer."""
        times = [self.first, *self.process.time(torch.tensor(lam[1:], dtype=torch.float64)).tolist()]
        gaps = [b - a for a, b in itertools.pairwise(lam)]
        falling = all(b < a for a, b in itertools.pairwise([*times, 0.0]))
        if not falling or any(b > _GROWTH * a for a, b in itertools.pairwise(gaps)):
            return False
        states = self.states[: max(at, 1)] or [self.start]
        points = torch.tensor([*times, 0.0], dtype=torch.float64)
        state = states[-1]
        shape = state.memory["grid"]["points"].shape
        state = state.remember("grid", {"points": points.expand(shape).clone()})
        calls = 0
        for step in self.loop.run(state):
            state, calls = step.state, calls + step.calls
            states = [*states, state]
        self.work.add(calls / self.n)
        away = (state.x.double().cpu().reshape(-1) - self.end).reshape(self.n, -1)
        error = float(away.square().mean(1).sqrt().mean())
        if not error < self.error:
            return False
        self.error, self.times, self.lam, self.states = error, times, lam, states
        return True

    def refine(self, low: float, high: float) -> None:
        """Move points one at a time by a share of the gap to their neighbour, smaller shares when none helps."""
        share = 0.4
        while share > 0.02 and self.work.trials > 0:
            better = False
            for k in range(1, self.steps):
                for side in (-1, 1):
                    if self.work.trials <= 0:
                        return
                    lam = list(self.lam)
                    below = max(lam[k - 1], low - 1.0)
                    above = lam[k + 1] if k + 1 < self.steps else high + 1.0
                    lam[k] += share * ((above - lam[k]) if side > 0 else (below - lam[k]))
                    self.work.trials -= 1
                    if self.offer(lam, k):
                        better = True
                        break
            share *= 1.0 if better else 0.5
