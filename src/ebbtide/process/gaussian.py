"""Gaussian diffusions: x_t = a(t) x0 + c(t) eps, variance preserving or exploding.

    vp-linear          a = exp(-(b1 - b0) t^2 / 4 - b0 t / 2),      b0 = 0.1, b1 = 20
    vp-scaled-linear   -2 log a = integral of the square of a line,  0.85 to 12 (Stable Diffusion)
    vp-cosine          a = cos(pi/2 (t + s) / (1 + s)) / cos(pi/2 s / (1 + s)),  s = 0.008
    ve                 a = 1, c = s0 sqrt((s1 / s0)^(2t) - 1),       s0 = 0.01, s1 = 50
    edm                a = 1, c = sigma_max t,                       sigma_max = 80

with c = sqrt(1 - a^2) for the first three. `zero_terminal` shifts and scales a so that a(1) = 0 and a(0) = 1.

Paper    Song et al. 2021 (2011.13456), appendix C; Rombach et al. 2022 (2112.10752); Nichol, Dhariwal 2021 (2102.09672),
         section 3.2; Karras et al. 2022 (2206.00364), table 1; zero terminal SNR: Lin et al. 2024 (2305.08891), section 3.1
Differs  continuous time throughout: the tables of discrete training schedules are limits of these.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.affine import Affine

Positive = Annotated[float, Field(gt=0)]


class VP(Affine):
    """A variance-preserving diffusion: a^2 + c^2 = 1."""

    gives = Affine.gives | {"gaussian"}
    zero_terminal: bool

    def log_a(self, t: Tensor) -> Tensor:
        """log a(t) before any rescaling."""
        raise NotImplementedError

    def a(self, t: Tensor) -> Tensor:
        a = self.log_a(t).exp()
        if not self.zero_terminal:
            return a
        last = self.log_a(torch.ones(1, dtype=torch.float64)).exp()
        return ((a - last) / (1 - last)).clamp_min(0)

    def c(self, t: Tensor) -> Tensor:
        if self.zero_terminal:
            return (1 - self.a(t) ** 2).clamp_min(0).sqrt()
        return (-torch.expm1(2 * self.log_a(t))).clamp_min(0).sqrt()


@part("process", "vp-linear", paper="2011.13456")
class VPLinear(VP):
    """The diffusion of DDPM in continuous time: beta grows linearly."""

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0
    zero_terminal: bool = False

    def log_a(self, t: Tensor) -> Tensor:
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t


@part("process", "vp-scaled-linear", paper="2112.10752")
class VPScaledLinear(VP):
    """The diffusion of Stable Diffusion in continuous time: the square root of beta grows linearly."""

    beta_min: Positive = 0.85
    beta_max: Positive = 12.0
    zero_terminal: bool = False

    def log_a(self, t: Tensor) -> Tensor:
        first, slope = math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)
        return -0.5 * (first**2 * t + first * slope * t**2 + slope**2 * t**3 / 3)


@part("process", "vp-cosine", paper="2102.09672")
class VPCosine(VP):
    """The cosine diffusion: signal falls slowly at both ends."""

    offset: Annotated[float, Field(ge=0)] = 0.008
    zero_terminal: bool = False

    def log_a(self, t: Tensor) -> Tensor:
        angle = lambda t: math.pi / 2 * (t + self.offset) / (1 + self.offset)  # noqa: E731
        return angle(t).cos().clamp_min(1e-300).log() - math.log(math.cos(angle(0.0)))


class VE(Affine):
    """A variance-exploding diffusion: the data keeps its weight, a = 1."""

    gives = Affine.gives | {"gaussian"}

    def a(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@part("process", "ve", paper="2011.13456")
class VEGeometric(VE):
    """The variance-exploding diffusion: noise grows geometrically."""

    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0

    def c(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.expm1(2 * math.log(self.sigma_max / self.sigma_min) * t).clamp_min(0).sqrt()


@part("process", "edm", paper="2206.00364")
class EDM(VE):
    """The process of EDM: time is the noise level itself, in units of its largest."""

    sigma_max: Positive = 80.0

    def c(self, t: Tensor) -> Tensor:
        return self.sigma_max * t
