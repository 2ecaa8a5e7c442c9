"""DPM-Solver++ singlestep: DPM-Solver of order 2 or 3 in the data space, and the reverse SDE by two steps to one slope.

    2S   x_m = DDIM to lam_t + h / 2,   x_s = DDIM + E (x0(x_m) - x0_t);   3S is `dpm-solver` of order 3
    SDE  x_m = k1 x_t + (a_m - k1 a_t) x0_t + n1 z1,   x_s = k1 k2 x_t + (a_s - k1 k2 a_t) x0(x_m) + k2 n1 z1 + n2 z2

k and n are the weights that the two halves of the step, with their eta, give the state and fresh noise. The whole step has the
noise z1 of its middle in it, and the slope that was found there: the covariance of the two is what makes it of weak order 2.

Shapes   x (B, ...), any units; 2 or 3 calls a step, one where it lands on the data (c_s = 0)
Paper    Lu et al. 2022, "DPM-Solver++" (arXiv 2211.01095), algorithm 1 and appendix A
Off      order = 1 is `euler`, bit for bit; the SDE form with middle = False is `ancestral`.
Differs  the SDE form is the publication's second-order rule with its two calls inside a step, as k-diffusion has it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.time import Weight, nil, spread
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine, Weights
from ebbtide.solve.coordinates import Space
from ebbtide.solve.dpm_solver import DPMSolver
from ebbtide.solve.euler import Eta
from ebbtide.solve.stages import ask_where


@part("solve", "dpmpp-2s", paper="2211.01095", needs={"affine"}, gives={"err"}, off={"order": 1}, baseline="euler")
class DPMpp2S(DPMSolver):
    """DPM-Solver++(2S): a midpoint step in log-SNR on the data predictions."""

    order: Literal[1, 2] = 2
    space: Space = "data"


@part("solve", "dpmpp-3s", paper="2211.01095", needs={"affine"}, gives={"err"}, off={"order": 1}, baseline="euler")
class DPMpp3S(DPMSolver):
    """DPM-Solver++(3S): a third-order step in log-SNR on the data predictions, three calls."""

    order: Literal[1, 2, 3] = 3
    space: Space = "data"


@part("solve", "dpmpp-2s-sde", paper="2211.01095", needs={"affine"}, off={"middle": False}, baseline="ancestral")
class DPMpp2SSDE(Solver):
    """DPM-Solver++(2S) for the reverse SDE: a step along the slope in its middle, whose noise it shares."""

    middle: bool = True
    eta: Eta = 1.0

    @property
    def order(self) -> int:
        return 2 if self.middle else 1

    @property
    def calls(self) -> int:
        return 2 if self.middle else 1

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def weigh(self, process: Affine, t: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        """The time of the middle; the weights of x, x0, y and z1 there; those of x, x0, x0(x_m), y, z1 and z2 at s."""
        lam = process.lam(t)
        m = torch.minimum(process.time(lam + (process.lam(s) - lam) / 2), t)
        each: list[Any] = [process.weights_of(*v, self.eta) for v in ((t, m), (m, s), (t, s))]
        first, then, whole = each
        two = torch.full_like(t, self.middle) * (process.c(s) > 0) * (s < t)
        x, y = then.x * first.x, then.y + then.x * first.y
        slope = process.a(s) - x * process.a(t)
        drawn = then.x * first.noise, then.noise
        one = [whole.x, whole.x0, 0 * t, whole.y, whole.noise, 0 * t]
        both = [x, 0 * t, slope, y, *drawn]
        kept = [torch.where(two > 0, b, a) for a, b in zip(one, both, strict=True)]
        return m, first.x, first.x0, first.y, first.noise, *kept

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        m, *first, x, x0, slope, y, z1, z2 = process.once(self, lambda t, s: self.weigh(process, t, s), state.t, s)
        terms: list[tuple[Weight, Tensor]] = [(x0, pred.mean)]
        if not nil(slope):
            of_x, of_x0, of_y, of_z = first
            w = Weights(of_x, of_x0, of_y, of_z, 0.0, 0.0)
            middle = process.apply(w, state.x, [(of_x0, pred.mean)], state.cond, ask.noise)
            terms.append((slope, ask_where(ask, middle, spread(m, state.t), [slope])))
        if not nil(z2):
            terms.append((z2, process.draw(state.x, ask.noise.fold(1))))
        return Move(process.apply(Weights(x, 0.0, y, z1, 0.0, 0.0), state.x, terms, state.cond, ask.noise)), pred
