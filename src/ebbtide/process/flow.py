"""Rectified flow: a straight line between data and noise.

    x_t = (1 - t) x0 + t eps,   u = dx/dt = eps - x0,   t = 1 / (1 + exp(lam))

Paper    Liu, Gong, Liu 2023, "Flow straight and fast" (arXiv 2209.03003), section 2; Lipman et al. 2023 (2210.02747)
Differs  time runs from 1 (noise) to 0 (data) as everywhere here; those papers run it the other way.
"""

from __future__ import annotations

from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.affine import Affine


@part("process", "flow", paper="2209.03003")
class Flow(Affine):
    """Rectified flow: a straight line between data and noise."""

    gives = Affine.gives | {"gaussian"}

    def a(self, t: Tensor) -> Tensor:
        return 1 - t

    def c(self, t: Tensor) -> Tensor:
        return t

    def time(self, lam: Tensor) -> Tensor:
        return 1 / (1 + lam.exp())  # sigmoid would round by the length of the tensor
