"""Solvers that ask within a step: explicit Runge-Kutta steps along the slopes of a coordinate.

    x_i = DDIM(x_t; t -> t_i) + E_i sum_j a_ij (f_j - f_0)              stages, f_i the slope at (x_i, t_i)
    x_s = DDIM(x_t; t -> s)   + E   sum_j b_j  (f_j - f_0)

Rows are normalised, so the slopes of a stage weigh 1 in all with f_0, and a step without stages is DDIM bit for bit. Every
x_i is linear in x_t, y, the noise and the data predictions of the stages before it: these weights are worked out from the
times alone, so that a stage costs one pass for each prediction, in whatever coordinate its slopes are.

Shapes   x (B, ...), any units; no memory
Source   Hairer, Norsett, Wanner 1993, "Solving ordinary differential equations I", section II.1, for the form
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.state import Move, Pred, Query, State
from ebbtide.core.time import Weight, full, nil, spread, unit_mean
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine, Weights
from ebbtide.solve.coordinates import KIND, Space, slide


class Row(NamedTuple):
    """One row of a tableau: the time it leads to and the weights of the slopes of earlier stages, f_0 left out."""

    t: Tensor
    weights: tuple[Tensor, ...]


class Staged(Solver):
    """An explicit Runge-Kutta step along the slopes of a coordinate."""

    space: Space = "data"

    @property
    def end(self) -> float:
        """The weight that the embedded step gives the slope at the end of the step: one more call where it is not 0."""
        return 0.0

    def place(self, state: State, ask: Ask) -> tuple[Tensor, ...]:
        """What tells the steps of a unit apart beside their times, float64 shaped like them; nothing by default."""
        return ()

    def rows(self, process: Affine, t: Tensor, s: Tensor, *place: Tensor) -> list[Row]:
        """The stages, then the step itself, for units at this place."""
        raise NotImplementedError

    def lower(self, rows: list[Row]) -> tuple[Tensor, ...]:
        """The weights of an embedded step of lower order, in place of those of the last row."""
        return tuple(torch.zeros_like(w) for w in rows[-1].weights)

    def weigh(self, process: Affine, t: Tensor, s: Tensor, *place: Tensor) -> tuple[Tensor, ...]:
        """The time of each row and the weights of its x: of x_t, y, noise, and of one more prediction than the row before.

        Last the weights of the distance to the embedded step, in which the prediction at the end counts too.
        """
        rows, zero, one = self.rows(process, t, s, *place), torch.zeros_like(t), torch.ones_like(t)
        rest = [zero] * (len(rows) + 1)

        def slope(x: list[Tensor], at: Tensor, k: int) -> list[Tensor]:
            """The weights of the slope at a stage: its x, and the k-th prediction."""
            of_x, of_x0, of_y = process.kinds_of(KIND[self.space], at)
            found = [of_x * v for v in x]
            found[1], found[3 + k] = found[1] + of_y, found[3 + k] + of_x0
            return found

        def moved(x: list[Tensor], along: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
            for w, f in zip(weights, slopes[1:], strict=False):
                w = torch.where(process.c(s) == 0, 0.0, along * w)
                x = [v + w * (a - b) for v, a, b in zip(x, f, slopes[0], strict=True)]
            return x

        slopes = [slope([one, zero, zero, *rest], t, 0)]
        out: list[Tensor] = []
        for k, row in enumerate(rows):
            go = slide(process, self.space, t, row.t)
            x = moved([go.x, go.y, go.noise, go.x0, *rest[1:]], go.along, row.weights)
            out += [row.t, *x[: 4 + k]]
            slopes.append(slope(x, row.t, k + 1))
        gap = [w - less for w, less in zip(rows[-1].weights, self.lower(rows), strict=True)]
        return *out, *moved([zero, zero, zero, *rest], go.along, [*gap, torch.full_like(t, -self.end)])

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        return self.advance(state, pred, s, ask, process), pred

    def advance(self, state: State, pred: Pred, s: Tensor, ask: Ask, process: Affine) -> Move:
        """The step, its first prediction given."""
        flat = process.once(self, lambda *at: self.weigh(process, *at), state.t, s, *self.place(state, ask))
        rows, begin = [], 0
        for k in range(int(self.calls)):
            rows.append(flat[begin : begin + 5 + k])
            begin += 5 + k
        answers, x, noise = [pred.mean], state.x, ask.noise

        def combined(of_x: Weight, of_y: Weight, of_noise: Weight, *of_answers: Weight) -> Tensor:
            terms = list(zip(of_answers, answers, strict=False))
            return process.apply(Weights(of_x, 0.0, of_y, of_noise, 0.0, 0.0), state.x, terms, state.cond, noise)

        for k, (at, *weights) in enumerate(rows):
            wanted = [later[5 + k] for later in rows[k + 1 :]]
            if k < len(rows) - 1 and all(nil(w) for w in wanted):
                answers.append(torch.zeros_like(x))  # never weighed
                continue
            x = combined(*weights)
            if k < len(rows) - 1:
                answers.append(ask_where(ask, x, spread(at, state.t), wanted))
        if not asked(ask):
            return Move(x)
        if all(nil(w) for w in flat[begin:]):
            return Move(x, err=torch.zeros_like(state.t))
        if not nil(flat[-1]):
            answers.append(ask(x, s, role="stage").mean)
        return Move(x, err=relative(combined(*flat[begin:]), x, state.t))


def ask_where(ask: Ask, x: Tensor, t: Tensor, weights: Sequence[Weight]) -> Tensor:
    """The data predictions at a stage, computed for the elements only that have a unit with a weight for it."""
    if any(full(w) for w in weights):
        mean: Tensor = ask(x, t, role="stage").mean
        return mean
    wanted = torch.stack([spread(w, t) != 0 for w in weights]).any(0)
    rows = wanted.reshape(len(wanted), -1).any(1).nonzero()[:, 0]
    some = ask.many([Query(x, t, role="stage").rows(rows)])[0].mean
    out: Tensor = torch.zeros_like(x).index_copy(0, rows.to(x.device), some)
    return out


def asked(ask: Ask) -> bool:
    """Whether the grid wants to know the local error of a step: it may cost a call, and time."""
    return "err" in ask.loop.grid.entry.needs


def relative(gap: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """|gap| / max(1, |x|) of each unit, root mean squares, on the CPU."""
    size = unit_mean(x.square(), t).sqrt().clamp_min(1.0)
    return (unit_mean(gap.square(), t).sqrt() / size).cpu()
