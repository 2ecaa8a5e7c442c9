"""Coordinates in which the flow of an affine process is a plain integral: the arithmetic that its ODE solvers share.

Divided by a weight of the process, the state moves along its slope alone:

    noise   z = (x - b y) / a,   dz / d rho = eps,   rho = c / a
    data    z = (x - b y) / c,   dz / d rho = x0,    rho = a / c

A step from t to s along a mean slope F = f_t + G, where f_t is the slope at t, is the DDIM step with a correction,

    x_s = DDIM(x_t, f_t) + E G,   noise  E = c_s - a_s c_t / a_t,   data  E = a_s - c_s a_t / c_t

and a solver is a rule for G, given slopes at other times. So every solver is DDIM, bit for bit, where it has no others.

The rule is an integral of the polynomial through the slopes. With theta the share of the way in some variable u, and phi
the share of the way in rho, slopes f_k at kappa_k have the weights r_k that are exact for all powers up to their number:

    sum_k r_k kappa_k^j = I_j = integral of theta^j d phi,   kappa_0 = 0

u = rho gives the classical I_j = 1 / (j + 1), u = lam the exponential integrators.

Shapes   weights are float64 shaped like the times
Source   Lu et al. 2022 (arXiv 2206.00927), section 3; Zhang, Chen 2023 (2204.13902), section 3; Hochbruck, Ostermann 2010,
         "Exponential integrators", section 2, for the exponential form
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebbtide.process.affine import Affine

Space = Literal["data", "noise"]
Variable = Literal["log-snr", "sigma", "time"]

KIND: dict[Space, str] = {"data": "x0", "noise": "eps"}
SIGN: dict[Space, float] = {"data": 1.0, "noise": -1.0}  # rho = exp(sign lam)
SINGULAR = -10.0  # the lam below which the noise space is not used: its coordinate is infinite where a = 0
_POINTS, _SHARES = (v.tolist() for v in np.polynomial.legendre.leggauss(12))
POINTS = [((1 + p) / 2, w / 2) for p, w in zip(_POINTS, _SHARES, strict=True)]


class Slide(NamedTuple):
    """x_s = x x_t + x0 x0_t + y y + noise z + along G: a DDIM step and what a change G of the mean slope adds.

    keep   the weight of x_t where slopes, not data, are held: what a change of x_t itself adds
    fade   how fast the state forgets: slopes on the way count as exp(fade lam)
    """

    x: Tensor
    x0: Tensor
    y: Tensor
    noise: Tensor
    along: Tensor
    keep: Tensor
    fade: Tensor


def slide(process: Affine, space: Space, t: Tensor, s: Tensor, eta: float | Tensor = 0.0) -> Slide:
    """The step from t to s; `along` is 0 where the coordinate is singular, which is DDIM.

    With eta > 0, in the data space, the noise that is drawn makes the state forget faster: fade is 1 + tau^2 for a
    reverse SDE of strength tau.
    """
    w: Any = process.weights_of(t, s, eta)
    at, ct, a_s, c_s = process.a(t), process.c(t), process.a(s), process.c(s)
    one = torch.ones_like(at)
    h = w.lam_s - w.lam_t
    moved = h > 0
    if space == "data":
        kept = w.x * at / torch.where(a_s == 0, one, a_s)
        fade = torch.where(moved & (kept > 0), -kept.clamp_min(1e-300).log() / torch.where(moved, h, one), one)
        return Slide(w.x, w.x0, w.y, w.noise, w.x0, w.x, fade)
    fine = (w.lam_t > SINGULAR) & (at > 0)
    keep = a_s / torch.where(fine, at, one)
    along = torch.where(fine, c_s - keep * ct, torch.zeros_like(at))
    return Slide(w.x, w.x0, w.y, w.noise, along, torch.where(fine, keep, w.x), -one)


def place(process: Affine, space: Space, variable: Variable, t: Tensor) -> Tensor:
    """u(t)."""
    if variable == "time":
        return t
    lam = process.lam(t)
    return lam if variable == "log-snr" else (SIGN[space] * lam).exp()


def moments(process: Affine, variable: Variable, t: Tensor, s: Tensor, fade: Tensor, count: int) -> list[Tensor]:
    """I_0 to I_count, the integrals of theta^j d phi from t to s."""
    one = torch.ones_like(t)
    if variable == "sigma":
        return [one / (j + 1) for j in range(count + 1)]
    start = process.lam(t)
    z = fade * (process.lam(s) - start)
    whole = torch.expm1(z)

    def share(theta: float) -> Tensor:
        """phi at theta."""
        on = z * theta if variable == "log-snr" else fade * (process.lam(t + theta * (s - t)) - start)
        return torch.where(z == 0, one * theta, torch.expm1(on) / torch.where(z == 0, one, whole))

    shares = [(theta, weight * share(theta)) for theta, weight in POINTS]
    # by parts: the integral of theta^j d phi is 1 - j times that of theta^(j-1) phi
    return [one, *(1 - j * _sum([theta ** (j - 1) * v for theta, v in shares]) for j in range(1, count + 1))]


def through(nodes: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """The weights r_k with sum_k r_k kappa_k^j = I_j for j below their number: nodes kappa_k, values I_j."""
    out = []
    for k, own in enumerate(nodes):
        product, scale = [torch.ones_like(own)], torch.ones_like(own)
        for j, other in enumerate(nodes):
            if j == k:
                continue
            low, high = [-other * p for p in product], product
            product = [a + b for a, b in zip([*low, 0 * own], [0 * own, *high], strict=True)]
            scale = scale * (own - other)
        out.append(_sum([p * v for p, v in zip(product, values, strict=False)]) / scale)
    return out


def _sum(terms: Sequence[Tensor]) -> Tensor:
    """A sum in this order: a reduction may round a row differently in a larger batch."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
