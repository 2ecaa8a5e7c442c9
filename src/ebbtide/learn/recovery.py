"""Cooperative recovery likelihood: an energy at each noise level, and an initialiser that learns where its chains end.

    pair      x_s ~ q(x_s | x0),  x_t ~ q(x_t | x_s)                for neighbours s < t of a ladder of noise levels
    draft     y ~ N(g, k_z^2),   g = k_x x_t + k_0 G(x_t, t)        the posterior step with the initialiser's guess of x0
    refine    y' = K Langevin steps from y on p(x_s | x_t), whose only unknown is grad f(., s)
    energy    f(y', s) - f(x_s, s)                                  down: data gain density, refined drafts lose it
    draft     |y' - g|^2                                            down: the next chain starts where this one ended

The gradient of the first is that of -log p(x_s | x_t) if the chain has arrived; given x_t there is nearly one hill, so few
steps do. f is an unnormalised log-density of each level: it ranks points, adds up over models, and its gradient gives
E[x0 | x_t] by Tweedie's formula, so everything that works on a denoiser works on it, guidance too.

Shapes   x (B, *event), t (B,) float64, f (B,)
Paper    Zhu, Xie, Wu, Gao 2023, "Learning energy-based models by cooperative diffusion recovery likelihood" (arXiv
         2309.05153), algorithm 1; without an initialiser: Gao et al. 2020 (2012.08125), algorithm 1
Off      draft = False starts chains from x_t and teaches no initialiser: recovery likelihood.
Differs  the energy is of x_s, theirs of y = x_s a_t / a_s, another name for the same point. The initialiser says x0, which
         makes its draft the posterior step, and its spread that of the step; theirs is free. The lowest level keeps some
         noise, which the solver takes off by the mean. Their shared noise for x_s and x_t is left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.time import combine, right
from ebbtide.core.tree import Tree
from ebbtide.process.affine import Affine
from ebbtide.process.gaussian import VPLinear
from ebbtide.solve.recovery import chain


class Pair(Protocol):
    """An energy and its initialiser; x (B, *event), t (B,) in x's dtype, labels (B,) int64 or None."""

    def energy(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """f(x, t), the log-density of the noised data up to a constant of each level: (B,)."""

    def draft(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """G(x, t), a guess of x0, shaped like x."""


def tweedie(
    network: Pair, process: Affine, x: Tensor, t: Tensor, labels: Tensor | None = None, graph: bool = False
) -> Tensor:
    """E[x0 | x_t] = (x + c^2 grad f) / a, shaped like x; with `graph` it can be differentiated in x and the weights."""
    with torch.enable_grad():
        here = x if graph and x.requires_grad else x.detach().requires_grad_()
        (score,) = torch.autograd.grad(network.energy(here, t.to(x), labels).sum(), here, create_graph=graph)
    return process.to_x0("score", score, x if graph else x.detach(), t, {})


@dataclass(frozen=True, eq=False)
class Energies(Denoiser):
    """A trained pair as a denoiser: the mean is Tweedie's, the initialiser's guess is `aux["draft"]`.

    null   the label that stands for none, None for a pair without labels

    Where a = 0 the energy says nothing of the data, and the guess stands for the mean.
    """

    network: Pair
    process: Affine = field(default_factory=VPLinear)
    unlabelled: int | None = None

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.full_like(leaf, self.unlabelled) if name == "label" and self.unlabelled is not None else None

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        labels = cond.get("label")
        draft = self.network.draft(x, t.to(x), labels)
        mean = tweedie(self.network, self.process, x, t, labels, graph=torch.is_grad_enabled())
        blind = right(self.process.a(t) == 0, x).to(x.device)
        return Pred(mean=torch.where(blind, draft, mean), aux={"draft": draft})


@dataclass(frozen=True)
class RecoveryLikelihood:
    """The loss of an energy and its initialiser.

    levels     times of the ladder, rising; neighbours make pairs
    langevin   steps of each chain, of this `stride`; see `solve.recovery`
    draft      whether chains start from the initialiser, and teach it
    drop       how often a label is replaced by `null`
    """

    levels: tuple[float, ...]
    process: Affine = field(default_factory=VPLinear)
    langevin: int = 15
    stride: float = 0.5
    draft: bool = True
    null: int = 0
    drop: float = 0.1

    def __post_init__(self) -> None:
        rising = all(s < t for s, t in zip(self.levels, self.levels[1:], strict=False))
        if len(self.levels) < 2 or not rising or self.levels[0] <= 0 or self.levels[-1] > 1:
            raise EbbError(f"levels are two or more rising times in (0, 1], not {list(self.levels)}.")

    def pairs(self, x0: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_s, x_t (B, *event) and their times s, t (B,): every level of the ladder has its share of the batch."""
        n, steps = len(x0), len(self.levels) - 1
        place = (torch.arange(n, dtype=torch.float64) + noise.uniform((n,), 1)[0]) / n
        k = (place * steps).long().clamp(max=steps - 1)
        times = torch.tensor(self.levels, dtype=torch.float64)
        s, t = times[k], times[k + 1]
        low = self.process.corrupt(x0, s, noise.fold(0), {})
        assert isinstance(low, Tensor)
        return low, self.process.move(low, None, s, t, 1.0, noise.fold(1), {}), s, t

    def loss(self, network: Any, x0: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The loss of a batch x0 (B, *event), a scalar; `noise` has B keys. Its value may be of either sign."""
        low, high, s, t = self.pairs(x0, noise)
        if labels is not None:
            labels = torch.where((noise.uniform((len(x0),), 2) < self.drop).to(labels.device), self.null, labels)
        w = self.process.weights(t, s, 1.0)
        start, lesson = high, x0.new_zeros(())
        if self.draft:
            centre = combine((w.x, high), (w.x0, network.draft(high, t.to(high), labels)))
            start = combine((1.0, centre.detach()), (w.noise, noise.fold(2).normal(high)))
        mean = lambda y: tweedie(network, self.process, y, s, labels)  # noqa: E731
        refined = chain(self.process, w, start, high, mean, noise.fold(3), {}, self.langevin, self.stride)
        if self.draft:
            lesson = (refined - centre).square().mean()
        clock = s.to(x0)
        return (network.energy(refined, clock, labels) - network.energy(low, clock, labels)).mean() + lesson

    def about(self) -> dict[str, Any]:
        """The arguments of `Energies`, in plain words."""
        process = {"name": self.process.entry.name, **asdict(self.process)}  # type: ignore[call-overload]
        return {"process": process, "unlabelled": self.null, "levels": list(self.levels)}
