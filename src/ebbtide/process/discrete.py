"""Discrete processes: tokens that are lost one by one, each on its own, as time goes on.

    q(x_t | x0) = alpha(t) [x_t = x0] + (1 - alpha(t)) pi(x_t)

pi, what a lost token becomes, is the mask (`masked`) or any token alike (`uniform`). From t to s > t a token is kept
with probability alpha_s / alpha_t; from t to s < t it is drawn from `posterior`, given a law of the clean token.

    schedule   linear 1 - t | quadratic 1 - t^2 | cosine 1 - sin(pi t / 2)
               geometric exp(-k(t)), k(t) = 1e-5^(1-t) 20^t, scaled to be 1 at t = 0 and 0 at t = 1

There is no deterministic move: eta is ignored. A token is int64; x has any shape, batch first.

Paper    Austin et al. 2021, "Structured denoising diffusion models in discrete state-spaces" (arXiv 2107.03006),
         section 3; schedules: Shi et al. 2024 (2406.04329), table 4; cosine also Chang et al. 2022 (2202.04200)
Differs  continuous time; `linear` is the log-linear schedule of Sahoo et al. 2024 (2406.07524) without its offset.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.core.parts import Process
from ebbtide.core.state import Pred
from ebbtide.core.time import right, where
from ebbtide.core.tree import Tree

Schedule: TypeAlias = Literal["linear", "quadratic", "cosine", "geometric"]
_KEEP, _TOKEN = 0, 1  # salts: whether a token changes, and to what


class Discrete(Process):
    """A process over tokens 0 ... vocab - 1 given by a schedule and by what a lost token becomes."""

    gives = frozenset({"discrete"})
    stochastic: ClassVar[bool] = True
    vocab: int
    schedule: Schedule

    @property
    def states(self) -> int:
        """How many values x_t may take."""
        return self.vocab

    def alpha(self, t: Tensor) -> Tensor:
        """The probability that a token is still there at t: float64 like t, exactly 1 at t = 0 and 0 at t = 1."""
        if self.schedule == "linear":
            return 1 - t
        if self.schedule == "quadratic":
            return 1 - t**2
        if self.schedule == "cosine":
            return 1 - (math.pi / 2 * t).sin()
        first, last = _geometric(t.new_zeros(1)), _geometric(t.new_ones(1))
        return (_geometric(t) - last) / (first - last)

    def rate(self, t: Tensor) -> Tensor:
        """-d alpha / dt, shaped like t, by automatic differentiation in float64."""
        with torch.enable_grad():
            t = t.detach().double().requires_grad_()
            (slope,) = torch.autograd.grad(self.alpha(t).sum(), t)
        return -slope

    def loss(self, t: Tensor) -> Tensor:
        """beta = -alpha' / alpha, how often a token is lost, shaped like t; finite at t = 1 too."""
        return self.rate(t) / self.alpha(t).clamp_min(1e-12)

    def lost(self, like: Tensor, noise: Noise) -> Tensor:
        """What tokens become when they are lost: draws of pi, shaped like `like`."""
        raise NotImplementedError

    def evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x0 = v) for all v, up to a factor that is free of v: x.shape + (vocab,), float64."""
        raise NotImplementedError

    def posterior(self, x: Tensor, logits: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) for s <= t when the clean token has the law softmax(logits): x.shape + (states,), float64."""
        raise NotImplementedError

    def reversal(self, x: Tensor, logits: Tensor, t: Tensor) -> Tensor:
        """Rates of the jumps back from x to every y at time t > 0, the clean token of law softmax(logits).

        x.shape + (states,), float64; what stands at y = x means nothing.
        """
        raise NotImplementedError

    def transition(self, t: Tensor, s: Tensor) -> Tensor:
        """The matrix of the forward move, q(x_s = j | x_t = i) for s >= t: t.shape + (states, states), rows sum to 1.

        For tables and tests; nothing that samples builds it.
        """
        raise NotImplementedError

    def kept(self, t: Tensor, s: Tensor) -> Tensor:
        """alpha_s / alpha_t: the probability that a token survives from t to s >= t; 1 where both are 1 or s = t."""
        alpha = self.alpha(t)
        gone = alpha == 0
        return torch.where(gone | (s == t), torch.ones_like(alpha), self.alpha(s) / torch.where(gone, 1.0, alpha))

    def move(
        self, x: Tree, pred: Pred | None, t: Tensor, s: Tensor, eta: float, noise: Noise, cond: dict[str, Tree]
    ) -> Tree:
        """x_s given x_t and the logits of a prediction; see the contract. eta is ignored.

        Raises EbbError for a move towards the data without logits.
        """
        up, down = s > t, s < t
        out = x
        if bool(down.any()):
            if pred is None or not isinstance(pred.logits, Tensor):
                raise EbbError("a discrete process moves on logits, which this prediction lacks: use a token model.")
            out = where(down, self._back(x, pred.logits, t, torch.minimum(s, t), noise), out)
        if bool(up.any()):
            out = where(up, self._lose(x, self.kept(t, torch.maximum(s, t)), noise), out)
        return out

    def corrupt(self, x0: Tree, t: Tensor, noise: Noise, cond: dict[str, Tree]) -> Tree:
        """x_t ~ q(x_t | x0)."""
        return self._lose(x0, self.alpha(t), noise)

    def prior(self, like: Tree, t: Tensor, noise: Noise, cond: dict[str, Tree]) -> Tree:
        """Every token lost, whatever t is: what is known when no data is."""
        return self.lost(like, noise)

    def _lose(self, x: Tensor, keep: Tensor, noise: Noise) -> Tensor:
        return torch.where(self._chance(1 - keep, x, noise), self.lost(x, noise), x)

    def _back(self, x: Tensor, logits: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        return noise.categorical(self.posterior(x, logits, t, s).log(), _TOKEN).to(x.dtype)

    def _chance(self, p: Tensor, x: Tensor, noise: Noise) -> Tensor:
        """An event of probability p for every token; decided on the CPU in float64, p = 0 never and p = 1 always."""
        return (noise.uniform(x.shape, _KEEP) < right(p, x)).to(x.device)


def _geometric(t: Tensor) -> Tensor:
    return (-(math.log(1e-5) * (1 - t) + math.log(20.0) * t).exp()).exp()


def spread(w: Tensor, like: Tensor) -> Tensor:
    """Weights of the units against per-token distributions `like` (*x.shape, V)."""
    return right(w, like).to(like.device)
