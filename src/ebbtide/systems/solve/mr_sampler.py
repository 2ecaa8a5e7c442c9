"""MR Sampler: exponential multistep solvers for diffusion that reverts to a degraded picture mu.

    x_t = a x0 + (1 - a) mu + c eps,  c = sigma sqrt(1 - a^2),  h = lam_i - lam_(i-1),  r = h_(i-1) / h
    data    x_i = c_i/c x - a_i ((e^-h - 1) x0 - ((e^-h - 1) / h + 1) D) + mu (1 - c_i/c + c_i/c a - a_i),   D = (x0 - x0')/r
    noise   x_i = a_i/a x - c_i ((e^h - 1) eps + ((e^h - 1) / h - 1) D) + mu (1 - a_i/a),                    D = (eps - eps')/r

With x - mu for x they are the solvers of the centred process, so `eab` with two terms, in a process with an end.

Paper    Li et al. 2025 (arXiv 2502.07856), section 3
Card     signals of 8 values, a mixture of six Gaussians; mu is their blur with a little noise, and E[x0 | x_t, mu] is exact.
         Ends are compared with those of a fine run from the same noise: of the flow for MRS, of the reverse SDE along the
         same Brownian path for Euler-Maruyama. The order is that at t = 0.1. The control has one term
Differs  of the row: its UNet on rain-streak digits waits for trained restorers. The order at the data is in the note: the last
         steps even in time are long in log-SNR however many there are
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.key import Noise, keys
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree
from ebbtide.process.affine import Affine
from ebbtide.process.mean_reverting import MeanReverting
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="mr-sampler",
    family="solve",
    title="MRS: A Fast Sampler for Mean Reverting Diffusion based on ODE and SDE Solvers",
    year=2025,
    claim="10 to 20 times fewer evaluations across ten restoration tasks at high quality",
    what="Exponential multistep solvers for diffusion that reverts to a degraded image: linear and mu terms in closed form.",
    paper="2502.07856",
    parts=("solve/eab",),
    presets={
        "mr-sampler": {
            "solve": {"name": "eab", "terms": 2},
            "grid": {"name": "linear", "steps": 10},
        },
        "mr-sampler-noise": {
            "solve": {"name": "eab", "terms": 2, "space": "noise"},
            "grid": {"name": "linear", "steps": 10},
        },
    },
    differs="an exact model of blurred signals; no network of rain-streak digits yet",
)

D, MODES, N = 8, 6, 100
WIDTH, NOISE = 0.3, 0.05
LADDER, FINE, EULER = (20, 40, 80), 320, 100
SOLVERS: tuple[dict[str, Any], ...] = (
    {"name": "dpmpp-2m", "order": 1},
    {"name": "dpmpp-2m", "order": 2},
    {"name": "dpmpp-3m", "order": 3},
    *({"name": "eab", "terms": k, "space": space} for k in (1, 2, 3) for space in ("data", "noise")),
    *({"name": "dpm-solver", "order": k, "space": space} for k in (2, 3) for space in ("data", "noise")),
    {"name": "dpmpp-2m-sde"},
    {"name": "dpmpp-3m-sde"},
)


def normal(seed: int, *shape: int) -> Tensor:
    """Draws of N(0, 1)."""
    return Noise(keys([seed]), torch.zeros(1, dtype=torch.int64)).normal(torch.zeros(1, *shape).double())[0]


class Blurred(Denoiser):
    """E[x0 | x_t, y] for x0 ~ mean of N(m_k, WIDTH^2) and y = B x0 + NOISE z, B the mean of three neighbours.

    Given y, x0 is a mixture again: of one covariance P = (1 / WIDTH^2 + B^2 / NOISE^2)^-1, means P (m_k / WIDTH^2 + B y /
    NOISE^2) and weights N(y; B m_k, WIDTH^2 B^2 + NOISE^2), all diagonal in the axes of B.
    """

    def __init__(self, process: MeanReverting) -> None:
        self.process: MeanReverting = process
        eye = torch.eye(D, dtype=torch.float64)
        self.gain, self.axes = torch.linalg.eigh((eye + eye.roll(1, 0) + eye.roll(-1, 0)) / 3)
        self.means = normal(1, MODES, D)
        self.left = 1 / (1 / WIDTH**2 + (self.gain / NOISE) ** 2)

    def pairs(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Exact data and their y, both (n, D)."""
        z = normal(seed, 2, n, D)
        x = self.means[torch.arange(n) % MODES] + WIDTH * z[0]
        return x, x @ self.axes * self.gain @ self.axes.T + NOISE * z[1]

    def __call__(self, x: Tree, t: Tensor, cond: Mapping[str, Tree]) -> Pred:
        a, b, c = (f(t)[:, None, None] for f in (self.process.a, self.process.b, self.process.c))
        x, y, means = ((v @ self.axes) for v in (x[:, None], cond["y"][:, None], self.means))
        told = self.left * (means / WIDTH**2 + self.gain * y / NOISE**2)
        blur, seen, rest = (WIDTH * self.gain) ** 2 + NOISE**2, a**2 * self.left + c**2, x - b * y - a * told
        g = (-((y - self.gain * means) ** 2 / blur + rest**2 / seen).sum(-1) / 2).softmax(1)
        return Pred(mean=(g[..., None] * (told + a * self.left / seen * rest)).sum(1) @ self.axes.T)


