"""My system: static thresholding keeps samples inside the range of the data.

What is measured: data is a Gaussian of variance 1, so a third of exact samples lie outside [-1, 1]. With the clamp none do;
the control run takes the clamp away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebbtide.systems import Bench, Card, System

if TYPE_CHECKING:
    from ebbtide.samples import Samples

SYSTEM = System(
    id="my-system",
    family="theory",
    title="Photorealistic text-to-image diffusion models with deep language understanding",
    year=2022,
    claim="static thresholding keeps samples in the range of the data",
    what="The prediction of the data is clamped to its range at every step.",
    paper="2205.11487",
    parts=("guide/my-clamp",),
    presets={"my-system": {"solve": "dpmpp-2m", "grid": {"name": "linear", "steps": 20}, "guide": ["my-clamp"]}},
)


def card(bench: Bench) -> Card:
    """Every number of every sample lies in [-1, 1]."""
    import torch

    import ebbtide as ebb
    from ebbtide.denoise.exact import Gaussian
    from ebbtide.denoise.model import process

    like = torch.zeros(2, dtype=torch.float64)
    model = ebb.load(Gaussian(process("vp-cosine"), like, 1.0), like=like)
    out: Samples = ebb.sample(model, bench.plan("my-system"), n=500, seed=0)
    inside = (out.x.abs() <= 1).double().mean()
    bench.check("share of numbers within the range", inside, at_least=1.0, published="1")
    return bench.card("A clamp at the last step alone would pass too: this shows what is promised, not its price.")
