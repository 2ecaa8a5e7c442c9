"""RED-diff: one estimate is optimised to fit a measurement, while a denoiser at every noise level pulls it to the data.

    x0 = mu + spread z,   x_t = a x0 + c eps,   g = fit (D / M) A^T (A(x0) - y) + pull k(t) (x0 - E[x0 | x_t])
    mu <- mu - rate Adam(g),   from mu = A^+ y;   k = 1  linear,  (a / c)^1/2  sqrt,  min(1, a / c)  clip,  a / c  constant

x of the state is mu, an estimate of the data from the first step on, and t only says at which noise it is looked at: high
levels first, so coarse before fine. The pull is the difference of scores in the bound on KL(N(mu, spread^2) || posterior),
so no gradient goes through the network; A may be any operator that has a slope. D and M count the numbers of x and y.

Shapes   cond["measured"], and what the operator asks for, in rows like x; x (B, ...), any units. Memory: Adam's two means
         and its count (0: not begun, mu is made from the measurement). One call a step.
Paper    Mardani, Song, Kautz, Vahdat 2023, "A variational perspective on solving inverse problems with diffusion models"
         (arXiv 2305.04391), algorithm 1 and eq. 9
Off      the baseline is `euler`: without a measurement there is nothing to fit.
Differs  w_t (eps_hat - eps) is written in data space, where it is pull k (x0 - E[x0 | x_t]) and finite at t = 1 too; k is
         their weight over c / a, so "linear", the inverse root of the SNR, is 1. The loss is D times that of the paper, a mean.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.time import combine, weight, where
from ebbtide.core.tree import Memory
from ebbtide.measure import operators
from ebbtide.process.affine import Affine

_EPS = 1e-8
Beta = Annotated[float, Field(ge=0, lt=1)]
Amount = Annotated[float, Field(ge=0)]


@part("solve", "red-diff", paper="2305.04391", needs={"gaussian"}, baseline="euler")
class RedDiff(Solver):
    """RED-diff: one estimate is optimised to fit a measurement, while a denoiser at every noise level pulls it to the data.

    operator    A: a name, "file.py:function", or a mapping with a "name" and parameters; see `measure.operators`
    fit, pull   weights of the measurement and of the denoiser
    weighting   how the pull depends on the noise level
    rate        the length of Adam's steps, in units of x
    spread      the standard deviation around mu that is looked at
    begin       from the measurement, or from where the run starts
    """

    examples = ({"operator": {"name": "clip", "low": -1.0, "high": 1.0}},)
    operator: str | dict[str, Any] = "mask"
    fit: Amount = 1.0
    pull: Amount = 0.25
    weighting: Literal["linear", "sqrt", "clip", "constant"] = "linear"
    rate: Annotated[float, Field(gt=0)] = 0.1
    beta1: Beta = 0.9
    beta2: Beta = 0.99
    spread: Amount = 1e-4
    begin: Literal["measurement", "start"] = "measurement"
    order, stochastic, reads = None, True, operators.READ

    @field_validator("operator")
    @classmethod
    def _known(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        operators.check(value)
        return value

    def init(self, state: State, ask: Ask) -> Memory:
        operators.tried(self.operator, state)
        return {}

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        operator = operators.find(self.operator, state.cond)
        count = memory.get("count", torch.zeros_like(state.i))
        mu = state.x
        if self.begin == "measurement" and not bool(count.all()):
            mu = where(count == 0, operator.rough(mu), mu)
        a, c, k = process.once(("red-diff", self.weighting), lambda t: self._weights(process, t), state.t)
        x0 = mu if self.spread == 0 else combine((1.0, mu), (self.spread, ask.noise.fold(1).normal(mu)))
        pred = ask(combine((a, x0), (c, ask.noise.normal(mu))), state.t, role="stage")
        _, slope = operator.misfit(x0)
        fit = self.fit * x0[0].numel() / operator.measured[0].numel()
        g = combine((fit, slope), (self.pull * k, x0), (-self.pull * k, pred.mean))
        return self._adam(mu, g, memory, count + 1), pred

    def _weights(self, process: Affine, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, c and k."""
        a, c = process.a(t), process.c(t)
        snr = a / torch.where(c == 0, 1.0, c)
        k = {"linear": torch.ones_like(t), "sqrt": snr.sqrt(), "clip": snr.clamp(max=1), "constant": snr}
        return a, c, torch.where(c == 0, 0.0, k[self.weighting])

    def _adam(self, mu: Tensor, g: Tensor, memory: Memory, count: Tensor) -> Move:
        """A step of Adam; `count` says how many each unit has made with it."""
        zero = torch.zeros_like(g)
        slope = combine((self.beta1, memory.get("slope", zero)), (1 - self.beta1, g))
        square = combine((self.beta2, memory.get("square", zero)), (1 - self.beta2, g * g))
        held = [weight(_left(beta, count)) for beta in (self.beta1, self.beta2)]
        way = slope / (combine((1.0 / held[1], square)).sqrt() + _EPS)
        x = combine((1.0, mu), (-self.rate * (1.0 / held[0]), way))  # what torch makes of a number over a tensor
        return Move(x, {"count": count, "slope": slope, "square": square})


def _left(beta: float, count: Tensor) -> Tensor:
    """1 - beta^count."""
    if beta == 0:
        return torch.ones_like(count, dtype=torch.float64)
    return 1 - (count.double() * torch.tensor(beta, dtype=torch.float64).log()).exp()
