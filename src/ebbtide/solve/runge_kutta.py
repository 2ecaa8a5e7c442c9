"""Explicit Runge-Kutta steps by their tableau, along the data or the noise in its own coordinate.

    rho_i = rho_t + c_i (rho_s - rho_t)
    z_i = z_t + (rho_s - rho_t) sum_j a_ij f_j,   z_s = z_t + (rho_s - rho_t) sum_j b_j f_j

with rho = a / c and f = x0 (`space` "data"), or rho = c / a and f = eps ("noise"): there the flow has no linear part, so the
classical tableaux keep their order. bogacki-shampine and dopri5 have an embedded step that estimates the local error; its
last call is made only where the grid asks for an error.

Shapes   x (B, ...), any units; as many calls a step as the tableau has stages
Source   Hairer, Norsett, Wanner 1993, "Solving ordinary differential equations I", tables II.1.2, II.5.2; Bogacki, Shampine
         1989; Dormand, Prince 1980
Off      tableau = "euler" is `euler`, bit for bit.
Differs  the step that lands on the data (c_s = 0), and in the noise space the one from a_t = 0, is DDIM: rho is infinite.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.affine import Affine
from ebbtide.solve.coordinates import SIGN, Space
from ebbtide.solve.stages import Row, Staged


class Tableau(NamedTuple):
    """Places c_1..., rows a_i (f_0 left out), weights b and those of the embedded step, the slope at its end last."""

    order: int
    c: tuple[float, ...] = ()
    a: tuple[tuple[float, ...], ...] = ()
    b: tuple[float, ...] = ()
    lower: tuple[float, ...] | None = None
    end: float = 0.0


TABLEAUX = {
    "euler": Tableau(1),
    "midpoint": Tableau(2, (1 / 2,), ((),), (1.0,)),
    "ralston": Tableau(2, (2 / 3,), ((),), (3 / 4,)),
    "bogacki-shampine": Tableau(3, (1 / 2, 3 / 4), ((), (3 / 4,)), (1 / 3, 4 / 9), (1 / 4, 1 / 3), 1 / 8),
    "rk4": Tableau(4, (1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1.0)), (1 / 3, 1 / 3, 1 / 6)),
    "dopri5": Tableau(
        5,
        (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
        (
            (),
            (9 / 40,),
            (-56 / 15, 32 / 9),
            (-25360 / 2187, 64448 / 6561, -212 / 729),
            (-355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        (0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100),
        1 / 40,
    ),
}


@part("solve", "runge-kutta", needs={"affine"}, gives={"err"}, off={"tableau": "euler"}, baseline="euler")
class RungeKutta(Staged):
    """Explicit Runge-Kutta steps by their tableau, along the data or the noise in its own coordinate."""

    tableau: Literal["euler", "midpoint", "ralston", "bogacki-shampine", "rk4", "dopri5"] = "rk4"
    space: Space = "data"

    @property
    def order(self) -> int:
        return TABLEAUX[self.tableau].order

    @property
    def calls(self) -> int:
        return 1 + len(TABLEAUX[self.tableau].c)

    @property
    def end(self) -> float:
        return TABLEAUX[self.tableau].end

    def rows(self, process: Affine, t: Tensor, s: Tensor, *place: Tensor) -> list[Row]:
        tableau, sign = TABLEAUX[self.tableau], SIGN[self.space]
        rho, end = (sign * process.lam(t)).exp(), (sign * process.lam(s)).exp()
        one = torch.ones_like(t)
        rows = []
        for c, a in zip(tableau.c, tableau.a, strict=True):
            at = s if c == 1 else process.time(sign * (rho + c * (end - rho)).log())
            rows.append(Row(at, tuple(v / c * one for v in a)))
        return [*rows, Row(s, tuple(v * one for v in tableau.b))]

    def lower(self, rows: list[Row]) -> tuple[Tensor, ...]:
        less = TABLEAUX[self.tableau].lower
        if less is None:
            return super().lower(rows)
        return tuple(torch.full_like(w, v) for w, v in zip(rows[-1].weights, less, strict=True))
