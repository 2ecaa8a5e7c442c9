"""FreeCache: keys and values of settled tokens are frozen, so that a step computes the tokens still to be decided.

Paper    Hu et al. 2025, "Accelerating diffusion language model inference via efficient KV caching and guided diffusion"
         (arXiv 2505.21467), section 3.1
Card     the shipped model of characters fills in eight passages of which the last words are hidden, one token a call:
         multiplications as counted, and characters unlike those of the network as it is, all refreshed at every 4th step;
         refreshed at every step, nothing may differ. The control computes every step as it is.
Differs  the cache alone: guided diffusion, where a causal model says how many drafted tokens are shown, is another part and
         is not built. Agreement is with the uncached run of the same plan, not accuracy on benchmarks.
"""

from __future__ import annotations

from typing import Any

import torch

import ebbtide as ebb
from ebbtide.measure.cost import cost
from ebbtide.samples import Samples
from ebbtide.systems import Bench, Card, System
from ebbtide.zoo.text import encode

SYSTEM = System(
    id="freecache",
    family="text",
    title="Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided Diffusion",
    year=2025,
    paper="2505.21467",
    claim="Up to 34x end-to-end speedup (later version: 12.1x average) on Dream-7B/LLaDA-8B without accuracy loss",
    what="Keys and values of settled tokens are frozen, and only tokens still to be decided go through the network.",
    parts=("network/freecache",),
    presets={
        "freecache": {
            "solve": {"name": "threshold", "threshold": 0.9},
            "grid": {"name": "events"},
            "network": [{"name": "freecache", "refresh": 4}],
        }
    },
    differs="the cache without guided diffusion; agreement with the uncached run in place of accuracy",
)

PASSAGES = (
    "First Citizen:\nBefore we proceed any further, hear me ________.",
    "What say you now? what comfort have we now? Speak, my ____ ____.",
    "The king is come to speak with you, my lord, and ____ ____ here.",
    "I pray you, sir, let me not stand in the rain, for I ___ ____ old.",
    "Good night, good night! parting is such sweet ______, my ____.",
    "Now is the winter of our discontent made glorious ______ by this ___.",
    "If I were so, he should not hear me speak; but I ___ not ____ him.",
    "My lord, the duke is gone to meet the queen, and ____ ____ you come.",
)
ONE = {"name": "threshold", "threshold": 2.0}


def card(bench: Bench) -> Card:
    """What is spared, what it changes, and what it must not change."""
    model: Any = ebb.load("shakespeare")
    mask = model.process.mask
    given = [torch.where(torch.tensor([c == "_" for c in p]), mask, encode(p)).tolist() for p in PASSAGES]
    n, tokens = len(given), sum(row.count(mask) for row in given)
    plan = bench.plan("freecache").replace(solve=ONE)

    def run(network: list[dict[str, Any]]) -> tuple[Samples, int]:
        return cost(lambda: ebb.sample(model, plan.replace(network=network), cond={"prompt": given}, n=n))

    (full, most), (mine, work) = run([]), run(plan.network)
    unlike = int((full.x != mine.x).sum()) / tokens
    bench.check("multiplications without over with the cache", most / work, at_least=2, published="processed tokens")
    bench.check("hidden characters unlike the uncached run's", unlike, at_most=0.02, published="none")
    bench.check("calls unlike the uncached run's", abs(full.calls - mine.calls), at_most=0)
    every = run([{"name": "freecache", "refresh": 1}])[0]
    bench.check("refreshed at every step: tokens unlike", (every.x != full.x).sum(), at_most=0)
    never, least = run([{"name": "freecache"}])
    return bench.card(
        f"{unlike:.1%} of {tokens} hidden characters differ. Frozen for good, as the paper has it, "
        f"{int((never.x != full.x).sum()) / tokens:.1%} do, at {most / least:.1f}x fewer multiplications: in a small network "
        "what is settled still hangs on what is not."
    )
