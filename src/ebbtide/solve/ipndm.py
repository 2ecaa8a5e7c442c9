"""Improved PNDM: Adams-Bashforth for even steps on the noise, DDIM for the transfer, rising in order from a cold start.

    eps' = (55 eps_t - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24,   x_s = DDIM(x_t, eps')

The weights are those of even steps whatever the grid.

Shapes   see `multistep`; memory: terms - 1 slopes
Paper    Zhang, Chen 2023 (arXiv 2204.13902), section 4 (iPNDM); Liu et al. 2022, "PNDM" (2202.09778), eq. 12
Off      terms = 1 is `euler`, bit for bit.
Differs  nothing; of order 2, as the weights take no account of how sigma bends within a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.affine import Affine
from ebbtide.solve.multistep import SecondOrder


class Even(SecondOrder):
    """Adams-Bashforth on the noise with the weights of even steps."""

    space = "noise"
    variable = "sigma"

    def nodes(self, process: Affine, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> list[Tensor]:
        return [torch.full_like(t, -float(k)) for k in range(len(past) + 1)]


@part("solve", "ipndm", paper="2204.13902", needs={"affine"}, off={"terms": 1}, baseline="euler")
class IPNDM(Even):
    """Improved PNDM: Adams-Bashforth for even steps on the noise, DDIM for the transfer, rising in order from a cold start."""

    terms: Literal[1, 2, 3, 4] = 4
