"""MagicMix: the layout of one picture under the content of another condition.

Paper    Liew et al. 2022 (arXiv 2210.16056)
Card     digits that `digits` drew, under another label: how many are read as that label and how alike they are to the source
         as nu rises from the source's own way down to plain img2img. Then distances at as many readings as img2img has at
         other strengths, and the same with the layout of another digit
Differs  digits in place of photographs, and likeness is the correlation of blurred pixels
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.measure.pictures import agreement, reads
from ebbtide.systems import Bench, Card, System
from ebbtide.systems.edit.edit_friendly_ddpm import between, drawn, other
from ebbtide.zoo import classifier

SYSTEM = System(
    id="magicmix",
    family="edit",
    title="MagicMix: Semantic Mixing with Diffusion Models",
    year=2022,
    claim="novel concepts are mixed, layout and geometry preserved, with no mask and no retraining",
    what="While the layout forms, every step is drawn back towards a picture, noised to the same time.",
    paper="2210.16056",
    parts=("correct/layout-mix",),
    presets={
        "magicmix": {
            "solve": "euler",
            "grid": {"name": "linear", "steps": 30},
            "guide": [{"name": "cfg", "scale": 4.0}],
            "start": {"name": "encoded", "strength": 0.6},
            "correct": [{"name": "layout-mix", "nu": 0.9, "first": 0.6, "last": 0.3}],
        },
    },
    differs="digits in place of photographs; likeness is the correlation of blurred pixels",
    slow=True,
)

NUS, STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0), (0.6, 0.7, 0.8)
TOP = 0.8
MIX: dict[str, Any] = {"nu": 0.75, "first": 0.8, "last": 0.5}
GRID = {"name": "linear", "steps": 20}


def mixed(plan: Any, strength: float, source: Tensor | None = None, **mix: Any) -> Tensor:
    """The digits under the other label, or another source; `mix` as the plan's correction has it."""
    x, labels = drawn()
    correct = [c if c.get("nu") == 1 else {**c, **mix} for c in plan.correct]
    own = plan.replace(start={"name": "encoded", "strength": strength}, grid=GRID, correct=correct)
    cond = {"label": other(labels), "source": x if source is None else source}
    out: Tensor = ebb.sample("digits", own, cond=cond, n=len(x)).x
    return out


def blurred(x: Tensor) -> Tensor:
    """Pictures without detail, centred and of one size, (n, 49)."""
    low = torch.nn.functional.avg_pool2d(x, 4).flatten(1)
    return torch.nn.functional.normalize(low - low.mean(1, keepdim=True), dim=1)


def judged(x: Tensor) -> tuple[float, float, float]:
    """How many are read as the other class, their squared distance to the source, and how alike they are to it."""
    source, labels = drawn()
    alike = float((blurred(x) * blurred(source)).sum(1).mean())
    return agreement(reads(classifier.load(), x), other(labels)), float((x - source).square().mean()), alike


def rank(values: list[float]) -> float:
    """The correlation of the ranks of values with their places."""
    v = torch.tensor(values, dtype=torch.float64).mul(1e3).round()
    ranks = (v[:, None] > v).double().sum(1) + (v[:, None] == v).double().sum(1) / 2
    place = torch.arange(len(values)).double()
    return 0.0 if float(ranks.std()) == 0 else float(torch.corrcoef(torch.stack([ranks, place]))[0, 1])


def card(bench: Bench) -> Card:
    """Content and layout as nu rises, distances at equal readings, another's layout."""
    plan = bench.plan("magicmix")
    sweep = [judged(mixed(plan, TOP, **{**MIX, "nu": nu})) for nu in NUS]
    bench.check("rank correlation of readings with nu", rank([v[0] for v in sweep]), at_least=0.9, published="rising")
    bench.check("rank correlation of likeness with nu", rank([v[2] for v in sweep]), at_most=-0.9, published="falling")
    img2img = plan.replace(correct=[])
    points = [judged(mixed(img2img, s)) for s in STRENGTHS]
    agreed, far, alike = sweep[NUS.index(MIX["nu"])]
    plain = between([v[:2] for v in points], agreed)
    bench.check("edits read as the class asked for", agreed, at_least=0.6)
    bench.check("distance to the source over img2img's at as many readings", far / plain, at_most=0.95)
    bench.check("distance to plain img2img at nu = 1", abs(sweep[-1][1] - points[-1][1]), at_most=0.0)
    strange = judged(mixed(plan, TOP, drawn()[0].roll(1, 0), **MIX))[2]
    bench.check("likeness lost with the layout of another digit", alike - strange, at_least=0.1)
    said = "; ".join(f"{nu:g}: {v[0]:.2f}, {v[2]:.2f}" for nu, v in zip(NUS, sweep, strict=True))
    way = ", ".join(f"{v[0]:.2f} at {v[1]:.3f}" for v in points)
    return bench.card(
        f"Read as asked, and likeness, by nu: {said}. Read as asked, and squared distance: img2img {way} (strengths "
        f"{STRENGTHS}), mixed {agreed:.2f} at {far:.3f}."
    )
