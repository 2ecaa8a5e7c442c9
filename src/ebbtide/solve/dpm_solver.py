"""DPM-Solver: one step of order 1 to 3 in log-SNR, the linear part exactly.

    lam_i = lam_t + c_i h,   order 2: c = r1 = 1/2,   order 3: c = r1, r2 = 1/3, 2/3
    order 2   x_s = DDIM + E / (2 r1) (f_1 - f_0)
    order 3   x_2 = DDIM + E_2 (r2 / r1) I_1(r2 h) (f_1 - f_0),   x_s = DDIM + E I_1(h) / r2 (f_2 - f_0)

I_1 is the mean place of the weight exp(+-lam) within the step, see `coordinates`. `space` "noise" is DPM-Solver, "data"
DPM-Solver++.

Shapes   x (B, ...), any units; `order` calls a step, one where it lands on the data (c_s = 0)
Paper    Lu et al. 2022, "DPM-Solver" (arXiv 2206.00927), algorithms 1, 2 and section 3.4; "DPM-Solver++" (2211.01095)
Off      order = 1 is `euler`, bit for bit.
Differs  the schedule called fast, which lowers the order of the last steps, is not built. The step that lands on the data is of
         order 1. The error estimate compares with the step of one order less.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.affine import Affine
from ebbtide.solve.coordinates import Space, moments, slide
from ebbtide.solve.stages import Row, Staged


@part("solve", "dpm-solver", paper="2206.00927", needs={"affine"}, gives={"err"}, off={"order": 1}, baseline="euler")
class DPMSolver(Staged):
    """DPM-Solver: one step of order 1 to 3 in log-SNR, the linear part exactly."""

    order: Literal[1, 2, 3] = 3
    space: Space = "noise"

    @property
    def calls(self) -> int:  # type: ignore[override]
        return self.order

    @property
    def fractions(self) -> tuple[float, ...]:
        """r1 and r2."""
        return {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}[self.order]

    def rows(self, process: Affine, t: Tensor, s: Tensor, i: Tensor) -> list[Row]:
        lam, end = process.lam(t), process.lam(s)
        fade = slide(process, self.space, t, s, self.eta).fade
        if self.order == 1:
            return [Row(s, ())]
        mean = lambda to: moments(process, self.space, "log-snr", t, to, fade, 1)[1]  # noqa: E731
        stages = [process.time(lam + r * (end - lam)) for r in self.fractions]
        one = torch.ones_like(t)
        if self.order == 2:
            return [Row(stages[0], ()), Row(s, (one,))]
        return [Row(stages[0], ()), Row(stages[1], (2 * mean(stages[1]),)), Row(s, (0 * one, 1.5 * mean(s)))]

    def lower(self, rows: list[Row]) -> tuple[Tensor, ...]:
        if self.order < 3:
            return super().lower(rows)
        first, _ = rows[-1].weights
        return first + 1.5, torch.zeros_like(first)
