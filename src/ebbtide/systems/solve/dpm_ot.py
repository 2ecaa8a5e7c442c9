"""DPM-OT: an optimal transport map leads from noise to stored latents, so only the last few steps are left.

    z ~ N(0, I) -> y_i*,  i* = argmax <z, y_i> + h_i -> 5 steps -> x0        y_i data noised as far as 5 steps go back

Paper    Li et al. 2023 (arXiv 2307.11308)
Card     25 sharp modes on a grid in the plane, 200 latents. Masses of cells, transport cost and order of the map; mode
         mixture, the share of samples beyond 3 sigma of every mode, against DDIM from noise at equal calls. The control
         leaves heights at 0 and starts from noise at the latents' time
Differs  200 latents in the plane where the row asks for 1000, and no digits: fitting the heights is most of the card's
         time. Angles are not thresholded, as no two latents are mixed
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.measure.metrics import energy_distance
from ebbtide.process.gaussian import EDM
from ebbtide.start import table
from ebbtide.start.transport import cells, fit
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="dpm-ot",
    family="solve",
    title="DPM-OT: A New Diffusion Probabilistic Model Based on Optimal Transport",
    year=2023,
    claim="High-quality samples in about 10 evaluations with much less mode mixture",
    what="A semi-discrete optimal transport map deals stored, partly denoised latents out to the noise.",
    paper="2307.11308",
    parts=("start/transport",),
    differs="200 latents, exact score, no threshold of angles",
)

MODES, LATENTS, STEPS, LEVEL, SPREAD, FAR = 25, 200, 5, 0.3, 0.05, 20.0


def mixture() -> GaussianMixture:
    """A grid of 5 x 5 narrow modes."""
    c = 2 * (torch.arange(5, dtype=torch.float64) - 2)
    return GaussianMixture(EDM(sigma_max=FAR), [1.0] * MODES, torch.cartesian_prod(c, c), SPREAD**2)


def normal(n: int, seed: int) -> Tensor:
    """Noise (n, 2)."""
    return Noise(keys([seed]), torch.zeros(1, dtype=torch.int64)).normal(torch.zeros(1, n, 2, dtype=torch.float64))[0]


def mixed(x: Tensor, g: GaussianMixture) -> float:
    """The share of samples beyond 3 sigma of every mode."""
    return float((torch.cdist(x, g.means).amin(1) > 3 * SPREAD).double().mean())


def card(bench: Bench) -> Card:
    """The map, and what it saves."""
    g, n = mixture(), 2000
    latents = g.means[torch.arange(LATENTS) % MODES] + (SPREAD**2 + LEVEL**2) ** 0.5 * normal(LATENTS, 1)
    found = fit(latents, steps=300, lr=0.03)
    heights = bench.fault(found["heights"], torch.zeros(LATENTS, dtype=torch.float64))
    z = normal(200_000, 2)
    cell = cells(z, latents, heights)
    mass = torch.bincount(cell, minlength=LATENTS).double() / len(z) * LATENTS
    off = float(((mass - 1).abs() <= 0.2).double().mean())
    bench.check("cells of mass within 20% of 1 / N", off, at_least=0.95, published="all")
    some, to = z[:n], latents[cell[:n]]
    order = ((some[:, None] - some) * (to[:, None] - to)).sum(2)
    bench.check("least <z - z', T z - T z'> of pairs", order.min(), at_least=-1e-9)
    random = latents[torch.arange(n) % LATENTS]
    cost, dealt = ((some - v).square().sum(1).mean() for v in (to, random))
    bench.check("transport cost, of that dealt at random", cost / dealt, at_most=0.9)
    near = latents[cells(some + 0.05 * normal(n, 3), latents, heights)]
    jump, apart = (near - to).norm(dim=1).mean(), (random - random.roll(1, 0)).norm(dim=1).mean()
    bench.check("distance of neighbours' latents, of that at random", jump / apart, at_most=0.15)

    model = ebb.load(g, like=torch.zeros(2, dtype=torch.float64))
    grid = {"name": "karras", "steps": STEPS, "sigma_min": 0.03, "sigma_max": LEVEL}
    with tempfile.TemporaryDirectory() as folder:
        said = table.write(Path(folder) / "latents.safetensors", latents=latents, heights=heights)
        plan = bench.plan({"start": {"name": "transport", "table": said}, "grid": grid})
        out = ebb.sample(model, plan, n=n)
    ddim = ebb.sample(model, ebb.Plan(grid={**grid, "sigma_max": FAR}), n=n)
    bench.check("calls, less those of DDIM", (out.calls - ddim.calls) / n, at_most=0.0)
    bench.check("mode mixture, of that of DDIM", mixed(out.x, g) / mixed(ddim.x, g), at_most=0.3)
    truth = g.sample(n, seed=10**6)
    ours, theirs = (energy_distance(v, truth) for v in (out.x, ddim.x))
    bench.check("energy distance, of that of DDIM", ours / theirs, at_most=0.5)
    blind = ebb.sample(model, ebb.Plan(start="given", grid=grid), cond={"start": random}, n=n).x
    return bench.card(
        f"DDIM mixes modes in {mixed(ddim.x, g):.1%} of its samples, latents dealt at random in {mixed(blind, g):.1%}: they "
        "lie near a mode already, and what transport adds is a map whose neighbours stay neighbours, at less cost. "
        f"Energy distance {ours:.4f}, at random {energy_distance(blind, truth):.4f}: {LATENTS} latents stand for the data."
    )
