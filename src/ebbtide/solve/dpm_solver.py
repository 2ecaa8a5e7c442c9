"""DPM-Solver: one step of order 1 to 3 in log-SNR, the linear part exactly.

    lam_i = lam_t + c_i h,   order 2: c = r1 = 1/2,   order 3: c = r1, r2 = 1/3, 2/3
    order 2   x_s = DDIM + E / (2 r1) (f_1 - f_0)
    order 3   x_2 = DDIM + E_2 (r2 / r1) I_1(r2 h) (f_1 - f_0),   x_s = DDIM + E I_1(h) / r2 (f_2 - f_0)

I_1 is the mean place of the weight exp(+-lam) within the step, see `coordinates`. `space` "noise" is DPM-Solver, "data"
DPM-Solver++. The last steps may be of lower orders, so that a run makes any number of calls: the schedule called fast is

    N = 3 m      m - 1 steps of order 3, then 2, 1        tail (2, 1)
    N = 3 m + 1  m steps of order 3, then 1               tail (1,)       N // 3 + 1 steps even in log-SNR, N calls
    N = 3 m + 2  m steps of order 3, then 2               tail (2,)

Shapes   x (B, ...), any units; `order` calls a step, one where it lands on the data (c_s = 0)
Paper    Lu et al. 2022, "DPM-Solver" (arXiv 2206.00927), algorithms 1, 2 and section 3.4; "DPM-Solver++" (2211.01095)
Off      order = 1 is `euler`, bit for bit.
Differs  a step that lands on the data is of order 1, whatever the tail. The error estimate compares with the step of one order
         less; order 1 has none, and steps that are chosen by it have no tail.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.process.affine import Affine
from ebbtide.solve.coordinates import Space, moments, slide
from ebbtide.solve.stages import Row, Staged, asked


def fast(calls: int) -> tuple[int, tuple[int, ...]]:
    """The steps and the tail of the schedule called fast."""
    return calls // 3 + 1, ((2, 1), (1,), (2,))[calls % 3]


@part("solve", "dpm-solver", paper="2206.00927", needs={"affine"}, gives={"err"}, off={"order": 1}, baseline="euler")
class DPMSolver(Staged):
    """DPM-Solver: one step of order 1 to 3 in log-SNR, the linear part exactly.

    tail   the orders of the last steps, where they lie below `order`; a step of order 1 among them leaves a run of order 2
    """

    examples = ({"tail": [2]},)
    order: Literal[1, 2, 3] = 3
    space: Space = "noise"
    tail: tuple[Literal[1, 2], ...] = ()

    @property
    def calls(self) -> int:
        return self.order

    def place(self, state: State, ask: Ask) -> tuple[Tensor, ...]:
        """The order of each unit's step, where they differ."""
        if not self.tail:
            return ()
        order = torch.full_like(state.t, self.order)
        tail = () if asked(ask) else self.tail  # a grid that goes by the error does not know its last steps
        for k in range(len(tail), 0, -1):  # a unit that moves no more after k steps makes one of its last k
            order = torch.where(ask.ahead(k + 1) == ask.ahead(k), min(tail[-k], self.order), order)
        return (order,)

    def rows(self, process: Affine, t: Tensor, s: Tensor, *place: Tensor) -> list[Row]:
        if self.order == 1:
            return [Row(s, ())]
        lam, end = process.lam(t), process.lam(s)
        fade = slide(process, self.space, t, s).fade
        mean = lambda to: moments(process, "log-snr", t, to, fade, 1)[1]  # noqa: E731
        at = lambda r: process.time(lam + r * (end - lam))  # noqa: E731
        (own,) = place or (torch.full_like(t, self.order),)
        on = lambda order: (own == order).to(t.dtype)  # noqa: E731
        first, second = at(1 / (2 + on(3))), at(2 / 3)
        if self.order == 2:
            return [Row(first, ()), Row(s, (on(2),))]
        return [Row(first, ()), Row(second, (on(3) * 2 * mean(second),)), Row(s, (on(2), on(3) * 1.5 * mean(s)))]

    def lower(self, rows: list[Row]) -> tuple[Tensor, ...]:
        if self.order < 3:
            return super().lower(rows)
        first, _ = rows[-1].weights
        return first + 1.5, torch.zeros_like(first)
