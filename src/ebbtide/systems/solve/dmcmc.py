"""Denoising MCMC: a chain over (x, sigma) stays near the data, and integrators have little left to do.

    result -> noise sigma_0 -> 2 moves of the chain, each Langevin in x and a move in sigma -> few steps to the next result

Paper    Kim, Ye 2022 (arXiv 2209.14593); FID 3.86 at about 10 calls on CIFAR-10
Card     eight Gaussians on a circle, sigma up to 50. Six integrators, each from sigma_max with 10 calls, and in a row of 14
         results with 10 calls on average: first result, chain and integrator are all counted. All results of all chains are
         pooled, so results that repeat one another count against the chain. The control starts from noise
Differs  sigma is told by the denoiser, not by a trained classifier, and those calls are counted. Langevin's step is scaled
         by sigma^2, without a Metropolis test
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model
from ebbtide.measure.metrics import energy_distance
from ebbtide.process.gaussian import EDM
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="dmcmc",
    family="solve",
    title="Denoising MCMC for Accelerating Diffusion-Based Generative Models",
    year=2022,
    claim="3.86 FID at about 10 NFE and 2.63 FID at about 20 NFE on CIFAR10; 6.99 FID at about 160 NFE on CelebA-HQ-256; "
    "speeds up all six integrators tried",
    what="A Markov chain over data and noise level goes on from result to result; only its low-noise states are integrated.",
    paper="2209.14593",
    parts=("start/chain",),
    presets={
        "dmcmc": {
            "start": {"name": "chain", "moves": 2, "eta": 1.0, "first": 1.0},
            "solve": "heun",
            "grid": {"name": "karras", "steps": 3, "sigma_min": 0.02, "sigma_max": 50.0},
        }
    },
    differs="the denoiser tells sigma, no classifier; Langevin's step grows with sigma^2",
)

SOLVERS = {"euler": 1, "ancestral": 1, "heun": 2, "dpmpp-2m": 1, "dpmpp-3m": 1, "res-multistep": 1}
CHAINS, ROUNDS, CALLS, SIGMA = 250, 14, 10, 50.0


class Counted(Denoiser):
    """A denoiser that counts the rows it answers, those that a start asks for too."""

    def __init__(self, inner: GaussianMixture) -> None:
        self.inner, self.process, self.rows = inner, inner.process, 0

    def __call__(self, x: Tree, t: Tensor, cond: Mapping[str, Tree]) -> Pred:
        self.rows += len(t)
        return self.inner(x, t, cond)


class Row(NamedTuple):
    """Pooled results (N, 2), calls a result, the mean sigma that runs begin at, how often a result is in another mode."""

    x: Tensor
    calls: float
    sigma: float
    moved: float


def mixture() -> GaussianMixture:
    """Eight modes of unequal weight."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return GaussianMixture(
        EDM(sigma_max=SIGMA), [1, 2, 3, 2, 1, 2, 3, 2], 4 * torch.stack([angle.cos(), angle.sin()], 1), 0.04
    )


def at(plan: ebb.Plan, solve: str, calls: int) -> ebb.Plan:
    """The plan with another integrator, of as many calls (one less where its last step is cheaper)."""
    grid: dict[str, object] = {**dict(plan.to_dict()["grid"]), "steps": -(-calls // SOLVERS[solve])}
    return plan.replace(solve=solve, grid=grid)


def chains(g: GaussianMixture, plan: ebb.Plan, rounds: int = ROUNDS) -> Row:
    """Rows of results, each going on from the one before; the first from noise."""
    counted = Counted(g)
    model: Model = ebb.load(counted, like=torch.zeros(2, dtype=torch.float64))
    mode = lambda x: torch.cdist(x, g.means).argmin(1)  # noqa: E731
    first = at(plan.replace(start="prior"), "dpmpp-2m", CALLS)
    x, found, moved, sigma = ebb.sample(model, first, n=CHAINS).x, [], 0.0, 0.0
    for k in range(1, rounds + 1):
        out = ebb.sample(model, plan, cond={"previous": x}, n=CHAINS, seed=CHAINS * k).x
        moved += float((mode(out) != mode(x)).double().mean()) / rounds
        found.append(out)
        x = out
    calls = counted.rows / CHAINS / rounds
    state = begin(model, plan, {"previous": x}, CHAINS)[1]
    sigma = float((-g.process.lam(state.t)).exp().mean())
    return Row(torch.cat(found), calls, sigma, moved)


def card(bench: Bench) -> Card:
    """Energy distances against the same integrators from sigma_max, at equal calls all counted."""
    g, plan = mixture(), bench.plan("dmcmc")
    model: Model = ebb.load(g, like=torch.zeros(2, dtype=torch.float64))
    truth = g.sample(CHAINS * ROUNDS, seed=10**6)
    ratios, rows = {}, {}
    for solve in SOLVERS:
        alone = ebb.sample(model, at(plan.replace(start="prior"), solve, CALLS), n=CHAINS * ROUNDS, seed=10**5).x
        rows[solve] = chains(g, at(plan, solve, 5))
        ratios[solve] = energy_distance(rows[solve].x, truth) / energy_distance(alone, truth)
    bench.check("integrators of 6 at 0.6 of their own distance", sum(r <= 0.6 for r in ratios.values()), at_least=4)
    bench.check("energy distance with Heun, of that from sigma_max", ratios["heun"], at_most=0.3)
    bench.check("calls a result, all counted, at most", max(r.calls for r in rows.values()), at_most=CALLS)
    share = torch.bincount(torch.cdist(rows["heun"].x, g.means).argmin(1), minlength=8) / len(rows["heun"].x)
    off = (share - g.weights / g.weights.sum()).abs().max()
    bench.check("error of a mode's weight", off, at_most=0.03, published="within 3 points")
    bench.check("sigma where runs begin, of the largest", rows["heun"].sigma / SIGMA, at_most=0.1)
    told = ", ".join(f"{k} {v:.2f}" for k, v in ratios.items())
    notes = f"Distances of those from sigma_max: {told}. A result lies in another mode than the one before it "
    notes += f"{rows['heun'].moved:.0%} of the time."
    if not bench.control:
        frozen = plan.replace(start={**dict(plan.to_dict()["start"]), "moves": 0})
        still = energy_distance(chains(g, at(frozen, "heun", 9)).x, truth) / energy_distance(rows["heun"].x, truth)
        notes += (
            f" With sigma frozen and its calls given to Heun the distance is {still:.2f} times the chain's: in this "
        )
        notes += "plane the gain is that of going on from the last result, and moves of sigma add none."
    return bench.card(notes)
