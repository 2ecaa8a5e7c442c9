"""DeepCache: deep features of a U-Net change slowly, so most steps compute its shallow layers alone.

Paper    Ma, Fang, Wang 2023 (arXiv 2312.00858); tables 1 and 2
Card     digits-unet, eight digits, 50 Euler steps: multiplications as counted, the distance to the pictures of 50 whole
         steps from the same noise (geometric mean over pictures), and how far a short answer is from the whole one at the
         same place, against the last whole answer held still, which is what caching all of the network would give
Differs  distances to the full run in place of FID and CLIP score. At equal cost fewer Euler steps end closer than the cache
         does on this network: the card's note has the figures
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.time import right
from ebbtide.denoise.model import Model
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
    differs="distances to the full run in place of FID; at equal cost fewer Euler steps end closer on our network",
)

LABELS = list(range(8))
STEPS = 50


def card(bench: Bench) -> Card:
    """Cost and distance by interval; short answers against stale ones; and a run of fewer digits."""
    model, plan = ebb.load("digits-unet"), bench.plan("deepcache")

    def run(plan: ebb.Plan, labels: list[int] = LABELS) -> tuple[Tensor, int]:
        return cost(lambda: ebb.sample(model, plan, cond=labels, n=len(labels)).x)

    def every(interval: int) -> ebb.Plan:
        specs: list[dict[str, Any]] = [{**spec, "interval": interval} for spec in plan.network]
        return plan if bench.control else plan.replace(network=specs)

    full, most = run(plan.replace(network=[]))
    runs = {k: run(every(k)) for k in (2, 3, 5)}
    off = [float(norm(x - full).clamp_min(1e-12).log().mean().exp()) for x, _ in runs.values()]
    bench.check("multiplications of all whole steps, over those at interval 5", most / runs[5][1], at_least=2.0)
    bench.check("least growth of the distance from interval to interval", min(_ratios(off)), at_least=1.2)
    early, late = lag(model, plan)
    bench.check("short answers' error over that of a stale one, noisy half", early, at_most=0.9)
    same = torch.equal(run(plan.replace(network=[{"name": "deepcache", "interval": 1}]))[0], full)
    bench.check("interval 1 is the network as it is", same, at_least=1)
    alone = run(every(3), LABELS[:3])[0]
    bench.check("gap of three digits to the same in a run of eight", (alone - runs[3][0][:3]).abs().max(), at_most=1e-4)
    return bench.card(
        f"In the half near the data a short answer is {late:.2f} times as far off as a stale one. Over 96 digits the ends "
        "are 1.14, 1.29 and 1.32 times as far from the full run as those of fewer Euler steps at equal cost (intervals 2, 3 "
        "and 5), and 0.96, 0.99 and 1.04 times as far as with the whole output held, so the row's advantage over both does "
        "not show on this network; nor in DDPM's process, under guidance, or with whole steps drawn around a centre."
    )


def lag(model: Model, plan: ebb.Plan) -> tuple[float, float]:
    """How far short answers are from the whole network's at the same place, over how far the last whole one is.

    Geometric means over the first and the second half of the steps; of the flow, since Euler holds that still.
    """
    loop, state = begin(model, plan, LABELS, len(LABELS))
    found: list[Tensor] = []
    whole = state.x
    for _ in range(STEPS):
        step = loop.step(state)
        there = flow(state, model.denoiser(state.x, state.t, state.cond))
        if step.info.get("deepcache"):
            assert step.pred is not None
            found.append((norm(flow(state, step.pred) - there) / norm(whole - there)).log().mean())
        else:
            whole = there
        state = step.state
    if not found:
        return float("nan"), float("nan")
    halves = torch.stack(found).chunk(2)
    return float(halves[0].mean().exp()), float(halves[1].mean().exp())


def flow(state: ebb.State, pred: ebb.Pred) -> Tensor:
    """(x - x0) / t."""
    assert pred.mean is not None
    return (state.x - pred.mean) / right(state.t, state.x).to(state.x)


def norm(x: Tensor) -> Tensor:
    """The root mean square of each picture, (B,)."""
    return x.square().flatten(1).mean(1).sqrt()


def _ratios(values: list[float]) -> list[float]:
    return [b / a for a, b in itertools.pairwise(values)]
