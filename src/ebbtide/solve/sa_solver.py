"""SA-Solver: a stochastic Adams method, predictor and corrector, for the reverse SDE of strength tau.

    dx = (flow, with the score weighed by 1 + tau^2) dt + tau g dw
    x_s = (c_s / c_t) e^(-tau^2 h) x_t + a_s sum_k (integral of (1 + tau^2) e^(-(1 + tau^2)(lam_s - lam)) l_k(lam)) x0_k + noise

tau = 0 is the flow, tau = 1 the reverse SDE of the forward process. The corrector adds the slope at the end of the step and
keeps the noise that the predictor drew.

Shapes   see `multistep`; memory: `terms` slopes
Paper    Xue et al. 2023, "SA-Solver: stochastic Adams solver for fast sampling of diffusion models" (arXiv 2309.05019),
         section 5
Off      tau = 0 with terms = 1 and without the corrector is `euler`, bit for bit.
Differs  tau is the same at all times; the paper's experiments set it to 0 outside a range of levels. Of weak order 2.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.affine import Affine
from ebbtide.solve.multistep import SecondOrder


@part(
    "solve",
    "sa-solver",
    paper="2309.05019",
    needs={"affine"},
    off={"tau": 0.0, "terms": 1, "corrector": False},
    baseline="euler",
)
class SASolver(SecondOrder):
    """SA-Solver: a stochastic Adams method, predictor and corrector, for the reverse SDE of strength tau."""

    terms: Literal[1, 2, 3] = 2
    corrector: bool = True
    tau: Annotated[float, Field(ge=0)] = 1.0

    @property
    def stochastic(self) -> bool:
        return self.tau > 0

    def noise(self, process: Affine, t: Tensor, s: Tensor) -> float | Tensor:
        if self.tau == 0:
            return 0.0
        h = (process.lam(s) - process.lam(t)).clamp_min(0)
        fresh, drawn = 1 - (-2 * h).exp(), 1 - (-2 * self.tau**2 * h).exp()
        return (drawn / fresh.clamp_min(1e-300)).sqrt() * (h > 0)
