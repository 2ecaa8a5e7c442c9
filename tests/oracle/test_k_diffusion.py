"""k-diffusion's samplers, restated from their published formulas for a denoiser D(x, sigma), against our plans.

The package itself asks for torchvision, which has no place here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import peers
import pytest
import torch
from torch import Tensor

from ebbtide.core import registry
from ebbtide.core.key import Noise
from ebbtide.interop.samplers import plan_of
from ebbtide.interop.schedulers import Found

SD: dict[str, Any] = {"name": "vp-table", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
Denoise = Callable[[Tensor, float], Tensor]


def heun(d: Denoise, x: Tensor, sigmas: list[float], noise: list[Tensor], churn: float = 0.0) -> Tensor:
    """Karras et al. 2022, algorithm 2."""
    n = len(sigmas) - 1
    for k, (sigma, after) in enumerate(pairwise(sigmas)):
        raised = min(sigma * (1 + min(churn / n, math.sqrt(2) - 1)), sigmas[0])
        x = x + noise[k] * math.sqrt(raised**2 - sigma**2)
        slope = (x - d(x, raised)) / raised
        euler = x + (after - raised) * slope
        if after:
            slope = (slope + (euler - d(euler, after)) / after) / 2
        x = x + (after - raised) * slope
    return x


def dpm_2(d: Denoise, x: Tensor, sigmas: list[float], noise: list[Tensor]) -> Tensor:
    """Karras et al. 2022, algorithm 2 with the midpoint in log sigma."""
    for sigma, after in pairwise(sigmas):
        middle = math.sqrt(sigma * after)
        slope = (x - d(x, sigma)) / sigma
        if after:
            half = x + (middle - sigma) * slope
            slope = (half - d(half, middle)) / middle
        x = x + (after - sigma) * slope
    return x


def dpm_fast(d: Denoise, x: Tensor, sigmas: list[float], noise: list[Tensor], calls: int = 11) -> Tensor:
    """Lu et al. 2022 (2206.00927), section 3.4, in t = -log sigma between the levels at the ends; then to the data."""
    count = calls // 3 + 1
    orders = [3] * (count - 2) + [2, 1] if calls % 3 == 0 else [3] * (count - 1) + [calls % 3]
    first, last = -math.log(sigmas[0]), -math.log(sigmas[-2])
    h = (last - first) / count
    for k, order in enumerate(orders):
        t = first + k * h
        level = lambda r, t=t: math.exp(-t - r * h)  # noqa: E731
        slope = lambda x, r, level=level: (x - d(x, level(r))) / level(r)  # noqa: E731
        go = lambda r, level=level: level(r) * math.expm1(r * h)  # noqa: E731
        bend = lambda r, go=go, level=level: go(r) / (r * h) - level(r)  # noqa: E731
        own = slope(x, 0)
        after = x - go(1) * own
        if order == 2:
            after = after - go(1) * (slope(x - go(1 / 2) * own, 1 / 2) - own)
        if order == 3:
            one = slope(x - go(1 / 3) * own, 1 / 3) - own
            two = slope(x - go(2 / 3) * own - 2 * bend(2 / 3) * one, 2 / 3) - own
            after = after - 3 / 2 * bend(1) * two
        x = after
    return d(x, sigmas[-2])


def ancestral(d: Denoise, x: Tensor, sigmas: list[float], noise: list[Tensor]) -> Tensor:
    """Step down below the next level, then add noise up to it."""
    for k, (sigma, after) in enumerate(pairwise(sigmas)):
        up = min(after, math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2))
        down = math.sqrt(after**2 - up**2)
        x = x + (down - sigma) * (x - d(x, sigma)) / sigma + up * noise[k]
    return x


def dpmpp_2m(d: Denoise, x: Tensor, sigmas: list[float], noise: list[Tensor]) -> Tensor:
    """Lu et al. 2022 (2211.01095), algorithm 2, at a = 1."""
    old, before = None, 0.0
    for sigma, after in pairwise(sigmas):
        x0 = d(x, sigma)
        mixed = x0
        if after and old is not None:
            h = math.log(sigma / after)
            mixed = x0 + h / (2 * before) * (x0 - old)
        x = after / sigma * x + (1 - after / sigma) * mixed
        old, before = x0, math.log(sigma / after) if after else 0.0
    return x


def dpmpp_2m_sde(d: Denoise, x: Tensor, sigmas: list[float], noise: list[Tensor]) -> Tensor:
    """The same with eta = 1, midpoint."""
    old, before = None, 0.0
    for k, (sigma, after) in enumerate(pairwise(sigmas)):
        x0 = d(x, sigma)
        if not after:
            return x0
        h = math.log(sigma / after)
        x = (
            after / sigma * math.exp(-h) * x
            - math.expm1(-2 * h) * x0
            + after * math.sqrt(-math.expm1(-2 * h)) * noise[k]
        )
        if old is not None:
            x = x - 0.5 * math.expm1(-2 * h) * h / before * (x0 - old)
        old, before = x0, h
    return x


def dpmpp_3m_sde(d: Denoise, x: Tensor, sigmas: list[float], noise: list[Tensor]) -> Tensor:
    """Three data predictions, eta = 1; the second difference weighed by the third phi function, half its integral."""
    past: list[tuple[Tensor, float]] = []  # data predictions and where in log-SNR, newest first
    for k, (sigma, after) in enumerate(pairwise(sigmas)):
        x0 = d(x, sigma)
        if not after:
            return x0
        past = [(x0, -math.log(sigma)), *past][:3]
        h = math.log(sigma / after)
        z = 2 * h
        phi2 = 1 + math.expm1(-z) / z
        phi3 = phi2 / z - 0.5
        x = math.exp(-z) * x - math.expm1(-z) * x0 + after * math.sqrt(-math.expm1(-z)) * noise[k]
        slopes = [(v - w) * h / (at - before) for (v, at), (w, before) in pairwise(past)]
        if len(slopes) == 2:
            bend = (slopes[0] - slopes[1]) * h / (past[0][1] - past[2][1])
            x = x + (phi2 * (past[0][1] - past[1][1]) / h - phi3) * bend
        if slopes:
            x = x + phi2 * slopes[0]
    return x


def res_multistep(d: Denoise, x: Tensor, sigmas: list[float], noise: list[Tensor]) -> Tensor:
    """Zhang et al. 2023 (2308.02157): the second-order multistep exponential integrator."""
    old, before = None, 0.0
    for sigma, after in pairwise(sigmas):
        x0 = d(x, sigma)
        if not after or old is None:
            x = after / sigma * x + (1 - after / sigma) * x0
        else:
            h = math.log(sigma / after)
            phi1 = -math.expm1(-h) / h
            phi2 = (1 - phi1) / h
            c = -before / h
            x = math.exp(-h) * x + h * ((phi1 - phi2 / c) * x0 + phi2 / c * old)
        old, before = x0, math.log(sigma / after) if after else 0.0
    return x


def lms(d: Denoise, x: Tensor, sigmas: list[float], noise: list[Tensor], order: int = 4) -> Tensor:
    """Adams-Bashforth in sigma: each Lagrange polynomial integrated through its own antiderivative."""
    slopes: list[Tensor] = []
    for k, (sigma, after) in enumerate(pairwise(sigmas)):
        slopes = [(x - d(x, sigma)) / sigma, *slopes][:order]
        nodes = [sigmas[k - j] for j in range(len(slopes))]
        for j, slope in enumerate(slopes):
            others = [v for i, v in enumerate(nodes) if i != j]
            base = torch.ones(1)
            for v in others:  # times (sigma - v) / (node - v), lowest power first
                base = (torch.cat([torch.zeros(1), base]) - v * torch.cat([base, torch.zeros(1)])) / (nodes[j] - v)
            powers = torch.arange(1, len(base) + 1)
            ends = [(base / powers * v**powers).sum() for v in (after, sigma)]
            x = x + (ends[0] - ends[1]) * slope
    return x


THEIRS: dict[str, Any] = {
    "heun": heun, "dpm_2": dpm_2, "dpm_fast": dpm_fast, "euler_ancestral": ancestral, "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde, "dpmpp_3m_sde": dpmpp_3m_sde, "res_multistep": res_multistep, "lms": lms,
}  # fmt: skip


def gap(sampler: Any, name: str, scheduler: str, **slots: Any) -> float:
    """The largest difference at the end of a run of 12 steps, the same noise in both."""
    torch.set_default_dtype(torch.float64)
    try:
        plan = plan_of(name, scheduler, 12, process=SD).replace(**slots)
        noise = peers.tape(14)
        states, _, start = peers.ours(Found(plan, {}), noise)
        process = registry.make("process", SD)
        times = registry.make("grid", plan.grid).points(process, None)
        sigmas = [*(-process.lam(times[:-1])).exp().tolist(), 0.0]
        mixture = peers.mixture(process)

        def d(x: Tensor, sigma: float) -> Tensor:
            t = process.time(-torch.tensor([sigma]).log())
            return mixture(x * process.a(t), t.expand(len(x)), {}).mean

        x = sampler(d, start / process.a(times[:1]), sigmas, list(noise.unbind(1)))
        return float((x - states[-1]).abs().max())
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("scheduler", ["karras", "normal"])
@pytest.mark.parametrize("name", sorted(THEIRS))
def test_samplers(name: str, scheduler: str) -> None:
    assert gap(THEIRS[name], name, scheduler) < 1e-9


def test_heun_with_churn(monkeypatch: Any) -> None:
    """EDM's stochastic sampler; the raise is held to the noisiest level, beyond which no process goes."""
    # its raise has a stream of its own, which the recorded noise does not reach
    monkeypatch.setattr(Noise, "normal", lambda self, like, salt=0: peers.tape(14)[torch.arange(len(like)), self.i])
    churned = lambda *a: heun(*a, churn=6.0)  # noqa: E731
    assert gap(churned, "heun", "karras", solve={"name": "edm-stochastic", "churn": 6.0}) < 1e-9
    assert gap(heun, "heun", "karras", solve={"name": "edm-stochastic", "churn": 6.0}) > 1e-3
