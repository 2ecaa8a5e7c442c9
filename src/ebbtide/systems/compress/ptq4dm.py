"""PTQ4DM: eight bits without training, ranges found on states of the model's own runs, most of them near the data.

Paper    Shang et al. 2023 (arXiv 2211.15736)
Card     `digits-unet` at several widths, calibrated on 48 runs and judged on the noise that it predicts along other runs. The
         ways to choose states are told apart by their ranges alone, so weights keep their eight bits where they are compared.
         The control has the network as it is.
Differs  widths and places of the network are as shipped; no layers are reconstructed
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

import ebbtide as ebb
from ebbtide.core.key import normal
from ebbtide.measure.metrics import frechet, moments
from ebbtide.network.ptq4dm import PTQ4DM, bits
from ebbtide.network.record import Record
from ebbtide.systems import Bench, Card, System
from ebbtide.zoo import reference

SYSTEM = System(
    id="ptq4dm",
    family="compress",
    title="Post-training Quantization on Diffusion Models",
    year=2022,
    paper="2211.15736",
    claim="Eight bits with no training keep quality or improve it; IDDPM's FID is 24.3 where it was 21.7",
    what="A network on whole numbers, with ranges found on states of its own runs at times drawn from a skewed normal law.",
    parts=("network/ptq4dm",),
    presets={"ptq4dm": {"grid": {"name": "linear", "steps": 20}, "network": [{"name": "ptq4dm"}]}},
    slow=True,
    differs="on digits-unet; ranges and rounding only, no layers are reconstructed",
)

STEPS = 12
CALIBRATED, HELD, DRAWN = [k % 10 for k in range(48)], [0, 1, 4, 5, 7, 9], [k % 10 for k in range(400)]
LAWS: dict[str, dict[str, Any]] = {
    "skewed": {},
    "uniform": {"spread": None},
    "near the noise": {"mean": 1.0, "spread": 0.0},
    "near the data": {"mean": 0.0, "spread": 0.0},
}


def noise_error(model: ebb.Model, network: Any, record: Record) -> float:
    """The mean squared error of the predicted noise, (a / c)^2 that of the data, over what was asked in some runs."""
    whole, other, found = model.denoiser, model.denoiser.over(network), []
    for asked in record.asked:
        t = float(asked.t[0])
        gap = other(asked.x, asked.t, asked.cond).mean - whole(asked.x, asked.t, asked.cond).mean
        found.append(float(gap.square().mean()) * ((1 - t) / t) ** 2)
    return sum(found) / len(found)


def over(error: float, other: float) -> float:
    """Their ratio; not a number where there is no error at all, as in the control."""
    return error / other if other else math.nan


def drowned(record: Record) -> Record:
    """The same questions with noise in place of every state."""
    like = torch.zeros_like(record.asked[0].x)
    key, step = torch.arange(len(like)), torch.zeros(len(like), dtype=torch.int64)
    return replace(record, asked=[a._replace(x=normal(key, step + k, like)) for k, a in enumerate(record.asked)])


def card(bench: Bench) -> Card:
    """Laws of states against each other, ranges, bits, whole numbers against rounded ones, and digits of eight bits."""
    model = ebb.load("digits-unet")
    plan = ebb.Plan(grid={"name": "linear", "steps": STEPS})
    seen = ebb.record(model, plan, cond=CALIBRATED, n=len(CALIBRATED), seed=10**6)
    held = ebb.record(model, plan, cond=HELD, n=len(HELD), seed=77)
    module: Any = seen.denoiser.module

    def network(record: Record = seen, **params: Any) -> Any:
        part = PTQ4DM(**params).calibrated(record)
        made = bench.plan({"network": [{"name": "ptq4dm", **vars(part)}]}).parts("network")[0]
        return made.bind(module)[0]

    def error(record: Record = seen, **params: Any) -> float:
        return noise_error(model, network(record, **params), held)

    told = []
    for w, a in ((8, 8), (6, 6), (4, 6)):
        by = {name: error(w_bits=w, a_bits=a, **law) for name, law in LAWS.items()}
        by["noise alone"] = error(drowned(seen), w_bits=w, a_bits=a, spread=None)
        told.append(f"W{w}A{a} " + ", ".join(f"{name} {v:.2g}" for name, v in by.items()))
        best = min(by.values())
        bench.check(f"W{w}A{a}: noise error of the skewed law over the least", over(by["skewed"], best), at_most=1.03)
        bench.check(f"W{w}A{a}: over states near the data alone", over(by["skewed"], by["near the data"]), at_most=0.7)
        if w == 8:
            bench.check(
                f"W{w}A{a}: over states near the noise alone", over(by["skewed"], by["near the noise"]), at_most=0.7
            )
    spans = error(w_bits=6, a_bits=6, metric="span")
    bench.check(
        "W6A6: error of the best ranges over that of whole spans", over(error(w_bits=6, a_bits=6), spans), at_most=0.9
    )
    eight = network()
    bench.check("bits of all parameters at W8A8, over those of the network", bits(eight) / bits(module), at_most=0.3)

    quantised = ebb.Plan(
        grid={"name": "linear", "steps": STEPS}, network=[{"name": "ptq4dm", **vars(PTQ4DM().calibrated(seen))}]
    )
    statistics = reference.load()
    near = []
    for p in (plan, bench.plan(quantised.to_dict())):
        x = ebb.sample(model, p, cond=DRAWN, n=len(DRAWN), batch=100).x
        near.append(frechet(statistics["test.mean"], statistics["test.cov"], *moments(reference.features(x))))
    ratio = near[1] / near[0]
    bench.check("Frechet distance of digits at W8A8 over that of the network", ratio, at_most=1.05, published="1.12")
    return bench.card(
        f"Noise errors: {'; '.join(told)}. That the skewed law has at most 0.7 of the error of states near the noise "
        "alone shows at eight bits only: below, the rounding of weights is most of the error. "
        f"{bits(eight) / 8e3:.0f} kB in place of {bits(module) / 8e3:.0f}."
    )
