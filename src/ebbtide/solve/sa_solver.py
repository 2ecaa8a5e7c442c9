"""SA-Solver: a stochastic Adams method, predictor and corrector, for the reverse SDE of strength tau.

    dx = (flow, with the score weighed by 1 + tau^2) dt + tau g dw
    x_s = (c_s / c_t) e^(-tau^2 h) x_t + a_s sum_k (integral of (1 + tau^2) e^(-(1 + tau^2)(lam_s - lam)) l_k(lam)) x0_k + noise

tau = 0 is the flow, tau = 1 the reverse SDE of the forward process. The corrector adds the slope at the end of the step and
keeps the noise that the predictor drew. Noise is drawn by the steps that begin within `between`; the others follow the flow.

Shapes   see `multistep`; memory: `terms` slopes
Paper    Xue et al. 2023, "SA-Solver: stochastic Adams solver for fast sampling of diffusion models" (arXiv 2309.05019),
         section 5
Off      tau = 0 with terms = 1 and without the corrector is `euler`, bit for bit.
Differs  the range is one of times, where the paper's experiments name levels. Of weak order 2.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.affine import Affine
from ebbtide.solve.multistep import SecondOrder

Share = Annotated[float, Field(ge=0, le=1)]


@part(
    "solve",
    "sa-solver",
    paper="2309.05019",
    needs={"affine"},
    off={"tau": 0.0, "terms": 1, "corrector": False},
    baseline="euler",
)
class SASolver(SecondOrder):
    """SA-Solver: a stochastic Adams method, predictor and corrector, for the reverse SDE of strength tau.

    between  the times, the lower first, between which a step that begins there draws noise
    """

    examples = ({"between": [0.2, 0.8]},)

    terms: Literal[1, 2, 3] = 2
    corrector: bool = True
    tau: Annotated[float, Field(ge=0)] = 1.0
    between: tuple[Share, Share] = (0.0, 1.0)

    @model_validator(mode="after")
    def _range(self) -> SASolver:
        if self.between[0] > self.between[1]:
            raise ValueError("between names the time nearer to the data first, as in [0.2, 0.8]")
        return self

    @property
    def stochastic(self) -> bool:
        return self.tau > 0

    def noise(self, process: Affine, t: Tensor, s: Tensor) -> float | Tensor:
        if self.tau == 0:
            return 0.0
        h = (process.lam(s) - process.lam(t)).clamp_min(0)
        fresh, drawn = 1 - (-2 * h).exp(), 1 - (-2 * self.tau**2 * h).exp()
        low, high = self.between
        return (drawn / fresh.clamp_min(1e-300)).sqrt() * ((h > 0) & (t >= low) & (t <= high))
