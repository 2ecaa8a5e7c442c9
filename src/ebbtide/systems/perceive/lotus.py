"""Lotus: a network that predicts the annotation itself, at one time, needs one step and no luck with its noise.

Paper    He et al. 2024 (arXiv 2409.18124), sections 4.1 to 4.4
Card     96 scenes of solids that no network saw, heights in [-1, 1]: the error of one step against that of 50 steps of a
         diffusion of as much training, and the spread over seeds of their first answers; the band around edges, against
         the same without the detail preserver; what the network says when it is asked for the picture. The control asks
         the diffusion in its place
Differs  trained from nothing on made scenes: no picture model of this size is there to start from, so nothing is said of
         transfer to real pictures
"""

from __future__ import annotations

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.denoise.model import Model
from ebbtide.learn.annotating import RECONSTRUCT, Annotating
from ebbtide.systems import Bench, Card, System
from ebbtide.zoo.shapes import Shapes, edges

SYSTEM = System(
    id="lotus",
    family="perceive",
    title="Lotus: Diffusion-based Visual Foundation Model for High-quality Dense Prediction",
    year=2024,
    claim="State-of-the-art zero-shot depth and normals without more data or capacity; hundreds of times faster than most "
    "diffusion depth models",
    what="A denoiser becomes a one-step predictor of depth: it predicts the clean annotation at a single fixed time.",
    paper="2409.18124",
    presets={"lotus": {"solve": "euler", "grid": {"name": "linear", "steps": 1}}},
    differs="made scenes of 20 x 20 pixels, and networks trained from nothing",
)

N, SEEDS, MANY = 96, 4, 50


def scenes() -> tuple[Tensor, Tensor]:
    """Heights and pictures of scenes that are in no recipe's data, (N, 1, S, S) each."""
    height, picture = Shapes(seed=1).rows(torch.arange(N))[0].unbind(1)
    return height, picture


def answers(model: Model, picture: Tensor, steps: int = 1, seeds: int = 1) -> Tensor:
    """Heights by seed and scene, held in [-1, 1], (seeds, N, 1, S, S)."""
    plan = ebb.Plan.from_dict(SYSTEM.presets["lotus"]).replace(grid={"name": "linear", "steps": steps})
    shown = picture.repeat(seeds, 1, 1, 1)
    x: Tensor = ebb.sample(model, plan, cond={"picture": shown}, n=len(shown), batch=len(shown)).x
    return x.clamp(-1, 1).unflatten(0, (seeds, -1))


def rms(x: Tensor) -> float:
    """The root mean square of numbers."""
    return float(x.double().square().mean().sqrt())


def card(bench: Bench) -> Card:
    """One step against many, seeds against seeds, edges, and the switch."""
    height, picture = scenes()
    lotus = ebb.load(bench.fault("shapes-depth", "shapes-depth-diffusion"))
    plain, slow = ebb.load("shapes-depth-plain"), ebb.load("shapes-depth-diffusion")
    ours, bare, first = (answers(m, picture, seeds=SEEDS) for m in (lotus, plain, slow))
    last = answers(slow, picture, MANY)
    one, many = rms(ours[0] - height), rms(last[0] - height)
    bench.check(f"error of one step, over the diffusion's of {MANY}", one / many, at_most=1.0, published="no worse")
    spread, wide = (float(v.double().var(0).mean().sqrt()) for v in (ours, first))
    bench.check("spread over seeds of the diffusion's first answer, over ours", wide / spread, at_least=5.0)
    band = edges(height).expand_as(ours)
    sharp, soft = (rms((v - height)[band]) for v in (ours, bare))
    eps = Noise(keys(range(N)), torch.zeros(N, dtype=torch.int64)).normal(picture)
    with torch.no_grad():
        same = Annotating().said(lotus.denoiser.module, eps, picture, RECONSTRUCT)  # type: ignore[attr-defined]
    bench.check(
        "error of the picture it is asked for, over that of its height as one",
        rms(same - picture) / rms(ours[0] - picture),
        at_most=0.5,
    )
    level, dull = rms(height - height.mean()), float(bare.double().var(0).mean().sqrt())
    return bench.card(
        f"Errors of heights in [-1, 1]: one step {one:.3f}, the diffusion in {MANY} steps {many:.3f} and in one "
        f"{rms(first[0] - height):.3f}, the mean of all heights {level:.3f}. Around edges {sharp:.3f}, without the detail "
        f"preserver {soft:.3f}. Spread over seeds {spread:.4f}, without the preserver {dull:.4f}, of the diffusion's first "
        f"answer {wide:.3f}. The diffusion is a weak one: after 800 steps of training it is worse than the mean of all "
        "heights, so what is shown is what each learns from as little training. The preserver gains about 1% around "
        "edges, of one training each: no more than a hint."
    )
