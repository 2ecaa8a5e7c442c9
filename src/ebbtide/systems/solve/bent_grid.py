"""Hyperparameters are all you need: a hand-made list of few steps, cut where pictures stop changing.

A Karras list spends its last steps on noise that no one sees. The bent grid keeps its first level and one level well before
the end, and lays the steps almost evenly in time between them (`grid/bent.py`): 8 with DPM-Solver++(2M), 5 with Euler.

Paper    "Hyperparameters are all you need" 2025 (arXiv 2510.02390)
Card     eight Gaussians in R^8, Stable Diffusion's process, ends against 150 Heun steps from the same starts, root mean square
         of an element, mean over them; two mixtures. The control uses Karras' list
Differs  the list is checked against its formula at 1e-6 in the tests, not here
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model, process
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="bent-grid",
    family="solve",
    title="Hyperparameters are all you need: Using five-step inference for an original diffusion model to generate images "
    "comparable to the latest distillation model",
    year=2025,
    claim="8-step FID 15.7 / 22.35 / 17.52 on COCO14 / COCO17 / LAION against 17.3 / 23.75 / 17.33 of 20-step DPM++2M",
    what="Cut a Karras grid before its low-noise tail, then lay the few steps almost evenly in time between its ends.",
    paper="2510.02390",
    parts=("grid/bent",),
    presets={
        "bent-8": {
            "solve": "dpmpp-2m",
            "grid": {"name": "bent", "steps": 8, "sigma_min": 0.0292, "sigma_max": 14.6146},
        },
        "bent-5": {
            "solve": "euler",
            "grid": {
                "name": "bent",
                "steps": 5,
                "sigma_min": 0.0292,
                "sigma_max": 14.6146,
                "rho": 5.0,
                "base_points": 8,
                "keep": 6,
            },
        },
    },
    differs="the last call lands on the data, where the publication leaves a little noise to the decoder",
)

OTHERS: dict[str, dict[str, Any]] = {
    "Karras": {"name": "karras", "sigma_min": 0.0292, "sigma_max": 14.6146},
    "uniform log-SNR": {"name": "log-snr", "first": 1.0, "last": 1e-3},
    "uniform time": {"name": "clock", "spacing": "linspace"},
}


def mixture(seed: int) -> Model:
    """Eight Gaussians of deviation 0.5 in R^8 whose means are drawn with deviation 0.9."""
    from ebbtide.core.key import Noise, keys

    means = 0.9 * Noise(keys([seed]), torch.zeros(1, dtype=torch.int64)).normal(torch.zeros(1, 8, 8).double())[0]
    p: Any = process("vp-scaled-linear")
    return ebb.load(GaussianMixture(p, [1.0] * 8, means, 0.25), like=torch.zeros(8, dtype=torch.float64))


def ends(model: Model, plan: ebb.Plan) -> Tensor:
    """Where 300 starts end."""
    x: Tensor = ebb.sample(model, plan, n=300, seed=7).x
    return x


def card(bench: Bench) -> Card:
    """Errors of the bent list over those of others, at equal calls with the same solver."""
    models = [mixture(seed) for seed in (0, 1)]
    fine = ebb.Plan(solve="heun", grid={"name": "log-snr", "steps": 150, "first": 1.0})
    truth = [ends(model, fine) for model in models]

    def error(plan: ebb.Plan) -> float:
        """Mean over elements and mixtures of the root mean square that an end is off."""
        off = [(ends(m, plan) - x).square().mean(1).sqrt().mean() for m, x in zip(models, truth, strict=True)]
        return float(torch.stack(off).mean())

    for preset, bounds in (("bent-8", (0.7, 0.9, 0.5)), ("bent-5", (1.0, 1.0, 1.0))):
        plan = bench.plan(preset)
        steps, bent = plan.grid["steps"], error(plan)
        for (name, grid), most in zip(OTHERS.items(), bounds, strict=True):
            other = error(plan.replace(grid={**grid, "steps": steps}))
            bench.check(f"{steps} calls, error over that of {name}", bent / other, at_most=most)
    return bench.card("published as FID of large models; these bounds are those of our row")