class Centre(Affine):
    """The process of x - y."""

    def __init__(self, of: MeanReverting) -> None:
        self.a, self.c = of.a, of.c  # type: ignore[method-assign]


class Centred(Denoiser):
    """The model of x - y: add y, ask, take y away."""

    def __init__(self, of: Blurred) -> None:
        self.of, self.process = of, Centre(of.process)

    def __call__(self, x: Tree, t: Tensor, cond: Mapping[str, Tree]) -> Pred:
        return Pred(mean=self.of(x + cond["y"], t, cond).mean - cond["y"])


class World:
    """The model, its centred form, and mu of N signals."""

    def __init__(self) -> None:
        self.g = Blurred(MeanReverting())
        like = torch.zeros(D, dtype=torch.float64)
        self.model, self.centred = ebb.load(self.g, like=like), ebb.load(Centred(self.g), like=like)
        self.y = self.g.pairs(N, 5)[1]

    def run(self, solve: Mapping[str, Any], steps: int, centred: bool = False) -> list[Tensor]:
        """x after every step."""
        plan = ebb.Plan(solve=solve, grid={"name": "linear", "steps": steps})
        trace: list[Tensor] = ebb.sample(
            self.centred if centred else self.model, plan, cond={"y": self.y}, n=N, trace=True
        ).trace
        return trace

    def start(self) -> Tensor:
        """Where all runs begin."""
        x: Tensor = begin(self.model, ebb.Plan(), cond={"y": self.y}, n=N)[1].x
        return x

    def said(self, kind: str, x: Tensor, t: float) -> Tensor:
        """What the model says at (x, t), as x0, eps or score."""
        at = torch.full((N,), t, dtype=torch.float64)
        return self.g.process.from_x0(kind, self.g(x, at, {"y": self.y}).mean, x, at, {"y": self.y})

    def published(self, space: str, terms: int, steps: int) -> Tensor:
        """The rules of the head, with as many terms, to the last time before the data."""
        p, x, last, before = self.g.process, self.start(), None, 0.0
        for k in range(steps - 1):
            t, s = (torch.tensor([1 - j / steps], dtype=torch.float64) for j in (k, k + 1))
            a, c, a_s, c_s, h = (float(v) for v in (p.a(t), p.c(t), p.a(s), p.c(s), p.lam(s) - p.lam(t)))
            f = self.said("x0" if space == "data" else "eps", x, float(t))
            d = 0 * f if last is None or terms == 1 else (f - last) * (h / before)
            if space == "data":
                e = math.expm1(-h)
                x = c_s / c * x - a_s * (e * f - (e / h + 1) * d) + self.y * (1 - c_s / c + c_s / c * a - a_s)
            else:
                e = math.expm1(h)
                x = a_s / a * x - c_s * (e * f + (e / h - 1) * d) + self.y * (1 - a_s / a)
            last, before = f, h
        return x

    def maruyama(self, steps: int, z: Tensor) -> Tensor:
        """Euler-Maruyama on the reverse SDE; z (fine steps, N, D) are the increments of one Brownian path, summed up."""
        p, x, w = self.g.process, self.start(), z.unflatten(0, (steps, -1)).sum(1) / math.sqrt(len(z))
        for k in range(steps):
            t = torch.tensor([1 - k / steps], dtype=torch.float64)
            rate = float(-p.rates(t)[0] / p.a(t))
            drift = rate * (self.y - x) - 2 * p.sigma**2 * rate * self.said("score", x, float(t))
            x = x - drift / steps + p.sigma * math.sqrt(2 * rate) * w[k]
        return x


