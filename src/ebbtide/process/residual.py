"""Residual diffusion: data turns into its degraded version y while noise grows on a schedule of its own.

    x_t = x0 + b(t) (y - x0) + c(t) eps

    residual    b and c^2 / kappa^2 each constant (t), decreasing (2t - t^2) or increasing (t^2) in speed, or those of
                a diffusion, 1 - m and 1 - m^2 with m the signal weight of `vp-linear`
    resshift    c = kappa sqrt(b),  sqrt(b) = sqrt(b_1) (b_T / b_1)^(tau^power / 2),  tau = (T t - 1) / (T - 1) from
                t = 1 / T on, b linear in t before it;  sqrt(b_1) = noise_first / kappa,  b_T = last

Their chain adds b_t - b_s of the residual y - x0 and fresh noise to x_s, so noise is carried whole (m = 1) and the
posterior is x_s = (c_s^2 / c_t^2) x_t + ... with variance c_s^2 (1 - c_s^2 / c_t^2).

Paper    residual: Liu et al. 2024, "Residual denoising diffusion models" (arXiv 2308.13712), section 3;
         resshift: Yue, Wang, Loy 2023, "ResShift" (2307.12348), sections 2.1 (chain) and 2.2 (schedule)
Differs  continuous time; the T steps of ResShift are the times j / T. In RDDM eta scales the variance, here (as in
         DDIM) the standard deviation: their eta is the square of ours.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.ended import Carried
from ebbtide.process.gaussian import Positive, VPLinear

Speed = Literal["constant", "decreasing", "increasing", "diffusion"]
Share = Annotated[float, Field(gt=0, le=1)]
_VP = VPLinear()


class Shifting(Carried):
    """A process that moves from data to y along their difference: a + b = 1, the noise carried whole."""

    def shift(self, t: Tensor) -> Tensor:
        """b(t), the share of y."""
        raise NotImplementedError

    def a(self, t: Tensor) -> Tensor:
        return 1 - self.shift(t)

    def b(self, t: Tensor) -> Tensor:
        return self.shift(t)

    def carry(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@part("process", "residual", paper="2308.13712")
class Residual(Shifting):
    """Residual diffusion: data turns into its degraded version while noise grows on a schedule of its own.

    kappa   noise at t = 1 (the square root of the paper's noise budget: 0.1 to restore, 1 to generate)
    shift_speed, noise_speed   how b and c^2 grow
    """

    kappa: Positive = 0.1
    shift_speed: Speed = "decreasing"
    noise_speed: Speed = "increasing"

    def shift(self, t: Tensor) -> Tensor:
        return -torch.expm1(_VP.log_a(t)) if self.shift_speed == "diffusion" else _grown(self.shift_speed, t)

    def c(self, t: Tensor) -> Tensor:
        if self.noise_speed == "increasing":
            return self.kappa * t  # the square root of a square has no derivative at 0
        if self.noise_speed == "diffusion":
            return self.kappa * _VP.c(t)
        return self.kappa * _grown(self.noise_speed, t).sqrt()


@part("process", "resshift", paper="2307.12348")
class ResShift(Shifting):
    """Residual shifting: the residual and the noise grow together, geometrically, in few steps.

    kappa        noise at t = 1, where b = last
    power        below 1 shifts early, above 1 late
    last         b at t = 1
    noise_first  standard deviation of the noise after the first of `steps` steps
    steps        T of the schedule: with a uniform grid of as many steps a run visits exactly the paper's times
    """

    kappa: Positive = 2.0
    power: Positive = 0.3
    last: Share = 0.99
    noise_first: Positive = 0.2
    steps: Annotated[int, Field(ge=2)] = 4

    def __post_init__(self) -> None:
        if self.noise_first >= self.kappa * math.sqrt(self.last):
            raise ValueError("noise_first must be below kappa * sqrt(last), the noise at the far end")

    def shift(self, t: Tensor) -> Tensor:
        first = (self.noise_first / self.kappa) ** 2
        tau = ((self.steps * t - 1) / (self.steps - 1)).clamp(0, 1)
        # tau^power by exp and log: torch's pow rounds an entry differently in tensors of another length
        late = (self.power * tau.clamp_min(1e-30).log()).exp()
        grown = first * (math.log(self.last / first) * late).exp()
        return torch.where(tau > 0, grown, first * self.steps * t)

    def c(self, t: Tensor) -> Tensor:
        return self.kappa * self.shift(t).sqrt()


def _grown(speed: Speed, t: Tensor) -> Tensor:
    """A share that grows from 0 to 1 at a constant, decreasing or increasing speed."""
    return {"constant": lambda: t, "decreasing": lambda: t * (2 - t), "increasing": lambda: t**2}[speed]()
