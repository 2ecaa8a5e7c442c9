"""TSDiff: one unconditional model of windows forecasts, guided by what its own prediction makes of the known part.

Windows are two kinds of season, of period 12 and 6, with coloured noise and a level: a mixture of two Gaussians over 36
numbers, of which 24 are known and 12 foreseen. So the model is exact, and so is the law that forecasts should have.

Paper    Kollovieh et al. 2023, "Predict, refine, synthesize" (arXiv 2307.11494), section 3.1
Card     CRPS of guided forecasts against unguided samples, the seasonal naive forecast and the exact conditional law, and the
         coverage of quantiles against guidance by squares. The control does not guide
Differs  refining others' forecasts and training on synthetic windows are not here. The exact law takes the place of a
         conditional model of equal size
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model, process
from ebbtide.measure.forecasts import coverage, crps, levels, seasonal_naive
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="tsdiff",
    family="signal",
    title="Predict, Refine, Synthesize: Self-Guiding Diffusion Models for Probabilistic Time Series Forecasting",
    year=2023,
    claim="an unconditional model, guided by its own one-step estimate, forecasts as well as models trained for the task",
    what="The gradient of a quantile loss on the known part, through the model's own prediction, turns samples into forecasts.",
    paper="2307.11494",
    parts=("guide/self-guidance",),
    presets={
        "tsdiff": {
            "solve": {"name": "euler", "eta": 1.0},
            "grid": {"name": "linear", "steps": 40},
            "guide": [{"name": "self-guidance", "scale": 4.0, "loss": "quantile"}],
        }
    },
    differs="no refinement of other forecasts, no training on synthetic windows",
)

KNOWN, AHEAD, PERIOD = 24, 12, 12
WINDOWS, EACH = 48, 16
NOMINAL = (0.1, 0.5, 0.9)


def covariances() -> Tensor:
    """Of both kinds of window, (2, L, L): a season of random phase, coloured noise and a level."""
    k = torch.arange(KNOWN + AHEAD, dtype=torch.float64)
    apart = k[:, None] - k

    def kind(period: int, wave: float, rough: float, keep: float) -> Tensor:
        season = wave**2 * (2 * math.pi * apart / period).cos()
        return season + rough**2 * keep ** apart.abs() + 0.25

    return torch.stack([kind(12, 1.0, 0.5, 0.8), kind(6, 0.8, 0.3, 0.5)])


def world() -> tuple[Model, Tensor]:
    """The exact model of windows (1, L), and some of them, (W, 1, L)."""
    p = process("vp-linear", beta_min=0.01, beta_max=10.0)
    zero = torch.zeros(2, 1, KNOWN + AHEAD, dtype=torch.float64)
    g = GaussianMixture(p, [1, 1], zero, covariances())  # type: ignore[arg-type]
    return ebb.load(g, like=zero[0]), g.sample(WINDOWS, seed=5)


def forecasts(model: Model, plan: Any, x: Tensor) -> Tensor:
    """What is drawn of the last numbers of windows x (W, 1, L) when the others are known, (W, n, AHEAD)."""
    seen = x.clone()
    seen[..., KNOWN:] = math.nan
    cond = {"observed": seen.repeat_interleave(EACH, 0), "level": levels(WINDOWS, EACH)}
    drawn = ebb.sample(model, plan, cond=cond if plan.guide else None, n=WINDOWS * EACH, seed=0).x
    return drawn[:, 0, KNOWN:].reshape(WINDOWS, EACH, AHEAD)


def exact(x: Tensor, n: int = 200) -> Tensor:
    """Draws of the exact conditional law, (W, n, AHEAD): kind by its posterior, then the conditional Gaussian."""
    seen, out, logs = x[:, 0, :KNOWN], [], []
    noise = Noise(keys(range(len(x))), torch.zeros(len(x), dtype=torch.int64))
    for k, c in enumerate(covariances()):
        gain = torch.linalg.solve(c[:KNOWN, :KNOWN], c[:KNOWN, KNOWN:]).mT
        left = torch.linalg.cholesky(c[KNOWN:, KNOWN:] - gain @ c[:KNOWN, KNOWN:])
        z = noise.normal(torch.empty(len(x), n, AHEAD, dtype=torch.float64), k)
        out.append((seen @ gain.mT)[:, None] + z @ left.mT)
        law = torch.distributions.MultivariateNormal(torch.zeros(KNOWN, dtype=torch.float64), c[:KNOWN, :KNOWN])
        logs.append(law.log_prob(seen))
    first = torch.stack(logs, 1).softmax(1)[:, :1]
    chosen = noise.uniform((len(x), n), 2) < first
    return torch.where(chosen[..., None], out[0], out[1])


def card(bench: Bench) -> Card:
    """Forecasts by quantile guidance; the control draws windows that know of nothing."""
    model, x = world()
    truth = x[:, 0, KNOWN:]
    plan = bench.plan("tsdiff")
    guided = forecasts(model, plan, x)
    free = forecasts(model, ebb.Plan(solve=plan.solve, grid=plan.grid), x)
    squares = {"name": "self-guidance", "loss": "mse", "scale": 4.0}
    other = forecasts(model, ebb.Plan(solve=plan.solve, grid=plan.grid, guide=[squares]), x)
    naive = seasonal_naive(x[:, 0, :KNOWN], AHEAD, PERIOD)[:, None]
    score = lambda v: float(crps(v, truth).mean())  # noqa: E731
    found, best = score(guided), score(exact(x))
    bench.check("CRPS over that of unguided samples", found / score(free), at_most=0.8, published="20% below")
    bench.check("CRPS over that of the seasonal naive forecast", found / score(naive), at_most=0.8)
    bench.check("CRPS over that of the exact conditional law", found / best, at_most=1.15, published="competitive")
    # the truths are few: what exact forecasts of them cover is the mark
    mark = coverage(exact(x), truth, NOMINAL)
    off = [float((coverage(v, truth, NOMINAL) - mark).abs().mean()) for v in (guided, other)]
    bench.check("coverage error over that of guidance by squares", off[0] / off[1], at_most=1.0)
    return bench.card(
        f"CRPS {found:.3f}, exact {best:.3f}; by squares, whose score is exact for Gaussian data, {score(other):.3f}."
    )
