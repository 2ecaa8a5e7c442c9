"""ER-SDE: the reverse SDE whose noise is chosen by a function of its level, between the flow and the Markov chain.

    x_s = (a_s m_s / (a_t m_t)) x_t + ... + noise,   m(sigma) = sigma (exp(sigma^0.3) + 10),   sigma = c / a

m says how much of the noise at t is still there at s; what is missing is drawn afresh. The data estimate is a polynomial
through the last `terms` predictions.

Shapes   see `multistep`; memory: terms - 1 slopes
Paper    Cui et al. 2023, "Elucidating the solution space of extended reverse-time SDE for diffusion models"
         (arXiv 2309.06169), section 4, ER-SDE 5
Off      strength = 0 with terms = 1 is `euler`, bit for bit.
Differs  the polynomial is in log-SNR, not in sigma, and the weight within a step is the exponential that has the step's ends
         right, which needs no quadrature of m. Of weak order 2.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.affine import Affine
from ebbtide.solve.multistep import SecondOrder


@part("solve", "er-sde", paper="2309.06169", needs={"affine"}, off={"strength": 0.0, "terms": 1}, baseline="euler")
class ERSDE(SecondOrder):
    """ER-SDE: the reverse SDE whose noise is chosen by a function of its level, between the flow and the Markov chain.

    strength   scales the log of what is forgotten: 0 nothing (the flow), 1 the paper's
    """

    terms: Literal[1, 2, 3] = 3
    strength: Annotated[float, Field(ge=0)] = 1.0

    @property
    def stochastic(self) -> bool:
        return self.strength > 0

    def noise(self, process: Affine, t: Tensor, s: Tensor) -> float | Tensor:
        if self.strength == 0:
            return 0.0
        here, there = process.lam(t), process.lam(s)
        kept = (self.strength * (_log_weight(there) - _log_weight(here))).clamp(max=0).exp()
        fresh = 1 - (-2 * (there - here).clamp_min(0)).exp()
        return ((1 - kept**2) / fresh.clamp_min(1e-300)).clamp_min(0).sqrt() * (there > here)


def _log_weight(lam: Tensor) -> Tensor:
    """log(m / sigma)."""
    return ((-0.3 * lam).exp().clamp(max=600.0).exp() + 10).log()
