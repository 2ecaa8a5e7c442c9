"""DeepCache: deep features of a U-Net change slowly, so most steps compute its shallow layers alone.

Paper    Ma, Fang, Wang 2023 (arXiv 2312.00858); tables 1 and 2
Card     digits-unet, four digits, 50 Euler steps, distance to the pictures of all 50 whole steps from the same noise, and
         multiplications as they are counted. The output as a whole, reused over the same interval, is the other cache: of a
         flow that is a step as many times longer, so it is Euler with fewer steps, at equal intervals and at equal cost alike
Differs  the figure is the distance to the full run in place of FID and CLIP score. At equal cost, fewer steps of Euler come
         closer than the cache does on this network: the card's note has both figures
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.measure.cost import cost
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="deepcache",
    family="reuse",
    title="DeepCache: Accelerating Diffusion Models for Free",
    year=2023,
    claim="2.3x on SD v1.5 with 0.05 CLIP-score drop; 4.1x on LDM-4-G (ImageNet) with 0.22 FID",
    what="Most steps compute only the shallow layers of the U-Net, beside the deep feature of the last whole step.",
    paper="2312.00858",
    parts=("network/deepcache",),
    presets={
        "deepcache": {
            "solve": "euler",
            "grid": {"name": "linear", "steps": 50},
            "network": [{"name": "deepcache", "interval": 5}],
        },
    },
    differs="distance to the full run in place of FID; at equal cost fewer Euler steps come closer on our network",
)

LABELS = [0, 3, 6, 9]


def card(bench: Bench) -> Card:
    """Cost and distance by interval, against the whole output reused, and two runs of different sizes."""
    model, plan = ebb.load("digits-unet"), bench.plan("deepcache")

    def run(plan: ebb.Plan, labels: list[int] = LABELS) -> tuple[Tensor, int]:
        return cost(lambda: ebb.sample(model, plan, cond=labels, n=len(labels)).x)

    def every(interval: int) -> ebb.Plan:
        specs: list[dict[str, Any]] = [{**spec, "interval": interval} for spec in plan.network]
        return plan if bench.control else plan.replace(network=specs)

    def steps(count: int) -> ebb.Plan:
        return plan.replace(network=[], grid={**plan.grid, "steps": count})

    full, most = run(steps(50))
    off = lambda x: float((x - full).square().mean().sqrt())  # noqa: E731
    runs = {k: run(every(k)) for k in (2, 3, 5)}
    errors, told = [off(x) for x, _ in runs.values()], []
    bench.check("multiplications of all whole steps, over those at interval 5", most / runs[5][1], at_least=2.0)
    bench.check("least growth of the distance from interval to interval", min(_ratios(errors)), at_least=1.2)
    for k, (x, paid) in runs.items():
        if k < 5:
            whole = off(run(steps(50 // k))[0])
            bench.check(f"distance over that of the whole output reused, interval {k}", off(x) / whole, at_most=1.0)
        equal = off(run(steps(50 * paid // most))[0])
        told.append(f"{off(x) / equal if equal else 0:.2f} at interval {k}")
    same = torch.equal(run(plan.replace(network=[{"name": "deepcache", "interval": 1}]))[0], full)
    bench.check("interval 1 is the network as it is", same, at_least=1)
    alone = run(every(3), LABELS[:3])[0]
    bench.check("gap of three digits to the same in a run of four", (alone - runs[3][0][:3]).abs().max(), at_most=1e-4)
    return bench.card(
        "Distance over that of fewer Euler steps at equal cost: "
        + ", ".join(told)
        + "; the row asks for less than 1, and "
        "that does not show here, nor in DDPM's process, nor under guidance, nor with whole steps closer around a centre. "
        "Euler's steps cost each as much as the last; what the cache saves is bought with features that lag."
    )


def _ratios(values: list[float]) -> list[float]:
    return [b / a if a else 0.0 for a, b in itertools.pairwise(values)]
