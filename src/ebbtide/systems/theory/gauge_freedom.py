"""Gauge freedom: a score plus a remainder that moves no probability samples and weighs the same law, along other paths.

    score' = s + C s,  C = -C^T:     div(p C s) = div(C grad p) = sum_ij C_ij d_i d_j p = 0

The Fokker-Planck and continuity equations only see div(p drift), so the marginals of flow and reverse SDE and the density
by divergence stay what they were, while every single path turns. A symmetric C of the same norm, traceless, has none of this.
What does change is local geometry. At small t the Jacobian of the score is -1/c^2 across the data and -1/(c^2 + spread^2)
along it, so its large singular values count the dimensions that the data lacks; a strong remainder along the data
hides them, until the symmetric part is taken.

Paper    Horvat, Pfister 2024, "On gauge freedom, conservativity and intrinsic dimensionality estimation in diffusion
         models" (arXiv 2402.03845)
Card     four Gaussians in R^4, |C| = 1 in two planes; a Gaussian on a plane in R^10. The control has a symmetric matrix of
         the same spectral and Frobenius norm in place of C
Differs  Strong means |C| = spread^2 / c^2, about 500 at t = 0.01, and a plane along the data: C s has the rank of s, so no
         weaker or random C changes the count (|C| = 5, random: still 2). There alone the symmetric part restores it: a C
         that mixes along and across does not commute with the Jacobian, and symmetrising spoils a count that was right
         (|C| = 5, random: 0 instead of 2). The paper reads dimension off the Jacobian of the flow, here it is the score's.
         The remainder turns without end as a -> 0, so the process is vp-linear, where a(1) = 0.0066, not flow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.core.parts import Denoiser
from ebbtide.denoise.exact import Gaussian, GaussianMixture
from ebbtide.denoise.gauge import Gauged, intrinsic_dim, report, transform
from ebbtide.measure.likelihood import log_likelihood
from ebbtide.measure.metrics import energy_test
from ebbtide.process.gaussian import VPLinear
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="gauge-freedom",
    family="theory",
    title="On gauge freedom, conservativity and intrinsic dimensionality estimation in diffusion models",
    year=2024,
    claim="Exact sampling and density need only the conservative component to equal the score; conservativity helps local "
    "manifold inference",
    what="A score may differ from the true one by any remainder without probability flux: samples and densities stay exact.",
    paper="2402.03845",
    differs="a gauge term must be strong and lie along the data to change the dimension that its score shows",
)

PROCESS = VPLinear()
ODE = ebb.Plan(solve="heun", grid={"name": "log-snr", "steps": 100})
SDE = ebb.Plan(solve="ancestral", grid={"name": "log-snr", "steps": 200})
TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
SWAP = TURN.abs()
SMALL = 0.01

Remainder = Callable[[Denoiser, Tensor], Gauged]


def four() -> GaussianMixture:
    """Four Gaussians in R^4 whose mean is 0, so that the prior of a run fits up to a(1)^2."""
    means = 1.5 * torch.tensor([[1, 0, 0, 1], [-1, 1, 0, 0], [0, -1, 1, 0], [0, 0, -1, -1]], dtype=torch.float64)
    return GaussianMixture(PROCESS, [1, 1, 1, 1], means, 0.25)


def plane() -> tuple[Gaussian, Tensor]:
    """A standard Gaussian on a plane through 0 in R^10, and the plane's axes (10, 2)."""
    stream = Noise(keys([0]), torch.zeros(1, dtype=torch.int64))
    axes = torch.linalg.qr(stream.normal(torch.zeros(1, 10, 2, dtype=torch.float64))[0]).Q
    return Gaussian(PROCESS, torch.zeros(10), axes @ axes.T), axes


def samples(denoiser: Denoiser, plan: ebb.Plan) -> Tensor:
    """2000 samples; the same seeds, so the same start, for every denoiser."""
    return ebb.sample(ebb.load(denoiser, like=torch.zeros(4, dtype=torch.float64)), plan, n=2000).x


def log_likelihood_error(denoiser: Denoiser, truth: GaussianMixture) -> Tensor:
    """|log p by divergence - closed form| at the worst of 64 points, in nats."""
    x, model = truth.sample(64, seed=20_000), ebb.load(denoiser, like=torch.zeros(4, dtype=torch.float64))
    found = log_likelihood(model, x, ebb.Plan(grid={"name": "linear", "steps": 50}))
    return (found - truth.log_prob(x, torch.zeros(64, dtype=torch.float64))).abs().max()


def dimension(denoiser: Denoiser, data: Tensor, symmetric: bool = False) -> float:
    """The estimated dimension, mean over the points given."""
    return sum(intrinsic_dim(denoiser, x0, SMALL, symmetric=symmetric) for x0 in data) / len(data)


def card(bench: Bench) -> Card:
    """Marginals and density, then paths, then geometry."""
    block = bench.fault(TURN, SWAP)
    remainder: Remainder = bench.fault(transform, Gauged)  # transform refuses what is no gauge
    truth = four()
    gauged, symmetric = (make(truth, torch.block_diag(m, m)) for make, m in ((remainder, block), (Gauged, SWAP)))

    exact, plain, turned = truth.sample(2000, seed=10_000), samples(truth, ODE), samples(gauged, ODE)
    flow, sde = energy_test(turned, exact), energy_test(samples(gauged, SDE), exact)
    bench.check("flow, energy distance over the null's 95 %", flow.distance / flow.null, at_most=1)
    bench.check("reverse SDE, energy distance over the null's 95 %", sde.distance / sde.null, at_most=1)
    wrong = energy_test(samples(symmetric, ODE), exact)
    bench.check("symmetric remainder, energy distance over the gauge's", wrong.distance / flow.distance, at_least=10)
    bench.check("log-likelihood, worst error in nats", log_likelihood_error(gauged, truth), at_most=1e-2)
    moved = (turned - plain).square().mean().sqrt() / exact.std()
    bench.check("endpoints moved, standard deviations", moved, at_least=0.3)

    t = torch.full((64,), 0.3, dtype=torch.float64)
    x = PROCESS.corrupt(exact[:64], t, Noise(keys(range(64)), torch.zeros(64, dtype=torch.int64)), {})
    seen = report(gauged, x, t, truth)
    bench.check("gauge residual, E|div r + r.s|", seen.residual, at_most=1e-10)
    bench.check("asymmetry of the Jacobian", seen.asymmetry, at_least=0.5)

    flat, axes = plane()
    points, strength = flat.sample(4), 1 / float(PROCESS.c(torch.tensor([SMALL], dtype=torch.float64)) ** 2)
    strong = remainder(flat, strength * axes @ block @ axes.T)
    bench.check("dimension, conservative score", dimension(flat, points), at_least=2, at_most=2, published="2")
    bench.check("dimension, strong gauge term", dimension(strong, points), at_most=1)
    bench.check("the same, symmetric part", dimension(strong, points, symmetric=True), at_least=2, at_most=2)
    return bench.card()
