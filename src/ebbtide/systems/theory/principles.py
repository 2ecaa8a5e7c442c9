"""The Principles of Diffusion Models: variational, score and flow views of one velocity field, held against each other.

A process is a choice of a and c in x_t = a x0 + c eps; whatever the choice, all that is said of it must agree:

    predictions   eps = (x - a x0) / c,   score = -eps / c,   u = a' x0 + c' eps     linear in one another, given x
    score         s = grad log p_t                                                  from the posterior mean
    flow          dp/dt + div(p u) = 0,   log p_0 = log p_1 + integral of div u     along dx/dt = u
    noise         every eta has the marginals p_t                                   ODE, SDE and all between
    flow map      P_{s->r} P_{t->s} = P_{t->r},   dP_{t->s}/ds = u at s = t         what a solver computes
    variational   sum_k KL(q(x_s | x_t, x0) || p(x_s | x_t)) + ends  ->  -E log p   as the steps shrink

Paper    Lai, Song, Kim, Mitsufuji, Ermon 2025, "The principles of diffusion models" (arXiv 2510.21890); the book proves,
         it measures nothing
Card     on an exact mixture of five Gaussians in the plane, under vp-linear, ve, vp-cosine and flow: the worst of them.
         The control flips the sign of c' in flow
Differs  Starts are matched at c / a = 20, which all four reach, and ends compared as x / a at c / a = 0.02: a Heun step is
         one and the same map in every process, so steps are even in each one's own t, where agreement says something.
         The likelihood is that of flow, as a(1) = 0 there: where N(0, c^2) is not p_1 it is off by the order of a(1)
         (0.009 nats for vp-linear, where 1e-4 is asked). Path, score, slope and bound are checks added to those asked for
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.key import Noise, keys
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.jacobian import directions, divergence
from ebbtide.denoise.model import Model, process
from ebbtide.measure.likelihood import log_likelihood
from ebbtide.measure.metrics import energy_test
from ebbtide.process.affine import KINDS, Affine
from ebbtide.process.flow import Flow
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="principles",
    family="theory",
    title="The Principles of Diffusion Models",
    year=2025,
    claim="Variational, score and flow views share one time-dependent velocity field whose flow transports prior to data; "
    "guidance, solvers and flow maps follow",
    what="The laws that tie parametrisations, processes and samplers together, each held to a number on an exact mixture.",
    paper="2510.21890",
    differs="likelihood is held to its closed form where the process ends in pure noise",
)


class FlippedRate(Flow):
    """The planted fault: c' with the wrong sign, noise that is said to shrink where it grows."""

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        da, dc, db = super().rates(t)
        return da, -dc, db


def mixture(p: Affine) -> GaussianMixture:
    """Five Gaussians of unequal weight on a circle."""
    angle = torch.arange(5, dtype=torch.float64) * 2 * math.pi / 5
    return GaussianMixture(p, [1, 2, 3, 2, 1], 2 * torch.stack([angle.cos(), angle.sin()], 1), 0.25)


def model(g: GaussianMixture) -> Model:
    """What users hold."""
    return ebb.load(g, like=torch.zeros(2, dtype=torch.float64))


def draw(g: GaussianMixture, n: int) -> tuple[Tensor, Tensor, Noise]:
    """Exact data (n, 2), times all over (0.02, 1) and the noise of each."""
    t = 1 - 0.98 * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return g.sample(n), t, Noise(keys(range(n)), torch.zeros(n, dtype=torch.int64), 1)


def off(found: Tensor, true: Tensor) -> float:
    """The largest difference, relative to what is larger than 1."""
    return float(((found - true).abs() / true.abs().clamp_min(1)).max())


def pointwise(g: GaussianMixture) -> list[float]:
    """Round trips of predictions, velocity of a pair (x0, eps), score, and the residual of the continuity equation."""
    p, (x0, t, noise) = g.process, draw(g, 256)
    x, slope = torch.autograd.functional.jvp(lambda t: p.corrupt(x0, t, noise, {}), t, torch.ones_like(t))
    trips = []
    for one, other in itertools.permutations(KINDS, 2):
        f = p.from_x0(one, x0, x, t, {})
        there = p.from_x0(other, p.to_x0(one, f, x, t, {}), x, t, {})
        trips.append(off(p.from_x0(one, p.to_x0(other, there, x, t, {}), x, t, {}), f))
    here, now = x.clone().requires_grad_(), t.clone().requires_grad_()
    log_p = g.log_prob(here, now)
    rate, rise = (v.detach() for v in torch.autograd.grad(log_p.sum(), (now, here)))
    u, div = divergence(lambda x: p.from_x0("flow", g(x, t, {}).mean, x, t, {}), x, directions(x))
    residual = log_p.exp().detach() * (rate + div + (u * rise).sum(1))
    score = p.from_x0("score", g(x, t, {}).mean, x, t, {})
    return [max(trips), off(p.from_x0("flow", x0, x, t, {}), slope), off(score, rise), float(residual.abs().max())]


def flow_map(g: GaussianMixture, x: Tensor, t: float, s: float, steps: int, solve: str = "heun") -> Tensor:
    """P_{t->s}(x), in steps that are even in t."""
    times = torch.linspace(t, s, steps + 1, dtype=torch.float64).tolist()
    plan = ebb.Plan(solve=solve, grid={"name": "explicit", "times": times})
    state = replace(begin(model(g), plan, n=len(x))[1], x=x)
    for step in ebb.resume(model(g), plan, state):
        state = step.state
    return state.x


