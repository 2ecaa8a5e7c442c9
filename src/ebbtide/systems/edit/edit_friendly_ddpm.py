"""Edit-friendly DDPM inversion: the noise maps of a picture, drawn again under another condition.

Paper    Huberman-Spiegelglas et al. 2024 (arXiv 2304.06140)
Card     digits that `digits` drew are read under their labels and drawn again: in float64 under the same label, which gives
         them back; under another, against img2img with the same solver, guidance and steps at two strengths. Distances are
         compared at as many readings, along the straight line between img2img's strengths. Then what the maps are
         like, and two seeds
Differs  no DDIM inversion is measured beside it, and maps are not shifted: patches of `digits` know their places
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.measure.pictures import agreement, reads
from ebbtide.systems import Bench, Card, System
from ebbtide.zoo import classifier

SYSTEM = System(
    id="edit-friendly-ddpm",
    family="edit",
    title="An Edit Friendly DDPM Noise Space: Inversion and Manipulations",
    year=2023,
    claim="perfect reconstruction of any image; diverse text edits; improves existing editing methods",
    what="The noise that makes a stochastic sampler draw this picture is found, and drawn again under another condition.",
    paper="2304.06140",
    parts=("start/edit-friendly", "correct/residual"),
    presets={
        "edit-friendly-ddpm": {
            "solve": "ancestral",
            "grid": {"name": "linear", "steps": 30},
            "guide": [{"name": "cfg", "scale": 4.0}],
            "start": {"name": "edit-friendly", "strength": 0.64, "scale": 1.0},
            "correct": ["residual"],
        },
    },
    differs="digits in place of photographs; no DDIM inversion is measured beside it",
    slow=True,
)

N, ON = 40, 3
STRENGTHS, OWN = (0.55, 0.65), 0.65
GRID = {"name": "linear", "steps": 20}


@functools.cache
def drawn() -> tuple[Tensor, Tensor]:
    """Clean digits, and the classes they were asked to be."""
    labels = torch.arange(N) % 10
    plan = ebb.Plan(solve="dpmpp-2m", grid={"name": "linear", "steps": 10}, guide={"name": "cfg", "scale": 1.5})
    return ebb.sample("digits", plan, cond=labels.tolist(), n=N, seed=1000).x, labels


def other(labels: Tensor) -> Tensor:
    """Another class for each."""
    return (labels + ON) % 10


def edited(plan: Any, strength: float, seed: int = 0, n: int = N) -> Tensor:
    """The first digits under the other label."""
    x, labels = (v[:n] for v in drawn())
    own = plan.replace(start={**plan.start, "strength": strength}, grid=GRID)
    cond = {"label": other(labels), "source": x, "from": {"label": labels}}
    if own.start["name"] != "edit-friendly":
        cond.pop("from")
    out: Tensor = ebb.sample("digits", own, cond=cond, n=n, seed=seed).x
    return out


def judged(x: Tensor) -> tuple[float, float]:
    """How many are read as the other class, and their mean squared distance to the digits they were."""
    source, labels = drawn()
    return agreement(reads(classifier.load(), x), other(labels)), float((x - source).square().mean())


def between(points: list[tuple[float, float]], agreed: float) -> float:
    """The distance of img2img where it is read so often, along the line between its strengths."""
    points = sorted(points)
    for (a, low), (b, high) in itertools.pairwise(points):
        if agreed <= b or (b, high) == points[-1]:
            return low + (high - low) * (agreed - a) / max(b - a, 1e-9)
    raise AssertionError


def back(plan: Any) -> float:
    """The greatest distance of digits in float64 to themselves, drawn again under their own label, over their size."""
    x, labels = (v[:10] for v in drawn())
    x = x.double()
    # the plan's own guidance reads the source too: then it is the same chain
    own = plan.replace(start={k: v for k, v in plan.start.items() if k != "scale"}, grid=GRID)
    again = ebb.sample("digits", own, cond={"label": labels, "source": x}, n=10, dtype=torch.float64).x
    return float((again - x).abs().max() / x.abs().max())


def maps(plan: Any) -> tuple[float, float]:
    """The variance of the maps, and the correlation of neighbours; 1 and 0 where there are none, as for fresh noise."""
    x, labels = (v[:20] for v in drawn())
    own = plan.replace(grid=GRID)
    state = begin(ebb.load("digits"), own, cond={"label": labels, "source": x}, n=20)[1]
    held: Any = state.memory.get("noise", {}).get("x")
    if held is None:
        return 1.0, 0.0
    z = held[:, int(state.i[0]) : -1].double()
    return float(z.var()), float((z[:, 1:] * z[:, :-1]).mean() / z.square().mean())


def card(bench: Bench) -> Card:
    """Digits given back, distances at equal readings, the maps, and two seeds."""
    plan = bench.plan("edit-friendly-ddpm")
    bench.check("largest error of digits drawn again under their own label, float64", back(plan), at_most=1e-5)
    variance, neighbours = maps(plan)
    bench.check("variance of the maps", variance, at_least=1.1, published="above 1")
    bench.check("correlation of neighbouring maps", neighbours, at_most=-0.05, published="negative")
    img2img = plan.replace(start="encoded", correct=[])
    points = [judged(edited(img2img, s)) for s in STRENGTHS]
    own = edited(plan, OWN)
    agreed, far = judged(own)
    plain = between(points, agreed)
    bench.check("edits read as the class asked for", agreed, at_least=0.6)
    bench.check("distance to the source over img2img's at as many readings", far / plain, at_most=0.85)
    apart = float((edited(plan, OWN, seed=500, n=10) - own[:10]).square().mean())
    bench.check("distance of the edits of two seeds", apart, at_least=0.02)
    said = ", ".join(f"{a:.2f} at {d:.3f}" for a, d in points)
    return bench.card(
        f"Read as asked, and squared distance: img2img {said} (strengths {STRENGTHS}); edits {agreed:.2f} at {far:.3f} "
        f"(strength {OWN})."
    )
