"""One More Step: a start that has the brightness which a model expects to find in its noise.

    trained on   x_T = a_T x0 + c_T eps,  a_T > 0        started from   N(0, I), whose mean is grey
    corrected    x_T = a_T psi(c) + c_T eps,             psi(c) the mean of what the module's own prompt c asks for

Paper    Hu et al. 2023 (arXiv 2311.15744)
Card     pictures of 8 x 8 whose brightness is even in (-1, 1), a_T^2 = 0.03. Prompts of the module ask for one of eight
         bands of brightness, as often as the data has it; the model is asked for one of two patterns only. Its answer is
         exact, so every error of brightness is the start's. The control starts from noise
Differs  psi is the table of class means, the least-squares optimum that a trained module strives for. Unprompted it is a
         constant and corrects nothing but the mean, here grey: the note has the figure. The model has no weights to hash;
         parts never write into one
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model
from ebbtide.measure.metrics import frechet_distance
from ebbtide.process.gaussian import VPLinear
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="one-more-step",
    family="solve",
    title="One More Step: A Versatile Plug-and-Play Module for Rectifying Diffusion Schedule Flaws and Enhancing "
    "Low-Frequency Controls",
    year=2023,
    claim="Better fidelity and low-frequency control with frozen base models; the module is shared by all models of one "
    "latent domain",
    what="One extra step turns true noise into the noisy but not empty start that models of a truncated schedule expect.",
    paper="2311.15744",
    parts=("start/one-more-step",),
    presets={
        "one-more-step": {
            "start": {
                "name": "one-more-step",
                "table": {"mean": [-0.875, -0.625, -0.375, -0.125, 0.125, 0.375, 0.625, 0.875]},
            },
            "solve": "dpmpp-2m",
            "grid": {"name": "linear", "steps": 16},
        }
    },
    differs="the module is the table of class means, its optimum, in place of a trained network",
)

N, BANDS, LEVELS = 512, 8, 16
LEFT = 6.913  # beta_max at which a^2 = 0.03 is left at t = 1


def world(process: VPLinear) -> GaussianMixture:
    """Two patterns, each at all levels of brightness; the label is the pattern."""
    wave = torch.where(torch.arange(8) % 2 == 0, 0.4, -0.4).double()
    patterns = torch.stack([wave[None, :].expand(8, 8), wave[:, None].expand(8, 8)])
    light = (2 * torch.arange(LEVELS, dtype=torch.float64) + 1) / LEVELS - 1
    means = (patterns[:, None] + light[None, :, None, None]).reshape(-1, 1, 8, 8)
    return GaussianMixture(process, [1.0] * len(means), means, 0.01, labels=[0] * LEVELS + [1] * LEVELS)


def data(n: int = N) -> Tensor:
    """Exact pictures (n, 1, 8, 8), every pattern and level equally often."""
    g = world(VPLinear())
    z = Noise(keys(range(10**6, 10**6 + n)), torch.zeros(n, dtype=torch.int64)).normal(g.means[:1].expand(n, -1))
    return (g.means[torch.arange(n) % len(g.means)] + 0.1 * z).reshape(n, 1, 8, 8)


def model(process: VPLinear) -> Model:
    """What users hold."""
    return ebb.load(world(process), like=torch.zeros(1, 8, 8, dtype=torch.float64), labels=2)


def cond(n: int = N) -> dict[str, Any]:
    """A pattern and a band for every element, all pairs equally often."""
    k = torch.arange(n)
    return {"label": k % 2, "oms": k // 2 % BANDS}


def brightness(x: Tensor) -> Tensor:
    """The mean of every picture."""
    return x.flatten(1).mean(1)


def distance(x: Tensor, y: Tensor) -> float:
    """Wasserstein-1 distance of two laws of brightness, from samples of one size."""
    return float((brightness(x).sort().values - brightness(y).sort().values).abs().mean())


def read(x: Tensor) -> Tensor:
    """The pattern seen: whether columns or rows differ more."""
    return (x.mean(2).std(-1) < x.mean(3).std(-1)).long()[:, 0]


def card(bench: Bench) -> Card:
    """Brightness, pictures, the module's own prompt, two solvers, and nothing to do where no signal is left."""
    plan, cut = bench.plan("one-more-step"), model(VPLinear(beta_max=LEFT))
    truth = data()
    plain = plan.replace(start="prior")
    for solve in ("dpmpp-2m", "euler"):
        fixed, flawed = (ebb.sample(cut, p.replace(solve=solve), cond=cond(), n=N).x for p in (plan, plain))
        ratio = distance(fixed, truth) / distance(flawed, truth)
        bench.check(f"brightness with {solve}, of the uncorrected distance", ratio, at_most=0.5)
        whole = frechet_distance(fixed, truth) / frechet_distance(flawed, truth)
        bench.check(f"Frechet distance with {solve}, of the uncorrected", whole, at_most=0.9)
    asked = [{**cond(), "oms": torch.full((N,), band)} for band in (0, BANDS - 1)]
    dark, light = (ebb.sample(cut, plan, cond=c, n=N).x for c in asked)
    shift = brightness(light).mean() - brightness(dark).mean()
    bench.check("brightness between contrasting prompts", shift, at_least=0.8)
    right = [float((read(x) == cond()["label"]).double().mean()) for x in (dark, light, flawed)]
    bench.check("pattern read rightly, loss by the prompt", right[2] - min(right[:2]), at_most=0.03)
    clean = model(VPLinear(zero_terminal=True))
    with_it, without = (ebb.sample(clean, p, cond=cond(64), n=64).x for p in (plan, plain))
    bench.check("change where no signal is left at t = 1", (with_it - without).abs().max(), at_most=0.0)
    bare = ebb.sample(cut, plan.replace(solve="euler"), cond={**cond(), "oms": torch.full((N,), -1)}, n=N).x
    oracle = plain.replace(start={"name": "encoded", "strength": 1.0}, solve="euler")
    best = ebb.sample(cut, oracle, cond={"label": torch.arange(N) // LEVELS % 2, "source": data()}, n=N).x
    return bench.card(
        f"Distance of brightness from noise {distance(flawed, truth):.3f}, unprompted (a constant psi) "
        f"{distance(bare, truth):.3f}, from true x_T {distance(best, truth):.3f}. Prompts are drawn as the data is; the "
        "spread within a band is not in psi."
    )
