"""S4: Langevin correction and reverse diffusion from one prediction, instead of the two of predictor and corrector.

    correct   x' = a x0 + b y + c ((1 - k) eps + r sqrt(k (2 - k)) z),   k = 2 snr^2,   eps = (x - a x0 - b y) / c at t
    diffuse   half of the linear flow with noise, the whole of the score's drift, the other half, with m between t and s:
              x_s = k_x x' + (a_s - k_x a) x0 + (b_s - k_x b) y + k_z z,   k_x = a c_s^2 / (a_s c^2)
              k_z^2 = (a_s / a_m)^2 (c^2 - (a c_m / a_m)^2) + c_m^2 - (a_m c_s / a_s)^2

The last step is what is predicted of the data.

Shapes   x (B, ...), any units, or fields, each moved by itself. One call a step.
Paper    Jo, Lee, Hwang 2022, "Score-based generative modeling of graphs via the system of stochastic differential equations"
         (arXiv 2202.02514), section 3.3 and algorithm 1
Off      the baseline is `langevin`, the predictor-corrector that it replaces.
Differs  the three draws of a step are one draw of their variance. What is kept between correction and drift is x0, not the
         score, so a step from pure noise (a = 0) is finite; the drift is integrated exactly. Lengths |z| / |score| are those of
         `langevin`. Where c = 0 before the step (the far end of a bridge) it is ancestral.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine, Weights
from ebbtide.solve.fields import Single, by_field


@part("solve", "s4", paper="2202.02514", needs={"continuous"}, baseline="langevin")
class S4(Solver):
    """S4: Langevin correction and reverse diffusion from one prediction, instead of the two of predictor and corrector.

    snr     signal-to-noise ratio of the correction; 0 corrects nothing
    scale   of the correction's noise
    """

    stochastic = True
    order = None
    snr: Annotated[float, Field(ge=0, le=math.sqrt(0.5))] = 0.05
    scale: Annotated[float, Field(ge=0)] = 0.7

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Any) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)

        def moved(f: Single) -> Tensor:
            p = f.process
            w = p.once(("s4", self.snr, self.scale), lambda t, s: self._weights(p, t, s), state.t, s)
            return p.apply(w, f.of(state.x), [(w.x0, f.of(pred.mean))], f.cond, f.noise(ask.noise))

        return Move(by_field(process, state.cond, moved)), pred

    def _weights(self, p: Affine, t: Tensor, s: Tensor) -> Weights:
        """The weights of the whole step, in tensor form; up in time, at rest and from c = 0 they are the process's own."""
        own = p.weights_of(t, s, 1.0)
        mid = (t + s) / 2
        (at, ct), (am, cm), (a, c) = ((p.a(v), p.c(v)) for v in (t, mid, s))
        here = (s < t) & (ct > 0) & (a > 0)
        one = torch.ones_like(at)
        ct_, am_, a_ = (torch.where(here, v, one) for v in (ct, am, a))
        k_x = at * c**2 / (a_ * ct_**2)
        k = 2 * self.snr**2
        before = (ct**2 - (at * cm / am_) ** 2).clamp_min(0) * (a / am_) ** 2
        after = (cm**2 - (am * c / a_) ** 2).clamp_min(0)
        jolt = (k_x * ct * self.scale) ** 2 * (k * (2 - k))
        k_z = torch.where(c > 0, (before + after + jolt).sqrt(), torch.zeros_like(c))
        k_x = (1 - k) * k_x
        k_y = torch.zeros_like(at)
        bt, b = p.b(t), p.b(s)
        if bt is not None and b is not None:
            k_y = b - k_x * bt
        pick = lambda new, old: torch.where(here, new, old)  # noqa: E731
        return Weights(
            pick(k_x, own.x), pick(a - k_x * at, own.x0), pick(k_y, own.y), pick(k_z, own.noise), own.lam_t, own.lam_s
        )