def fine_map(g: GaussianMixture, x: Tensor, t: float, s: float) -> Tensor:
    """P_{t->s}(x) from 200 and 400 steps of order 2, extrapolated."""
    return (4 * flow_map(g, x, t, s, 400) - flow_map(g, x, t, s, 200)) / 3


def endpoint(g: GaussianMixture) -> Tensor:
    """x / a where 64 starts end that are the same in every process, as x / a."""
    t = g.process.time(-torch.tensor([20.0, 0.02], dtype=torch.float64).log())
    a, z = g.process.a(t), draw(g, 64)[2].normal(torch.zeros(64, 2, dtype=torch.float64))
    return fine_map(g, 20 * a[0] * z, *t.tolist()) / a[1]


def flow_map_laws(g: GaussianMixture) -> list[float]:
    """Observed orders of Euler and Heun, and the errors of both laws of flow maps, between t = 0.8 and 0.1."""
    (x0, t, noise), h = draw(g, 64), 1e-4
    t = torch.full_like(t, 0.8)
    x = g.process.corrupt(x0, t, noise, {})
    fine = fine_map(g, x, 0.8, 0.1)
    miss = lambda solve, n: math.log2(float((flow_map(g, x, 0.8, 0.1, n, solve) - fine).norm()))  # noqa: E731
    pieces = fine_map(g, fine_map(g, x, 0.8, 0.4), 0.4, 0.1)
    half, whole = (flow_map(g, x, 0.8, 0.8 - k, 1) - x for k in (h / 2, h))
    slope = (whole - 4 * half) / h  # one-sided, of order 2
    u = g.process.from_x0("flow", g(x, t, {}).mean, x, t, {})
    return [*((miss(s, 40) - miss(s, 160)) / 2 for s in ("euler", "heun")), off(pieces, fine), off(slope, u)]


def likelihood(g: GaussianMixture) -> float:
    """log p by the divergence integral against the closed form, at the worst of 64 points."""
    x = g.sample(64, seed=20_000)
    return float((log_likelihood(model(g), x) - g.log_prob(x, torch.zeros(64, dtype=torch.float64))).abs().max())


def bound_gap(g: GaussianMixture) -> float:
    """The bound of a chain of 256 posteriors less -E log p; each KL weighs the mean of the errors at its two ends."""
    p, (x0, t, noise) = g.process, draw(g, 2048)
    times = p.time(torch.linspace(-3.5, 5, 257, dtype=torch.float64))
    chain = p.weights(times[:-1], times[1:], eta=1.0)
    spread = [g(p.corrupt(x0, s, noise.fold(k), {}), s, {}).var for k, s in enumerate(times[:, None] + 0 * t)]
    error, sigma = torch.stack(spread).sum(2).mean(1), (-p.lam(times)).exp()
    steps = ((chain.x0 / chain.noise) ** 2 / 2 * (error[1:] + error[:-1]) / 2).sum()
    ends = x0.square().sum(1).mean() / sigma[0] ** 2 / 2 + (2 * math.pi * math.e * sigma[-1] ** 2).log()
    return abs(float(steps + ends + g.log_prob(x0, 0 * t).mean()))


def laws(bench: Bench, worlds: Mapping[str, GaussianMixture]) -> Card:
    """All laws on mixtures by the name of their process, "flow" among them."""
    each, flow = worlds.values(), worlds["flow"]
    trips, path, score, residual = (max(v) for v in zip(*map(pointwise, each), strict=True))
    bench.check("round trips of x0, eps, v, score, velocity", trips, at_most=1e-10)
    bench.check("velocity against the slope of the path", path, at_most=1e-10)
    bench.check("score against grad log p", score, at_most=1e-10)
    bench.check("residual of the continuity equation", residual, at_most=1e-6)
    ends = torch.stack([endpoint(g) for g in each])
    bench.check("endpoints under all processes", (ends.amax(0) - ends.amin(0)).max(), at_most=1e-5)
    for eta in (0.0, 0.5, 1.0):
        plan = ebb.Plan(solve={"name": "euler", "eta": eta}, grid={"name": "log-snr", "steps": 200})
        drawn, exact = ebb.sample(model(flow), plan, n=1500).x, flow.sample(1500, seed=10_000)
        bench.check(f"energy test at eta {eta:g}, p", energy_test(drawn, exact, draws=199).p, at_least=0.01)
    bench.check("log-likelihood by divergence, nats", likelihood(flow), at_most=1e-4)
    euler, heun, pieces, slope = flow_map_laws(flow)
    bench.check("order of Euler", euler, at_least=0.9, at_most=1.1, published="1")
    bench.check("order of Heun", heun, at_least=1.8, at_most=2.2, published="2")
    bench.check("flow map in two pieces", pieces, at_most=1e-5)
    bench.check("flow map's slope against the velocity", slope, at_most=1e-6)
    bench.check("variational bound less entropy, nats", max(map(bound_gap, each)), at_most=0.05)
    return bench.card()


def card(bench: Bench) -> Card:
    """The laws, with a fault planted in flow in the control run."""
    names = ("vp-linear", "ve", "vp-cosine")
    sound = {name: mixture(process(name)) for name in names}  # type: ignore[arg-type]
    return laws(bench, {**sound, "flow": mixture(bench.fault(Flow(), FlippedRate()))})
