"""The DDPM recipe, one slot at a time: which of its pieces make samples better, with the uncertainty of every answer.

    base    a class-conditional U-Net, linear betas, T = 1000 steps of x_s ~ q(x_s | x_t, x0)          (DDPM)
    solve   x_s = a_s x0 + sqrt(c_s^2 - s^2) eps + s z on a sub-grid of 50,  s = eta sqrt(beta~)       (DDIM)
    guide   eps = (1 + w) eps(x, y) - w eps(x): `cfg` at scale 1 + w
    model   betas linear, cosine, quadratic or sigmoid: a network for each
    space   pixels, or latents of variance 1 of a small autoencoder

Every swap leaves the rest as it is, and is asked for the same labels from the same seeds (`measure.ablation`).

Paper    "Enhancing diffusion models for high-quality image generation", a report of 2024; its pieces: Ho et al. 2020 (arXiv
         2006.11239), Song et al. 2021 (2010.02502), Ho, Salimans 2022 (2207.12598), Rombach et al. 2022 (2112.10752)
Card     digits that the shipped model drew, at 16 x 16 pixels; four networks of a thousand updates, one for each schedule,
         and one of latents; 240 samples of each plan, three repeats of 80. The control draws with DDPM cut to 50 steps
         wherever DDIM is meant, and without guidance.
Differs  the networks learn v = a eps - c x0, from which eps = c x + a v: taught eps itself, a network this small is off by
         150 times its error at t = 1, and DDIM gave a Frechet distance of 861 in place of 22
         (800 updates of 128, pixels not held to their range). Every 2 x 2 pixels are a place
         of four channels, which is a permutation, so that a thousand steps take seconds.
         Two comparisons come out open at this size, where the networks' own error outweighs that of the steps. DDIM of 50
         steps has 1.13 (0.96 to 1.33) times the Frechet distance of DDPM of 1000, for at most 1.1; with guidance it is
         0.34 times. DDPM cut to 50 steps, for worse, is no different from DDIM (1.08, 0.92 to 1.28; with the posterior's
         variance 0.88, 0.75 to 1.05), so the card asks it at 10 steps and of the variance beta, Ho et al.'s own: 1.59 (1.42
         to 1.77); the posterior's variance is no different there either (1.03, 0.92 to 1.16).
         Latents are learnt no better than pixels in as many updates, and are far above what their autoencoder loses.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import ebbtide as ebb
from ebbtide.denoise.model import Model
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.learn.train import Recipe, fitted
from ebbtide.measure.ablation import SAME, Change, Judge, Trial, ablate
from ebbtide.measure.metrics import frechet, moments
from ebbtide.process.table import VPTable
from ebbtide.systems import Bench, Card, System
from ebbtide.zoo import autoencoder, classifier, reference
from ebbtide.zoo.data import Pictures
from ebbtide.zoo.models import model_of
from ebbtide.zoo.networks import UNet

SYSTEM = System(
    id="ddpm-recipe-report",
    family="other",
    title="Enhancing Diffusion Models for High-Quality Image Generation",
    year=2024,
    claim="DDIM and guidance give faster inference and better images on CIFAR-10 and ImageNet-100; latents and schedules "
    "pose difficulties",
    what="An ablation that swaps one slot of a plan at a time and says better, worse or no difference, with intervals.",
    parts=("guide/cfg",),
    presets={
        "report-ddpm": {
            "solve": {"name": "ddpm", "variance": "fixed-large"},
            "grid": {"name": "linear", "steps": 1000},
        },
        "report-ddim": {"solve": "euler", "grid": {"name": "linear", "steps": 50}},
        "report-ddim-mild": {
            "solve": "euler",
            "grid": {"name": "linear", "steps": 50},
            "guide": [{"name": "cfg", "scale": 2.0}],
        },
        "report-ddim-guided": {
            "solve": "euler",
            "grid": {"name": "linear", "steps": 50},
            "guide": [{"name": "cfg", "scale": 3.0}],
        },
    },
    slow=True,
    differs="16 x 16 digits and networks of v; at 50 steps DDPM and DDIM are no different, at 10 DDPM with "
    "variance beta is worse and with the posterior's is not; unguided DDIM has 1.13 (0.96 to 1.33) times the "
    "Frechet distance of DDPM with 1000 steps, where at most 1.1 was looked for",
)

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2", "quadratic": "scaled_linear", "sigmoid": "sigmoid"}
UPDATES, SIDE = 1000, 16
SHORT = {"name": "linear", "steps": 10}
LABELS, REPEATS = [k % 10 for k in range(80)], 3


# -------------------------------------------------------------------- pictures and networks


def folded(x: Tensor) -> Tensor:
    """Pictures (N, 1, 28, 28) at 16 x 16 pixels, four of them to a place: (N, 4, 8, 8)."""
    return F.pixel_unshuffle(F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True), 2)


def unfolded(z: Tensor) -> Tensor:
    """The pictures (N, 1, 28, 28) in [-1, 1] that the classifier reads."""
    return F.interpolate(F.pixel_shuffle(z, 2), size=(28, 28), mode="bicubic").clamp(-1, 1)


def learnt(name: str, data: Pictures, schedule: str) -> Model:
    """A U-Net of 180,000 weights fitted to data (N, 4, 8, 8) under a schedule."""
    network = UNet(size=8, channels=4, widths=(16, 32), head=16)
    objective = FlowMatching(process=VPTable(beta_schedule=SCHEDULES[schedule]), kind="v", peaked=0.0)  # type: ignore[arg-type]
    recipe = Recipe(name, "digits", network, objective, UPDATES, batch=64, lr=4e-3, warmup=100, ema=0.995)
    return model_of(fitted(recipe, data), {**network.about(), **objective.about()}, name)


@functools.cache
def in_pixels(schedule: str) -> Model:
    """The model of small pictures under a schedule."""
    drawn = reference.pictures()
    return replace(learnt(schedule, Pictures(folded(drawn.x), drawn.labels), schedule), decode=unfolded)


@functools.cache
def in_latents() -> tuple[Model, Tensor]:
    """The model of latents, and the data (N, 1, 28, 28) as its autoencoder gives it back."""
    coder, drawn = autoencoder.load(), autoencoder.padded(reference.pictures())

    def shown(z: Tensor) -> Tensor:
        return autoencoder.decode(coder, z)[..., 2:-2, 2:-2].clamp(-1, 1)  # the border that was added

    z = autoencoder.encode(coder, drawn.x)
    model = learnt("latents", Pictures(z, drawn.labels), "linear")
    return replace(model, decode=shown), shown(z[: len(LABELS) * REPEATS])


def trial(data: Tensor) -> Trial:
    """Three repeats of eighty labels, read by the shipped classifier and held against these pictures."""
    judge = Judge(reference.features, classifier.load(), moments(reference.features(data)))
    return Trial(judge, LABELS, REPEATS, draws=100)


@functools.cache
def small() -> Trial:
    """The trial of small pictures: what their size loses is lost in the data too."""
    return trial(unfolded(folded(reference.pictures().x)))


# -------------------------------------------------------------------- closed form, and words


def from_posterior(eta: float) -> float:
    """How far DDIM's step on the full grid is from DDPM's (Ho et al., eq. 7): its two weights and its variance."""
    process = VPTable()
    before = torch.cat([torch.ones(1, dtype=torch.float64), process.abar[:-1]])
    beta, left = 1 - process.abar / before, 1 - process.abar
    t = torch.arange(process.steps + 1, dtype=torch.float64) / process.steps
    w: Any = process.weights_of(t[1:], t[:-1], eta)
    mean = w.x0 - before.sqrt() * beta / left, w.x - (1 - beta).sqrt() * (1 - before) / left
    return float(torch.stack([*mean, w.noise**2 - beta * (1 - before) / left]).abs().max())


def told(c: Change) -> str:
    """A ratio, its interval, its repeats and what it says."""
    each = ", ".join(f"{r:.2f}" for r in c.repeats)
    return f"{c.ratio.value:.2f} [{c.ratio.low:.2f}, {c.ratio.high:.2f}] ({each}) {c.verdict}"


def card(bench: Bench) -> Card:
    model, by = in_pixels("linear"), small()
    ddpm, ddim = (ebb.Plan.from_dict(SYSTEM.presets[f"report-{name}"]) for name in ("ddpm", "ddim"))
    cut = ddpm.replace(grid=ddim.grid)
    ddim = bench.fault(ddim, cut)
    mild, guided = (bench.plan(f"report-ddim-{name}").replace(solve=ddim.solve) for name in ("mild", "guided"))

    gap = from_posterior(bench.fault(1.0, 0.0))
    bench.check("DDIM at eta = 1 on 1000 steps, from DDPM's mean and variance", gap, at_most=1e-6, published="0")

    whole = by.run(model, ddpm)
    alone, helped = (by.contrast(whole, by.run(model, plan)) for plan in (ddim, mild))
    bench.check("calls of guided DDIM over DDPM's", helped["calls"].ratio.value, at_most=0.1)
    bench.check("Frechet of guided DDIM over DDPM's", helped["frechet"].ratio.high, at_most=0.7, published="below 1")

    null = bench.fault({"name": "ancestral", "eta": 0.0}, cut.solve)
    swaps = {
        "solve": [cut.solve, "ancestral", null],
        "guide": [mild.guide, guided.guide],
        "model": [in_pixels(name) for name in SCHEDULES if name != "linear"],
    }
    rows = ablate(by, model, ddim, swaps)
    large, least, same, two, three, *schedules = (row.changes for row in rows)

    few = ablate(by, model, ddim.replace(grid=SHORT), {"solve": [cut.solve, "ancestral"]})
    low = few[0].changes["frechet"].ratio.low
    bench.check("Frechet of DDPM cut to 10 steps over DDIM's of 10", low, at_least=1.1, published="above 1")
    first, more = two["accuracy"].ratio.low, three["accuracy"].other - two["accuracy"].other
    bench.check("accuracy at w = 1 over w = 0", first, at_least=1.02, published="above 1")
    bench.check("accuracy at w = 2 less that at w = 1", more, at_least=0.0, published="above 0")
    spread = three["diversity"].ratio.high
    bench.check("diversity at w = 2 over w = 0", spread, at_most=0.95, published="below 1")

    one, other, _ = by.run(model, ddim).repeats()
    unlike = [c for c in (*same.values(), *by.contrast(one, other).values()) if c.verdict != SAME]
    bench.check("figures of null swaps that are called a difference", len(unlike), at_most=0.0)

    latents, back = in_latents()
    over = trial(reference.pictures().x)
    made = frechet(*over.judge.moments, *moments(over.run(latents, ddim).features))
    floor = frechet(*over.judge.moments, *moments(reference.features(back)))
    bench.check("Frechet of latents over their autoencoder's floor", made / floor, at_least=1.0, published="above 1")

    names = [row.name for row in rows if row.slot == "model"]
    betas = "; ".join(f"{name} {told(c['frechet'])}" for name, c in zip(names, schedules, strict=True))
    read = ", ".join(f"{v:.3f}" for v in (two["accuracy"].base, two["accuracy"].other, three["accuracy"].other))
    shorter = "; ".join(f"{row.name} {told(row.changes['frechet'])}" for row in few)
    return bench.card(
        f"Checks of ratios are of the end of the interval that is nearer to 1. Frechet over DDPM's, 1000 steps "
        f"({alone['frechet'].base:.1f}): DDIM {told(alone['frechet'])}; guided {told(helped['frechet'])}. Over DDIM's: DDPM "
        f"{told(large['frechet'])}, with the posterior's variance {told(least['frechet'])}; both of 10 steps: {shorter}; "
        f"w = 1 {told(two['frechet'])}; w = 2 {told(three['frechet'])}; betas {betas}. Accuracy at w = 0, 1, 2: {read}. "
        f"Latents {made:.1f}, their autoencoder alone {floor:.2f}."
    )
