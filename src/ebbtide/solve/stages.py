"""Solvers that ask within a step: explicit Runge-Kutta steps along the slopes of a coordinate.

    x_i = DDIM(x_t; t -> t_i) + E_i sum_j a_ij (f_j - f_0)              stages, f_i the slope at (x_i, t_i)
    x_s = DDIM(x_t; t -> s)   + E   sum_j b_j  (f_j - f_0)

Rows are normalised, so the slopes of a stage weigh 1 in all with f_0, and a step without stages is DDIM bit for bit.

Shapes   x (B, ...), any units; no memory
Source   Hairer, Norsett, Wanner 1993, "Solving ordinary differential equations I", section II.1, for the form
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.state import Memory, Move, Pred, Query, State
from ebbtide.core.time import Weight, combine, nil, spread, unit_mean
from ebbtide.process.affine import Affine, Weights
from ebbtide.solve.coordinates import KIND, Space, slide


class Row(NamedTuple):
    """One row of a tableau: the time it leads to and the weights of the slopes of earlier stages, f_0 left out."""

    t: Tensor
    weights: tuple[Tensor, ...]


class Staged(Solver):
    """An explicit Runge-Kutta step along the slopes of a coordinate.

    eta   0 the flow, 1 the posterior of the Markov chain, for the step as a whole (its stages lie on the flow)
    """

    space: Space = "data"
    eta: float = 0.0

    @property
    def end(self) -> float:
        """The weight that the embedded step gives the slope at the end of the step: one more call where it is not 0."""
        return 0.0

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def rows(self, process: Affine, t: Tensor, s: Tensor, i: Tensor) -> list[Row]:
        """The stages, then the step itself, for units at their i-th step."""
        raise NotImplementedError

    def lower(self, rows: list[Row]) -> tuple[Tensor, ...]:
        """The weights of an embedded step of lower order, in place of those of the last row."""
        return tuple(torch.zeros_like(w) for w in rows[-1].weights)

    def weigh(self, process: Affine, t: Tensor, s: Tensor, i: Tensor) -> tuple[Tensor, ...]:
        """Of every row: its time, the weights of x, x0, y and noise, and those of the slopes."""
        of_x, of_x0, of_y = process.kinds_of(KIND[self.space], t)
        out: list[Tensor] = []
        rows = self.rows(process, t, s, i)
        for k, row in enumerate(rows):
            go = slide(process, self.space, t, row.t, self.eta if k == len(rows) - 1 else 0.0)
            along = [torch.where(process.c(s) == 0, 0.0, go.along * w) for w in row.weights]
            own = torch.zeros_like(t)
            for w in along:
                own = own - w
            out += [row.t, go.x + own * of_x, go.x0 + own * of_x0, go.y + own * of_y, go.noise, *along]
        landing = process.c(s) == 0
        gap = [w - less for w, less in zip(rows[-1].weights, self.lower(rows), strict=True)]
        gap.append(torch.full_like(t, -self.end))
        return *out, *(torch.where(landing, 0.0, go.along * w) for w in gap)

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        return self.advance(state, pred, s, ask, process), pred

    def advance(self, state: State, pred: Pred, s: Tensor, ask: Ask, process: Affine) -> Move:
        """The step, its first prediction given."""
        flat = list(
            process.once(self, lambda t, s, i: self.weigh(process, t, s, i), state.t, s, state.i.to(torch.float64))
        )
        rows = []
        for k in range(int(self.calls)):  # the k-th row has k slopes
            rows.append(flat[: 5 + k])
            flat = flat[5 + k :]
        slopes: list[Tensor] = []
        x = state.x
        for k, (t, of_x, of_x0, of_y, of_noise, *weights) in enumerate(rows):
            w = Weights(of_x, of_x0, of_y, of_noise, 0.0, 0.0)
            terms = [(of_x0, pred.mean), *zip(weights, slopes, strict=True)]
            wanted = k == len(rows) - 1 or any(not nil(later[5 + k]) for later in rows[k + 1 :])
            if not wanted:
                slopes.append(torch.zeros_like(x))  # never weighed
                continue
            x = process.apply(w, state.x, terms, state.cond, ask.noise)
            if k < len(rows) - 1:
                at = spread(t, state.t)
                units = torch.zeros(at.shape, dtype=torch.bool)
                for later in rows[k + 1 :]:
                    units = units | (spread(later[5 + k], at) != 0)
                slopes.append(process.from_x0(KIND[self.space], ask_where(ask, x, at, units), x, at, state.cond))
        if "err" not in ask.loop.grid.entry.needs:
            return Move(x)
        if not nil(flat[-1]):
            slopes.append(process.from_x0(KIND[self.space], ask(x, s, role="stage").mean, x, s, state.cond))
        return Move(x, err=self.error(state, pred, x, slopes, flat[: len(slopes)], process))

    def error(
        self, state: State, pred: Pred, x: Tensor, slopes: list[Tensor], gap: list[Weight], process: Affine
    ) -> Tensor:
        """The distance to the embedded step, relative to max(1, |x|), of each unit: root mean squares, on the CPU."""
        if all(nil(w) for w in gap):
            return torch.zeros_like(state.t)
        first = process.from_x0(KIND[self.space], pred.mean, state.x, state.t, state.cond)
        own = -sum(gap)
        distance = combine((own, first), *zip(gap, slopes, strict=True))
        return relative(distance, x, state.t)


def ask_where(ask: Ask, x: Tensor, t: Tensor, units: Tensor) -> Tensor:
    """The data predictions at a stage, computed for the elements only that have a unit which needs it."""
    rows = units.reshape(len(units), -1).any(1).nonzero()[:, 0]
    if len(rows) == len(units):
        mean: Tensor = ask(x, t, role="stage").mean
        return mean
    some = ask.many([Query(x, t, role="stage").rows(rows)])[0].mean
    out: Tensor = torch.zeros_like(x).index_copy(0, rows.to(x.device), some)
    return out


def relative(gap: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """|gap| / max(1, |x|) of each unit, root mean squares, on the CPU."""
    size = unit_mean(x.square(), t).sqrt().clamp_min(1.0)
    return (unit_mean(gap.square(), t).sqrt() / size).cpu()
