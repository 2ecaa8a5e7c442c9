"""Ancestral sampling: draw x_s from the posterior of the Markov chain, with fresh noise at every step.

    x_s = a_s x0 + c_s (rho eps_t + sqrt(1 - rho^2) z),   rho = a_t c_s / (a_s c_t)

It is DDIM at eta = 1: DDPM's sampler with its posterior variance, k-diffusion's Euler-ancestral, and for masked processes
the ancestral unmasking of MDLM.

Shapes   x (B, ...), any units. One call a step.
Paper    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eq. 6 and 7; Sahoo et al. 2024 (2406.07524), eq. 7, for masks
Off      eta = 0 is `euler`, bit for bit.
Differs  nothing.
"""

from __future__ import annotations

from ebbtide.core.registry import part
from ebbtide.solve.euler import Eta, Euler


@part("solve", "ancestral", paper="2006.11239", off={"eta": 0.0}, baseline="euler")
class Ancestral(Euler):
    """Ancestral sampling: draw x_s from the posterior of the Markov chain, with fresh noise at every step."""

    eta: Eta = 1.0
