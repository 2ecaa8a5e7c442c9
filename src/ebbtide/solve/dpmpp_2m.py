"""DPM-Solver++(2M): a second-order step for one call, from the slope of the last two data predictions.

    x_s = (c_s / c_t) x_t + a_s (1 - e^-h) ((1 + r) x0_t - r x0_prev),   h = lam_s - lam_t,   r = h / (2 h_prev)

Shapes   x (B, ...), any units; memory: x0 like x, h float64 shaped like t (0: no history, the step is of order 1).
Paper    Lu et al. 2022, "DPM-Solver++" (arXiv 2211.01095), algorithm 2
Off      order = 1 is `euler`, bit for bit.
Differs  the step that lands on the data itself (c_s = 0) is of order 1, where the extrapolation would diverge.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Memory, Move, Pred, State
from ebbtide.core.time import Weight, pick, ratio, spread, weight
from ebbtide.process.affine import Affine


@part("solve", "dpmpp-2m", paper="2211.01095", needs={"affine"}, off={"order": 1}, baseline="euler")
class DPMpp2M(Solver):
    """DPM-Solver++(2M): a second-order step for one call, from the slope of the last two data predictions."""

    order: Literal[1, 2] = 2

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        w = process.weights(state.t, s)
        if self.order == 1:
            return Move(process.apply(w, state.x, [(1.0, pred.mean)], state.cond, ask.noise)), pred
        h = w.lam_s - w.lam_t
        estimate: list[tuple[Weight, Tensor]] = [(1.0, pred.mean)]
        if memory:
            r = pick(w.x == 0, 0.0, ratio(h, 2 * weight(memory["h"])))
            estimate = [(1 + r, pred.mean), (-r, memory["x0"])]
        x = process.apply(w, state.x, estimate, state.cond, ask.noise)
        return Move(x, {"x0": pred.mean, "h": spread(h, state.t)}), pred
