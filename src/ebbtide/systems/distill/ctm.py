"""Consistency trajectory models: one network that jumps from any time to any earlier one, and denoises where they meet.

    G(x_t, t -> s) = (s/t) x_t + (1 - s/t) g(x_t, t, s)      in variance-exploding time;   g(x, t, t) = E[x0 | x_t]
    gamma     jump to sqrt(1 - gamma^2) s, add noise of gamma s

Paper    Kim, Lai et al. 2023, "Consistency trajectory models" (arXiv 2310.02279), eq. 7 to 11, algorithm 3; the published
         claim: FID 1.73 on CIFAR-10 in one step, and better with more
Card     on eight Gaussians in the plane with their exact flow as the teacher: jumps against fine ODE solves, two jumps against
         one, the denoiser in it against the exact one, and gamma = 0 against 1; then digits
         in one step by `digits-ctm`, against one Euler step of `digits`. The control solves by `euler`, which does not say
         where it goes, so the network answers as a denoiser
Differs  the teacher's ways are kept beforehand (u = s: full distillation), no adversary, no average network; points and
         digits. That a network without the denoising loss loses its denoiser is not
         seen: kept ways hold steps short enough to teach it (0.95 of the distance to the exact mean, one
         seed), so the card does not ask for it
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.core.plan import Plan
from ebbtide.denoise.model import Model
from ebbtide.learn.trajectory import Trajectories
from ebbtide.measure.metrics import frechet, moments, sliced_w2
from ebbtide.systems import Bench, Card, System
from ebbtide.zoo import reference
from ebbtide.zoo.drawn import Ways
from ebbtide.zoo.plane import PlaneMLP, fine_ways, ring, student

SYSTEM = System(
    id="ctm",
    family="distill",
    title="Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion",
    year=2023,
    claim="FID 1.73 on CIFAR-10 and 1.92 on ImageNet 64 in one step; quality improves with more steps instead of degrading",
    what="One network that jumps from any time to any earlier time along the ODE, and whose jump of no length is the denoiser.",
    paper="2310.02279",
    parts=("solve/jump",),
    presets={
        "ctm": {"solve": "jump", "grid": {"name": "linear", "steps": 1}},
        "ctm-gamma": {"solve": {"name": "jump", "gamma": 0.5}, "grid": {"name": "linear", "steps": 4}},
    },
    differs="distilled from ways kept beforehand, without an adversary; a mixture in the plane, and digits",
)
N, UPDATES, TEST = 4096, 2500, 500_000
JUMPS = Trajectories(drop=0.0, peaked=0.0)


@functools.cache
def trained() -> Model:
    """A student of the ring."""
    return student(PlaneMLP(far=True), JUMPS, fine_ways(ring(), N), UPDATES)


@functools.cache
def truth() -> Ways:
    """Ways of the teacher that no student has seen."""
    return fine_ways(ring(), N, seed=TEST)


def walk(model: Model, plan: Plan, x: Tensor, times: list[float]) -> Tensor:
    """Where the plan's solver takes x along these times."""
    plan = plan.replace(grid={"name": "explicit", "times": times})
    state = replace(ebb.api.begin(model, plan, n=len(x))[1], x=x)
    for step in ebb.resume(model, plan, state):
        state = step.state
    return state.x


def apart(x: Tensor, y: Tensor) -> float:
    """Root mean square distance, relative to the size of y."""
    return float(((x - y).double().square().sum() / y.double().square().sum()).sqrt())


def denoising(model: Model) -> float:
    """E |g(x_t, t, t) - x0|^2 over all times, over that of the exact posterior mean."""
    exact: Any = ring().denoiser
    t = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    x0 = exact.sample(N, seed=70_000).float()
    x = exact.process.corrupt(x0, t, Noise(keys(range(N)), torch.zeros(N, dtype=torch.int64), 3), {})
    with torch.no_grad():
        mine = model.denoiser(x, t, {"until": t}).mean
    return float((mine - x0).square().mean() / (exact(x, t, {}).mean - x0).square().mean())


def far(model: Model, solve: Any, steps: int) -> float:
    """Sliced W2 to the mixture of points made in so many steps."""
    exact: Any = ring().denoiser
    plan = Plan(solve=solve, grid={"name": "linear", "steps": steps})
    x = ebb.sample(model, plan, n=N, seed=TEST).x
    return sliced_w2(x.double(), exact.sample(N, seed=90_000), slices=64)


def digits(name: str, plan: Plan, n: int = 200) -> float:
    """The Frechet distance of digits to real ones, in the features of the classifier."""
    known = reference.load()
    x = ebb.sample(name, plan, cond=[k % 10 for k in range(n)], n=n, seed=7000, batch=100).x
    return frechet(*moments(reference.features(x)), known["test.mean"], known["test.cov"])


def card(bench: Bench) -> Card:
    model, ways, plan = trained(), truth(), bench.plan("ctm")
    points = len(ways.times) - 1
    at = {t: ways.states[:, round(t * points)] for t in (1.0, 0.75, 0.5, 0.25)}
    still = ways.states[:, points // 2]
    half = torch.full((N,), 0.5, dtype=torch.float64)
    said = model.denoiser(still, half, {"until": half})
    moved: Any = ring().process.move(still, said, half, half, 0.0, Noise(keys(range(N)), torch.zeros(N).long()), {})
    bench.check("jump of no length moves by", float((moved - still).abs().max()), at_most=0.0, published="0")
    one = walk(model, plan, at[1.0], [1.0, 0.25])
    two = walk(model, plan, at[1.0], [1.0, 0.5, 0.25])
    bench.check(
        "one jump off the fine ODE, 1 to 0.25, relative", apart(one, at[0.25]), at_most=0.05, published="<= 0.05"
    )
    bench.check("two jumps off one, relative", apart(two, one), at_most=0.05, published="<= 0.05")
    end = walk(model, plan, at[1.0], [1.0, 0.0])
    bench.check("one jump to the data off the fine ODE, relative", apart(end, ways.states[:, 0]), at_most=0.15)
    found = digits("digits-ctm", plan)
    euler = digits("digits", Plan(grid={"name": "linear", "steps": 1}, guide={"name": "cfg", "scale": 1.5}))
    name = "digits in one step, Frechet over one Euler step of the teacher"
    bench.check(name, found / euler, at_most=0.4, published="<= 0.4")
    if bench.control:
        return bench.card()
    bench.check("denoising error over the exact one", denoising(model), at_most=1.1, published="<= 1.1")
    jumps = {k: far(model, "jump", k) for k in (1, 2, 4, 8)}
    fresh = {k: far(model, {"name": "jump", "gamma": 1.0}, k) for k in (1, 2, 4, 8)}
    line = {k: [1 - j / k for j in range(k + 1)] for k in jumps}
    ends = {k: apart(walk(model, plan, at[1.0], line[k]), ways.states[:, 0]) for k in jumps}
    bench.check("off the fine ODE in 2 jumps over that in 1", ends[2] / ends[1], at_most=1.0, published="falls")
    told = [", ".join(f"{v:.3f}" for v in some.values()) for some in (jumps, fresh, ends)]
    return bench.card(
        f"Sliced W2 in 1, 2, 4, 8 steps: gamma 0 {told[0]}; gamma 1 {told[1]}; two exact sets are about 0.08 apart, so "
        f"which falls longer is not told. Off the ODE, gamma 0: {told[2]}. Digits in one step: {found:.1f}, of the "
        f"teacher {euler:.0f}."
    )
