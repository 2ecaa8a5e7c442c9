"""Reward-directed sampling: optimise a reward by drawing designs given a high one; and what a sampler's error is made of.

    data x0 near a hidden plane, few rewards:   ridge f(x), pseudo-labels y = f(x) + noise for all x, then x0 | y = a
    E[x0 | x_t, y] = m + G(x_t - a_t m),  m = g (y - mean y) / var y + mean x,  G of Cov x - g g^T / var y,  g = Cov(x, y)
    grad log p_t(x | y) = grad log p_t(x) + grad log p_t(y | x)

Gradient ascent on f leaves the data where f is wrong, conditional draws do not: f only says which of the data are wanted. What
the sampler itself gets wrong is a sum of three, each with a law of its own:

    start     N(0, c^2) in place of p_T                       ~ a(T)      = e^-T in the time of the diffusion
    steps     Euler's, of length h                            ~ h
    score     noise predictions off by d in L2                ~ d

Paper    Chen, Mei, Fan, Wang 2024, "An overview of diffusion models: applications, guided generation, statistical rates and
         optimization" (arXiv 2404.07771), sections 4 and 5; reward-directed: Yuan et al. 2023 (2307.07055), algorithm 1
Card     8 dimensions in 64, 256 noisy rewards, 8192 designs. A closed-form denoiser fitted to the pairs, and a small
         network. The control shuffles the pseudo-labels.
Differs  the data are 0.05 off their plane in every direction: exactly on it, ridge has no part across it and ascent from the
         data has nowhere to leave to. Ascent starts from the data, not from noise, where it would be worse. The linear
         denoiser stays with the data at every target, so growth beyond their range is that of the network.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.key import Noise, keys
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.time import right
from ebbtide.core.tree import Tree
from ebbtide.denoise.exact import Gaussian, GaussianMixture
from ebbtide.denoise.model import Model
from ebbtide.process.affine import Affine
from ebbtide.process.gaussian import VPLinear
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="overview-optimization",
    family="theory",
    title="An Overview of Diffusion Models: Applications, Guided Generation, Statistical Rates and Optimization",
    year=2024,
    paper="2404.07771",
    claim="Exposition: conditional diffusion as a sampler for high-dimensional structured optimisation, with statistical "
    "and sampling rates",
    what="Designs drawn given a high reward, and a sampler's error split into start, steps and score.",
    differs="data lie near their plane, not on it",
)

PROCESS, LONG = VPLinear(), VPLinear(beta_max=40.0)  # a(1) = e^-5 and e^-10
AMBIENT, LATENT, LABELLED, DESIGNS, OFF, DOUBT = 64, 8, 256, 8192, 0.05, 0.1
TARGETS = (0.0, 1.0, 2.0)
FAR = 6.0


def draws(salt: int, *shape: int) -> Tensor:
    """Standard normals, float64."""
    stream = Noise(keys([17]), torch.zeros(1, dtype=torch.int64), salt)
    return stream.normal(torch.zeros(1, *shape, dtype=torch.float64))[0]


class Task(NamedTuple):
    """Designs x (N, D), the plane's axes (D, d), the true reward's direction (D,) and the ridge fit of it (D,)."""

    x: Tensor
    axes: Tensor
    true: Tensor
    ridge: Tensor

    def reward(self, x: Tensor) -> float:
        """The mean true reward."""
        return float((x @ self.true).mean())

    def off_support(self, x: Tensor) -> float:
        """The share of |x|^2 across the plane."""
        return float(1 - (x @ self.axes).square().sum() / x.square().sum())

    def labels(self) -> Tensor:
        """Pseudo-labels of all designs, (N,)."""
        return self.x @ self.ridge + DOUBT * draws(5, len(self.x))


@functools.cache
def task() -> Task:
    """Designs near a random plane, a linear reward of variance 1, and its ridge fit to few noisy rewards."""
    axes = torch.linalg.qr(draws(1, AMBIENT, LATENT)).Q
    x = draws(2, DESIGNS, LATENT) @ axes.T + OFF * draws(3, DESIGNS, AMBIENT)
    true = axes.sum(1) / LATENT**0.5
    few = x[:LABELLED]
    said = few @ true + 0.5 * draws(4, LABELLED)
    ridge = torch.linalg.solve(few.T @ few + torch.eye(AMBIENT, dtype=torch.float64), few.T @ said)
    return Task(x, axes, true, ridge)


class LinearDesigns(Denoiser):
    """The closed form: (x0, y) jointly Gaussian with the moments of given pairs; `reward` NaN means any.

    `slope` says the same by another road: the unconditional score plus strength x grad log p_t(y | x).
    """

    process: Affine

    def __init__(self, process: Affine, x: Tensor, y: Tensor) -> None:
        self.process = process
        both = torch.cat([x, y[:, None]], 1)
        cov, mean = both.T.cov(), both.mean(0)
        self.mean, self.middle, self.var = mean[:-1], mean[-1], cov[-1, -1]
        self.cov, self.tie = cov[:-1, :-1], cov[:-1, -1]
        zero = torch.zeros_like(self.mean)
        self.free = Gaussian(process, zero, self.cov)
        self.given = Gaussian(process, zero, self.cov - torch.outer(self.tie, self.tie) / self.var)

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.full_like(leaf, math.nan) if name == "reward" else None

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        target = cond["reward"]
        any_ = target.isnan()
        shift = ((target - self.middle) / self.var).nan_to_num()[:, None] * self.tie
        here = self.mean + shift.to(self.mean)
        rest = x - right(self.process.a(t), x) * here
        mean = torch.where(any_[:, None], self.free(rest, t, {}).mean, self.given(rest, t, {}).mean)
        return Pred(mean=here + mean)

    def slope(self, x: Tensor, t: Tensor, target: Tensor, strength: float = 1.0) -> Tensor:
        """grad log p_t(x) + strength grad log p_t(y = target | x) by automatic differentiation, (R, D)."""
        here = x.detach().requires_grad_()
        rest = here - right(self.process.a(t), x) * self.mean
        (free,) = torch.autograd.grad(self.free.log_prob(rest, t).sum(), here, retain_graph=True)
        a, c = right(self.process.a(t), x), right(self.process.c(t), x)
        noised = a[..., None] ** 2 * self.cov + c[..., None] ** 2 * torch.eye(AMBIENT, dtype=torch.float64)
        pull = a * torch.linalg.solve(noised, self.tie.expand(len(x), -1))  # Cov(x_t)^-1 Cov(x_t, y)
        var = self.var - a[:, 0] * (pull * self.tie).sum(1)
        log = -((target - self.middle - (pull * rest).sum(1)) ** 2) / (2 * var)
        (classifier,) = torch.autograd.grad(log.sum(), here)
        return free + strength * classifier


class DesignNet(nn.Module):
    """x0 = MLP(x, clock, y), for x at any noise."""

    def __init__(self, noise: Noise, width: int = 128) -> None:
        super().__init__()
        sizes = (AMBIENT + 3, width, width, AMBIENT)
        layers: list[nn.Module] = []
        for k, (i, o) in enumerate(itertools.pairwise(sizes)):
            linear = nn.Linear(i, o)
            linear.weight.data = noise.normal(torch.zeros(1, o, i), k)[0] / i**0.5
            linear.bias.data.zero_()
            layers += [linear, nn.SiLU()]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, clock: Tensor, reward: Tensor) -> Tensor:
        seen = torch.stack([2 * clock - 1, PROCESS.a(clock), reward.to(x)], 1)
        return self.net(torch.cat([x, seen], 1))


def fit(x: Tensor, y: Tensor, steps: int = 1500, rows: int = 256, rate: float = 3e-3) -> DesignNet:
    """A network fitted to pairs of designs and labels."""
    key = keys(range(rows))
    net = DesignNet(Noise(key[:1], torch.zeros(1, dtype=torch.int64), 1))
    adam = torch.optim.Adam(net.parameters(), lr=rate)
    x, y = x.float(), y.float()
    for step in range(steps):
        noise = Noise(key, torch.full((rows,), step))
        pick = (noise.uniform((rows,), 1) * len(x)).long()
        t = noise.uniform((rows,), 2)
        high = PROCESS.corrupt(x[pick], t, noise, {})
        adam.param_groups[0]["lr"] = rate * (1 - step / steps)
        adam.zero_grad()
        miss = net(high, t.float(), y[pick]) - x[pick]
        (miss.square().mean(1) / (PROCESS.c(t) + 0.1).float()).mean().backward()
        adam.step()
    return net


def designs(model: Model, target: float, n: int = 400) -> Tensor:
    """Designs drawn given a reward."""
    plan = ebb.Plan(solve="dpmpp-2m", grid={"name": "log-snr", "steps": 40, "first": 1.0})
    cond = {"reward": torch.full((n,), target, dtype=model.like.dtype)}
    return ebb.sample(model, plan, cond=cond, n=n, seed=0).x.double()


def ascent(t: Task, reward: float, n: int = 400) -> Tensor:
    """Designs moved from the data along grad f until their mean true reward is that given."""
    x = t.x[-n:]
    return x + (reward - t.reward(x)) / float(t.ridge @ t.true) * t.ridge


# -------------------------------------------------------------------- what a sampler's error is made of


class Off(Denoiser):
    """A denoiser whose noise prediction is off by d sin(k . x + phase) of L2 norm d, root mean square over numbers."""

    process: Affine

    def __init__(self, inner: GaussianMixture, d: float) -> None:
        self.inner, self.process, self.d = inner, inner.process, d

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        mean = self.inner(x, t, cond).mean
        wave = 2**0.5 * (x.sum(1, keepdim=True) + torch.arange(x.shape[1])).sin()
        scale = right(self.process.c(t) / self.process.a(t), x)
        return Pred(mean=mean - self.d * scale * wave)


class Budget(NamedTuple):
    """The laws found, and the errors of one ordinary run, each alone (root mean squares of paths)."""

    start: float
    steps: float
    score: float
    shares: dict[str, float]


def ends(denoiser: Denoiser, first: Any = 1.0, steps: int = 150, solve: str = "heun") -> Tensor:
    """512 samples from N(0, c^2) at a first time; equal seeds are equal noise, so runs are compared path by path."""
    model = ebb.load(denoiser, like=torch.zeros(4, dtype=torch.float64))
    plan = ebb.Plan(solve=solve, grid={"name": "log-snr", "steps": steps, "first": float(first)})
    return ebb.sample(model, plan, n=512, seed=0).x


def slope(x: Tensor, y: list[float]) -> float:
    """The least-squares slope of log y over x."""
    both = torch.stack([x, torch.tensor(y, dtype=torch.float64).log()]).cov()
    return float(both[0, 1] / both[0, 0])


def proportion(x: list[float], y: list[float]) -> float:
    """R^2 of the best y = k x."""
    u, v = torch.tensor([x, y], dtype=torch.float64)
    return 1 - float((v - (u @ v) / (u @ u) * u).square().sum() / (v - v.mean()).square().sum())


@functools.cache
def budget() -> Budget:
    """Each error alone, the other two made negligible, on three Gaussians in R^4."""
    means = torch.tensor([[2.0, 0, 1, 0], [-1, 1, 0, 0], [0, -1, 0, 2]], dtype=torch.float64)
    truth = GaussianMixture(LONG, [1, 2, 1], means, 0.3)
    fine = ends(truth)
    miss = lambda x: float((x - fine).square().sum(1).mean().sqrt())  # noqa: E731

    horizons = torch.tensor([2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    begun = [miss(ends(truth, first)) for first in LONG.time(-horizons)]
    counts = torch.tensor([40, 80, 160])
    stepped = [miss(ends(truth, steps=int(n), solve="euler")) for n in counts]
    sizes = [0.005, 0.01, 0.02, 0.04]
    missed = [miss(ends(Off(truth, d))) for d in sizes]
    return Budget(
        slope(horizons, begun),
        slope(-counts.double().log(), stepped),
        proportion(sizes, missed),
        {"start at T = 5": begun[-1], "80 Euler steps": stepped[1], "score off by 0.01": missed[1]},
    )


# -------------------------------------------------------------------- the card


def disagreement(model: Model, strength: float) -> float:
    """Guidance by `cfg` against the slope of the classifier added to the unconditional score: the largest difference."""
    linear = model.denoiser
    assert isinstance(linear, LinearDesigns)
    target = torch.linspace(-2, 4, 32, dtype=torch.float64)
    plan = ebb.Plan(guide=[{"name": "cfg", "scale": strength}])
    loop, state = begin(model, plan, cond={"reward": target}, n=32)
    t = torch.linspace(0.02, 1, 32, dtype=torch.float64)
    x = PROCESS.move(task().x[:32], None, 0 * t, t, 1.0, Noise(state.key, state.i), {})
    mean = loop.ask(state)(x, t).mean
    theirs = PROCESS.from_x0("score", mean, x, t, {})
    ours = linear.slope(x, t, target, strength)
    return float(((ours - theirs).abs() / theirs.abs().clamp_min(1)).max())


def card(bench: Bench) -> Card:
    """Rewards, support, identities, then the budget."""
    t = task()
    y = t.labels()
    y = bench.fault(y, y[draws(6, len(y)).argsort()])
    linear = ebb.load(LinearDesigns(PROCESS, t.x, y), like=torch.zeros(AMBIENT, dtype=torch.float64))
    learnt = ebb.load(fit(t.x, y), process=PROCESS, predicts="x0", clock="time", like=torch.zeros(AMBIENT))
    notes = []
    for name, model in (("closed form", linear), ("network", learnt)):
        drawn = {a: designs(model, a) for a in (*TARGETS, FAR)}
        found, off = [t.reward(drawn[a]) for a in TARGETS], {a: t.off_support(x) for a, x in drawn.items()}
        bench.check(
            f"{name}: least rise of the reward from target to target", min(torch.tensor(found).diff()), at_least=0.8
        )
        away = max(abs(r - a) / a for r, a in zip(found, TARGETS, strict=True) if a)
        bench.check(f"{name}: reward off its target by", away, at_most=0.15)
        last = TARGETS[-1]
        climbed = t.off_support(ascent(t, found[-1]))
        bench.check(f"{name}: off-support energy over that of ascent", off[last] / climbed, at_most=0.2)
        if model is learnt:
            bench.check("network: off-support energy far out over within", off[FAR] / off[last], at_least=1.2)
        regret = FAR - t.reward(drawn[FAR])
        notes.append(
            f"{name}: off-support {off[last]:.2g} at {last:g}, {off[FAR]:.2g} at {FAR:g}, regret {regret:.2f} there"
        )
    agree = max(disagreement(linear, strength) for strength in (1.0, 2.0))
    bench.check("cfg against classifier gradient", agree, at_most=1e-6, published="equal")
    laws = budget()
    bench.check("slope of log error over T", laws.start, at_least=-1.1, at_most=-0.9, published="e^-T")
    bench.check("order of Euler's error", laws.steps, at_least=0.8, at_most=1.2, published="1")
    bench.check("error over score error, R^2 of a line through 0", laws.score, at_least=0.98, published="proportional")
    worst = max(laws.shares, key=lambda k: laws.shares[k])
    shares = ", ".join(f"{k} {v:.3f}" for k, v in laws.shares.items())
    return bench.card(f"{'; '.join(notes)}; ascent {climbed:.2f}. Errors alone: {shares}; most of it: {worst}.")
