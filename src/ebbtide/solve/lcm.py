"""Consistency steps: jump to the data in one call, then back up to the next time with fresh noise.

    x_s = a_s x0 + b_s y + c_s (sqrt(1 - r^2) eps_t + r z),   x0 = f(x_t, t),   eps_t = (x_t - a_t x0 - b_t y) / c_t

r = `renew` is the share of the noise that is drawn afresh. At 1 a step keeps nothing of x_t but the data that it leads to:
for a model that maps x_t to the data along the flow (consistency, LCM, mean flow) it then ends in the law of x_s exactly,
whatever the grid. The step that lands on the data returns x0.

Shapes   x (B, ...), any units. One call a step.
Paper    Luo et al. 2023, "Latent consistency models" (arXiv 2310.04378), section 4.3; multistep sampling: Song et al. 2023,
         "Consistency models" (2303.01469), algorithm 1
Off      renew = 0 is `euler`, bit for bit.
Differs  the share is a choice (the papers have 1), and any process will do, those with an end y too. A model that says
         E[x0 | x_t] instead of a point of the flow loses up to half the variance of the data in many steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine, Weights
from ebbtide.solve.euler import Eta


@part(
    "solve",
    "lcm",
    paper="2310.04378",
    needs={"affine"},
    off={"renew": 0.0},
    baseline="euler",
    exempt={
        "order": "exact for maps onto the data only, which posterior means are not (tests/solve/test_stochastic.py)"
    },
)
class LCM(Solver):
    """Consistency steps: jump to the data in one call, then back up to the next time with fresh noise.

    renew   the share of the noise drawn afresh at every step: 1 all of it, 0 none
    """

    renew: Eta = 1.0

    @property
    def stochastic(self) -> bool:
        return self.renew > 0

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        w = renewed(process, state.t, s, self.renew)
        return Move(process.apply(w, state.x, [(w.x0, pred.mean)], state.cond, ask.noise)), pred


def renewed(process: Affine, t: Tensor, s: Tensor, share: float) -> Weights:
    """The weights of the move from t to s < t that draws this share of the noise afresh, whatever the process's chain."""
    if share == 0.0:
        return process.weights(t, s)
    found: Weights = process.once(("renewed", share), lambda t, s: _renewed(process, t, s, share), t, s)
    return found


def _renewed(process: Affine, t: Tensor, s: Tensor, share: float) -> Weights:
    w: Weights = process.weights_of(t, s, 0.0)
    down = s < t
    x = torch.where(down, (1 - share**2) ** 0.5 * w.x, w.x)
    # where the flow itself draws, at an end without noise, it draws all that there is to draw
    noise = torch.where(down & (w.noise == 0), share * process.c(s), w.noise)
    x0 = torch.where(down, process.a(s) - x * process.a(t), w.x0)
    b_t, b_s = process.b(t), process.b(s)
    y = w.y if b_t is None or b_s is None else torch.where(down, b_s - x * b_t, w.y)
    return Weights(x, x0, y, noise, w.lam_t, w.lam_s)