@functools.cache
def limits() -> tuple[World, list[Tensor], Tensor, float]:
    """The world, a fine run of the flow, the limit in noise prediction, and the error of Euler-Maruyama at 100 steps."""
    world = World()
    flow, noise = (
        world.run({"name": "eab", "terms": 3, "space": v, "corrector": True}, FINE) for v in ("data", "noise")
    )
    z = normal(9, 8 * EULER, N, D)
    half, whole = world.maruyama(4 * EULER, z), world.maruyama(8 * EULER, z)
    return world, flow, noise[-1], gap(world.maruyama(EULER, z), 2 * whole - half)  # of strong order 1, so extrapolated


def gap(a: Tensor, b: Tensor) -> float:
    """Root mean square."""
    return float((a - b).square().mean().sqrt())


def card(bench: Bench) -> Card:
    """The centred form, the formulas, orders, Euler-Maruyama, and both predictions."""
    world, flow, other, euler = limits()
    centred = max(gap(world.run(v, 10)[-1], world.run(v, 10, True)[-1] + world.y) for v in SOLVERS)
    bench.check("mu form against the centred process, all solvers", centred, at_most=1e-6)
    tenth = lambda runs: [gap(x[len(x) * 9 // 10 - 1], flow[FINE * 9 // 10 - 1]) for x in runs]  # noqa: E731
    orders, ten = {}, {}
    for preset, space in (("mr-sampler", "data"), ("mr-sampler-noise", "noise")):
        solve = bench.plan(preset).solve
        few, runs = world.run(solve, 10), [world.run(solve, n) for n in LADDER]
        bench.check(
            f"{space}: against the formula of order 2", gap(few[-2], world.published(space, 2, 10)), at_most=1e-6
        )
        bench.check(f"{space}: order", slope(tenth(runs)), at_least=1.8)
        orders[space], ten[space] = slope([gap(x[-1], flow[-1]) for x in runs]), gap(few[-1], flow[-1]) / euler
    bench.check("error of 10 calls over that of 100 steps of Euler-Maruyama", ten["data"], at_most=1.0)
    one = slope(tenth([world.run({"name": "euler"}, n) for n in LADDER]))
    bench.check("order of one term off 1", abs(one - 1), at_most=0.2)
    bench.check("limits of both predictions apart", gap(flow[-1], other), at_most=1e-5)
    midpoint = gap(world.run({"name": "dpmpp-2m"}, 10)[-1], flow[-1]) / euler
    return bench.card(
        f"At the data the slopes are {orders['data']:.2f} (data) and {orders['noise']:.2f} (noise). Of the error of 100 "
        f"steps of Euler-Maruyama, 10 calls have {ten['data']:.2f} with data prediction, {midpoint:.2f} with the midpoint "
        f"weights of DPM-Solver++(2M), and {ten['noise']:.2f} with noise prediction, for which the row's claim does not show."
    )


def slope(errors: Sequence[float]) -> float:
    """Minus the slope of log error over log steps."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (LADDER, errors))
    x = x - x.mean()
    return -float((x * y).sum() / (x * x).sum())
