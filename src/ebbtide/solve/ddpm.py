"""DDPM: ancestral steps with a choice of the variance of p(x_s | x_t), of which the posterior's is the least.

    x_s = k_x x_t + k_0 E[x0 | x_t] + k_y y + sqrt(k_z^2 + k_0^2 V) z,      k those of the chain's posterior (eta = 1)

    fixed-small   V = 0                          x0 is a single point
    fixed-large   V = c_t^2 / (a_t^2 + c_t^2)    x0 ~ N(0, 1): for variance-preserving processes the sum is beta
    optimal       V = Var[x0 | x_t]              every number by itself: the best Gaussian of independent numbers there is

By the law of total variance the first two bound the third for data of variance at most 1. No noise is added to the step
that lands on the data.

Shapes   x (B, ...), any units; Var[x0 | x_t] like x. One call a step.
Paper    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), section 3.2; the optimal variance: Bao et al. 2022, "Analytic-DPM"
         (2201.06503), theorem 1, for each number: Bao et al. 2022 (2206.07309), section 4.1
Off      variance = "fixed-small" is `ancestral`, bit for bit.
Differs  fixed-large is beta for variance-preserving processes, and for all others what beta is there: the optimum for
         unit normal data. Variance is taken from the model (Pred.var), not estimated beforehand from a data set.

Raises EbbError when the optimal variance is asked of a model that says none.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.time import Weight, combine, nil, spread
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine, Weights


@part("solve", "ddpm", paper="2006.11239", needs={"affine"}, baseline="ancestral")
class DDPM(Solver):
    """DDPM: ancestral steps with a choice of the variance of p(x_s | x_t), of which the posterior's is the least.

    variance   "fixed-small" | "fixed-large" | "optimal", which needs a model that knows Var[x0 | x_t]
    """

    stochastic = True
    variance: Literal["fixed-small", "fixed-large", "optimal"] = "fixed-small"

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        w = process.weights(state.t, s, 1.0)
        if self.variance == "fixed-large":
            (noise,) = process.once("fixed-large", lambda t, s: _large(process, t, s), state.t, s)
            w = w._replace(noise=noise)
        x = process.apply(
            w._replace(noise=0.0) if self.variance == "optimal" else w,
            state.x,
            [(w.x0, pred.mean)],
            state.cond,
            ask.noise,
        )
        if self.variance == "optimal" and not nil(w.noise):
            x = x + self._std(process, w, pred, state.t, s) * process.draw(x, ask.noise)
        return Move(x), pred

    def _std(self, process: Affine, w: Weights, pred: Pred, t: Tensor, s: Tensor) -> Tensor:
        """The standard deviation of every number of x_s, like x."""
        if pred.var is None:
            raise EbbError(
                "the optimal variance needs a model that knows Var[x0 | x_t]; take variance 'fixed-small' or "
                "'fixed-large' with this one."
            )
        squares: tuple[Weight, Weight] = process.once("squares", lambda t, s: _squares(process, t, s), t, s)
        var: Tensor = combine((squares[0], torch.ones_like(pred.var)), (squares[1], pred.var.clamp_min(0)))
        return var.sqrt()


def _squares(process: Affine, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """k_z^2 and k_0^2, both 0 where the step lands on the data."""
    w = process.weights_of(t, s, 1.0)
    noise, data = spread(w.noise, t), spread(w.x0, t)
    return noise**2, torch.where(process.c(s) == 0, torch.zeros_like(data), data**2)


def _large(process: Affine, t: Tensor, s: Tensor) -> tuple[Tensor]:
    a, c = process.a(t) ** 2, process.c(t) ** 2
    blind = a + c == 0  # nothing is known of the data: all of its variance is left
    var = torch.where(blind, torch.ones_like(c), c / torch.where(blind, torch.ones_like(c), a + c))
    noise, data = _squares(process, t, s)
    return ((noise + data * var).sqrt(),)
