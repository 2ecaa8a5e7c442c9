"""Fokker-Planck residual: how far a learned log-density is from one that the diffusion could have.

    dx = f dt + g dw,   f = (a'/a) x,   g^2 = 2 c c' - 2 (a'/a) c^2
    R(x, t) = d_t u + div f + f . grad u - g^2 / 2 (lap u + |grad u|^2)
    loss    = E c^2 |grad u - score(x | x0)|^2 + lam E w(t) (R - E[R | t])^2

u(x, t) is a scalar potential, grad u its score. R = 0 for u = log p_t; a function of t may be added to u that no score
shows, so the mean of R over the rows that share a time is taken off. Where nothing is left, the stochastic sampler and the
probability-flow ODE of that score have the same marginals; else their W2 is bounded by an integral of |R|.

Shapes   x (B, *event), t (B,) float64, R (B,); the Laplacian costs one backward pass a dimension, or one a probe
Paper    Deveney, Stanczuk, Kreusser, Budd, Schoenlieb 2023, "Closing the ODE-SDE gap in score-based diffusion models
         through the Fokker-Planck equation" (arXiv 2311.15996)
Off      lam = 0 is denoising score matching, bit for bit, at its cost.
Differs  the free function of t goes with the means over rows of equal time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.core.time import right
from ebbtide.denoise.jacobian import directions
from ebbtide.process.affine import Affine
from ebbtide.process.gaussian import VPLinear

Potential: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""u(x, t): x (B, *event) and t (B,), in the dtype and on the device of x, to (B,)."""


class Terms(NamedTuple):
    """The terms of the Fokker-Planck equation of a potential u, (B,) each, and its score.

    change   d_t u
    drift    div f + f . grad u
    spread   g^2 / 2 (lap u + |grad u|^2)
    score    grad u, shaped like x
    """

    change: Tensor
    drift: Tensor
    spread: Tensor
    score: Tensor


def residual(terms: Terms) -> Tensor:
    """R (B,): zero where the potential is the log-density of a diffusion."""
    return terms.change + terms.drift - terms.spread


def diffusion(process: Affine, t: Tensor) -> tuple[Tensor, Tensor]:
    """a'/a and g^2 of the forward diffusion dx = (a'/a) x dt + g dw: float64 like t, finite where a is not 0.

    Raises EbbError for a process with an end y, on which the drift would depend.
    """
    if process.ended:
        raise EbbError("the Fokker-Planck residual is that of a Gaussian process; this one has an end y.")
    da, dc, _ = process.rates(t)
    rate, c = da / process.a(t), process.c(t)
    return rate, 2 * c * (dc - rate * c)


def terms(
    potential: Potential, process: Affine, x: Tensor, t: Tensor, probes: int | None = None, noise: Noise | None = None
) -> Terms:
    """The terms at x (B, *event) and times t (B,), differentiable in the parameters of the potential.

    probes   random signs a row for the Laplacian, unbiased (Hutchinson), drawn from `noise`; None: exact

    Raises EbbError for probes without noise, and for a process with an end.
    """
    along = directions(x, probes, noise)
    rate, g2 = (w.to(x) for w in diffusion(process, t))
    with torch.enable_grad():
        x, clock = x.detach().requires_grad_(), t.to(x).detach().requires_grad_()
        u = potential(x, clock)
        score, change = torch.autograd.grad(u.sum(), (x, clock), create_graph=True, materialize_grads=True)
        laplacian = torch.zeros_like(u)
        for v in along.v:
            (bent,) = torch.autograd.grad(score, x, v, create_graph=True)
            laplacian = laplacian + along.weight * (bent * v).flatten(1).sum(1)
        drift = rate * (x[0].numel() + (x * score).flatten(1).sum(1))
        return Terms(change, drift, g2 / 2 * (laplacian + score.flatten(1).square().sum(1)), score)


def centred(r: Tensor, points: int) -> Tensor:
    """r (B,) less its mean over each `points` rows in a row, scaled so that its mean square stays unbiased."""
    r = r.reshape(-1, points)
    return ((r - r.mean(1, keepdim=True)) * (points / (points - 1)) ** 0.5).flatten()


class Score(nn.Module):
    """The gradient of a potential as a module that predicts the score: what a sampler asks."""

    def __init__(self, potential: nn.Module) -> None:
        super().__init__()
        self.potential = potential

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """grad u (B, *event), in gradient mode or not."""
        outside = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            (score,) = torch.autograd.grad(self.potential(x, t.to(x)).sum(), x, create_graph=outside)
        return score


@dataclass(frozen=True)
class FokkerPlanck:
    """Denoising score matching of a potential network u(x, t), with the Fokker-Planck residual as a penalty.

    process   how data becomes noise
    lam       weight of the penalty
    points    consecutive rows of a batch that share a time, 2 or more
    probes    None: exact Laplacian; else so many random signs a row
    weight    w(t): "g2", "one", or "1/g2", which measures time by the noise added
    first     the least time drawn
    equation  R from its terms
    """

    process: Affine = field(default_factory=VPLinear)
    lam: float = 0.0
    points: int = 8
    probes: int | None = None
    weight: Literal["g2", "one", "1/g2"] = "g2"
    first: float = 1e-3
    equation: Callable[[Terms], Tensor] = residual

    def times(self, noise: Noise) -> Tensor:
        """Times of a batch, (B,) float64 in [first, 1]: a comb, each of its teeth given to `points` rows.

        Raises EbbError for a batch that `points` does not divide.
        """
        groups, rest = divmod(len(noise.key), self.points)
        if rest or self.points < 2:
            raise EbbError(f"rows share their times by {self.points}: give a batch of a multiple of it, 2 or more.")
        comb = (torch.arange(groups, dtype=torch.float64) + noise.uniform((len(noise.key),), 1)[0]) / groups
        return (self.first + (1 - self.first) * comb).repeat_interleave(self.points)

    def loss(self, network: nn.Module, x0: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The loss of a batch x0 (B, *event), a scalar; `noise` has B keys."""
        t = self.times(noise)
        x = self.process.corrupt(x0, t, noise, {})
        found = None if self.lam == 0 else terms(network, self.process, x, t, self.probes, noise.fold(0))
        score = Score(network)(x, t) if found is None else found.score
        miss = right(self.process.c(t), x).to(x) * (score - self.process.from_x0("score", x0, x, t, {}))
        fit = miss.square().mean()
        return fit if found is None else fit + self.lam * self._penalty(found, t)

    def penalty(self, potential: Potential, x: Tensor, t: Tensor, noise: Noise | None = None) -> Tensor:
        """E w(t) (R - E[R | t])^2 over x (B, *event) at times t (B,), `points` rows at each: a scalar."""
        return self._penalty(terms(potential, self.process, x, t, self.probes, noise), t)

    def _penalty(self, found: Terms, t: Tensor) -> Tensor:
        r = centred(self.equation(found), self.points)
        g2 = diffusion(self.process, t)[1].to(r)
        return ({"g2": g2, "one": torch.ones_like(g2), "1/g2": 1 / g2}[self.weight] * r.square()).mean()

    def about(self) -> dict[str, Any]:
        """The arguments of `denoise.network.Network` for `Score(network)`, in plain words."""
        process = {"name": self.process.entry.name, **asdict(self.process)}  # type: ignore[call-overload]
        return {"process": process, "predicts": "score", "clock": "time"}
