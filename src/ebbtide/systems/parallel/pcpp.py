"""PCPP: strips of one picture in processes of their own, which see the nearest rows of their neighbours, a step old.

Paper    Wang et al. 2024 (arXiv 2412.02962)
Card     digits, 12 of them, 12 Euler steps of which four are whole; four strips, in one process: two give the same numbers
         (tests/parallel/test_strips.py). Whole steps against the network as it is, tokens sent and seen, and how far samples
         are from those of one strip: displaced patch parallelism, PCPP, and strips that see nothing of each other. The
         control has one strip
Differs  distances in place of FID; a transformer of patches, so no halos. No time is claimed: strips are for several devices
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="pcpp",
    family="parallel",
    title="Partially Conditioned Patch Parallelism for Accelerated Diffusion Model Inference",
    year=2024,
    claim="About 70% less communication than DistriFusion and 2.36-8.02x speed-up on 4-8 GPUs, with some quality loss",
    what="Each process computes a strip and sees only the nearest rows of its neighbours, as they were a step before.",
    paper="2412.02962",
    parts=("network/pcpp",),
    presets={
        "pcpp": {
            "solve": "euler",
            "grid": {"name": "linear", "steps": 12},
            "network": [{"name": "pcpp", "strips": 4, "share": 0.5, "whole": 4}],
        },
    },
    differs="distances in place of FID; a transformer of patches, so no halos of convolutions; no time is claimed",
)

N, SIDE, STEPS = 12, 7, 12
LABELS = [k % 10 for k in range(N)]


def card(bench: Bench) -> Card:
    """Whole steps, what is sent and seen, and the order of distances."""
    model, plan = ebb.load("digits"), bench.plan("pcpp")
    full = run(model, plan.replace(network=[]))
    (spec,) = plan.network

    def other(**how: Any) -> Tensor:
        on = {} if bench.control else how
        return run(model, plan.replace(network=[{**spec, **on}]))

    bench.check("gap to the network as it is, all steps whole", (other(whole=STEPS) - full).abs().max(), at_most=1e-5)
    ours, displaced = (
        plan.replace(network=[{**spec, **how}]).parts("network")[0] for how in ({}, {"share": 1.0, "reach": 3})
    )
    tokens = SIDE * SIDE
    most = displaced.sent(tokens)
    share = ours.sent(tokens) / most if most else float("nan")
    bench.check("tokens sent a step, of displaced patches'", share, at_most=0.35, published="0.3")
    work = attended(ours, tokens) / tokens**2
    bench.check("multiplications of attention, of the whole network's", work, at_most=0.6)
    near, mine, none = (gap(other(**how), full) for how in ({"share": 1.0, "reach": 3}, {}, {"share": 0.0}))
    bench.check("distance to whole steps, of displaced patches, over PCPP's", near / mine if mine else 9.0, at_most=1.0)
    bench.check("distance of PCPP over that of strips alone", mine / none if none else 9.0, at_most=0.5)
    return bench.card(f"Distances {near:.4f} displaced, {mine:.4f} PCPP, {none:.4f} alone.")


def attended(part: Any, count: int) -> int:
    """Pairs of a token and one that it sees, in a layer of a step."""
    spans, total = part.spans(count), 0
    for p, (a, b) in enumerate(spans):
        others = sum(d - c for q in range(part.strips) if q != p for c, d in [part.seen_of(p, q, count)])
        total += (b - a) * (b - a + others)
    return total


def run(model: Any, plan: Any) -> Tensor:
    """Digits, whatever the patch notes."""
    loop, state = begin(model, plan, LABELS, N)
    for step in loop.run(state):
        state = step.state
    x: Tensor = state.x
    return x


def gap(x: Tensor, full: Tensor) -> float:
    """The root mean square distance of two sets of pictures, a geometric mean over them."""
    each = (x - full).square().flatten(1).mean(1).sqrt()
    return float(each.log().mean().exp()) if bool(each.all()) else 0.0
