"""Recovery likelihood: draft the next point, then refine it by Langevin steps on p(x_s | x_t), which is nearly one hill.

    log p(x_s | x_t) = log p_s(x_s) + log q(x_t | x_s) + const.,     its slope at y:  (m(y) - y) / v
    m(y) = x_t k_x + E[x0 | x_s = y] k_0,   v = k_z^2                the posterior step at eta = 1, from where y stands
    y <- e^-h y + (1 - e^-h) m(y) + (1 - e^-2h)^1/2 k_z z            K times, h = `stride`

The draft is that posterior step with what the model's initialiser says of the data, `aux["draft"]` of a prediction, or else
with its mean; with `draft` False the chain starts from x_t. A network trained for it is in `learn.recovery`, but the target
is that of any denoiser: where steps are long, x_s given x_t has several hills, which no Gaussian step can meet and K
steps can. A step that lands on the data has no hills left and takes the mean.

Shapes   x (B, ...), any units. 1 + K calls a step, one where it lands on the data.
Paper    Zhu, Xie, Wu, Gao 2023, "Learning energy-based models by cooperative diffusion recovery likelihood" (arXiv
         2309.05153), algorithms 1 and 2; the chain: Gao et al. 2020 (2012.08125), eq. 17
Off      langevin = 0 is the draft alone: `ancestral`, bit for bit, for a model without an initialiser.
Differs  the pull of x_t and of the noise, linear in y, is integrated exactly, so no stride is unstable; theirs is an Euler
         step of length b^2 / 2 = h v. A chain without a draft starts from x_t as it is, theirs from the same at its own scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import Field, model_validator
from torch import Tensor

from ebbtide.core.key import Noise
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.time import combine, nil, pick, spread, where
from ebbtide.core.tree import Memory, Tree
from ebbtide.process.affine import Affine, Weights


@part("solve", "recovery", paper="2309.05153", needs={"affine"}, off={"langevin": 0}, baseline="ancestral")
class Recovery(Solver):
    """Recovery likelihood: draft the next point, then refine it by Langevin steps on p(x_s | x_t).

    langevin   steps of the chain, K
    stride     length of each, in units of the time in which the chain forgets
    draft      whether it starts from a draft
    """

    langevin: Annotated[int, Field(ge=0)] = 15
    stride: Annotated[float, Field(gt=0)] = 0.5
    draft: bool = True
    stochastic = True

    @model_validator(mode="after")
    def _moves(self) -> Recovery:
        if not (self.draft or self.langevin):
            raise ValueError("without a draft the chain needs at least one Langevin step")
        return self

    @property
    def order(self) -> float | None:
        # what K steps leave of a start that is not a draft does not shrink with the step
        return 1 if self.draft else None

    @property
    def calls(self) -> int:
        return 1 + self.langevin

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        w = process.weights(state.t, s, 1.0)
        lands = spread(w.noise, s) == 0
        guess = pred.aux["draft"] if isinstance(pred.aux, dict) and "draft" in pred.aux else pred.mean
        guess = guess if guess is pred.mean else where(lands, pred.mean, guess)
        y = process.apply(w, state.x, [(w.x0, guess)], state.cond, ask.noise)
        if nil(w.noise) or not self.langevin:
            return Move(y), pred
        if not self.draft:
            y = where(lands, y, state.x)
        mean = lambda y: ask(y, s, role="stage").mean  # noqa: E731
        return Move(chain(process, w, y, state.x, mean, ask.noise, state.cond, self.langevin, self.stride)), pred


def chain(
    process: Affine,
    w: Weights,
    y: Tensor,
    x: Tensor,
    mean: Callable[[Tensor], Tensor],
    noise: Noise,
    cond: dict[str, Tree],
    count: int,
    stride: float,
) -> Tensor:
    """`count` Langevin steps on p(x_s | x_t = x) from y; x and y are (B, ...).

    w      the weights of the posterior step from t to s, eta = 1; a unit without noise there stays where it is
    mean   E[x0 | x_s = y], the model
    """
    turn = pick(w.noise == 0, 0.0 * w.noise, -math.expm1(-stride))
    fresh = w.noise * math.sqrt(-math.expm1(-2 * stride))
    for k in range(count):
        terms = [(1.0 - turn, y), (turn * w.x, x), (turn * w.x0, mean(y))]
        if process.ended:
            terms.append((turn * w.y, process.end(cond)))
        y = combine(*terms, (fresh, noise.fold(k).normal(x)))
    return y
