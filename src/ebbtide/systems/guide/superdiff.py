"""SuperDiff: models superposed while sampling, weighted by densities that a run reads off its own path.

    OR     sample what one model or another would: weights by density            `guide/superdiff-or`
    AND    sample what all of them would: densities that grow alike              `solve/superdiff-and`

Paper    Skreta et al. 2024 (arXiv 2412.17762), theorem 1, proposition 6
Card     two mixtures of three Gaussians in R^2 that cross, each a label of one exact model. OR: the running densities against
         the true ones as steps double, and samples against the equal mixture. AND: the densities as its path tells them, and
         the true ones of its samples. Both against an even average of the scores (OR at temperature 0), and with two
         identical models. The control samples the first model alone
Differs  densities by the kernels of a step in place of Ito's formula. Several networks are one denoiser that chooses by a
         leaf of the condition
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model
from ebbtide.denoise.superposition import gains
from ebbtide.measure.distances import energy_test
from ebbtide.process.gaussian import VPLinear
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="superdiff",
    family="guide",
    title="The Superposition of Diffusion Models Using the Itô Density Estimator",
    year=2024,
    claim="Density estimates without extra cost over Hutchinson; more diverse CIFAR-10 generation, more faithful prompt "
    "combination in Stable Diffusion, better unconditional protein design",
    what="Models are superposed while sampling, as a logical OR or AND, by densities that a run reads off its own path.",
    paper="2412.17762",
    parts=("guide/superdiff-or", "solve/superdiff-and"),
    presets={
        "superdiff-or": {
            "solve": "ancestral",
            "grid": {"name": "log-snr", "steps": 100},
            "guide": [{"name": "superdiff-or", "others": [{"label": 1}]}],
        },
        "superdiff-and": {
            "solve": {"name": "superdiff-and", "others": [{"label": 1}]},
            "grid": {"name": "log-snr", "steps": 100},
        },
    },
    differs="densities by the kernels of a step; exact mixtures in place of pictures and proteins",
)

N, SEED = 1000, 0


@functools.cache
def mixture() -> GaussianMixture:
    """Two models, label 0 and label 1; any label is the equal mixture of the two."""
    means = [[-3.0, 0.0], [-1.0, 2.0], [1.0, -2.0], [3.0, 0.0], [1.0, 2.0], [-1.0, -2.0]]
    return GaussianMixture(VPLinear(), [1.0] * 6, means, 0.15, [0, 0, 0, 1, 1, 1])


def model() -> Model:
    """The mixture as what users hold."""
    return ebb.load(mixture(), like=torch.zeros(2, dtype=torch.float64), labels=2)


def density(x: Tensor, t: Tensor | float) -> Tensor:
    """log q_i(x_t) of both models, (B, 2)."""
    t = t if isinstance(t, Tensor) else torch.full((len(x),), t, dtype=torch.float64)
    return torch.stack([mixture().log_prob(x, t, {"label": torch.full((len(x),), i)}) for i in (0, 1)], 1)


def start(plan: ebb.Plan) -> Any:
    """Where all runs begin."""
    return begin(model(), plan, cond=0, n=N, seed=SEED)[1]


def samples(plan: ebb.Plan) -> Tensor:
    """Samples of a plan whose elements are told label 0."""
    x: Tensor = ebb.sample(model(), plan, cond=0, n=N, seed=SEED).x
    return x


def told(plan: ebb.Plan) -> float:
    """How far the running densities are from the true ones at the last point of a run, root mean square."""
    begun = start(plan)
    *_, last = ebb.run(model(), plan, cond=0, n=N, seed=SEED)
    memory = last.state.memory.get("guide/0", {})
    if not memory:
        return float("nan")
    true = density(memory["x"], memory["t"]) - density(begun.x, begun.t)
    return float((memory["density"] - true).square().mean().sqrt())


def apart(plan: ebb.Plan) -> float:
    """By how much the densities of the two come to differ on the way, as the path tells them: the largest."""
    g, states = mixture(), [start(plan)]
    states += [step.state for step in ebb.run(model(), plan, cond=0, n=N, seed=SEED)]
    worst, sum_ = 0.0, torch.zeros(N, dtype=torch.float64)
    for a, b in itertools.pairwise(states):
        means = [g(a.x, a.t, {"label": torch.full((N,), i)}).mean for i in (0, 1)]
        grown = gains(g.process, a.x, a.t, b.x, b.t, means, {})
        sum_ = sum_ + grown[:, 0] - grown[:, 1]
        worst = max(worst, float(sum_.abs().max()))
    return worst


def card(bench: Bench) -> Card:
    """OR: densities and law. AND: densities along the path and of samples. Both with identical models."""
    either, both = bench.plan("superdiff-or"), bench.plan("superdiff-and")
    average: Any = ebb.Plan.from_dict(dict(SYSTEM.presets["superdiff-or"]))
    average = average.replace(guide=[{**average.guide[0], "temperature": 0.0}])

    errors = [told(either.replace(grid={**either.grid, "steps": n})) for n in (50, 100, 200)]
    falls = min(a / b for a, b in itertools.pairwise(errors))
    bench.check("least fall of the error of running densities, steps doubled", falls, at_least=1.3)
    truth = mixture().sample(N, seed=10**6)
    here, there = energy_test(samples(either), truth), energy_test(samples(average), truth)
    bench.check("energy distance of OR, over what chance allows", here.distance / here.null, at_most=1.0)
    bench.check("energy distance of an even average, over the same", there.distance / there.null, at_least=2.0)

    bench.check("largest gap of running densities under AND", apart(both), at_most=1e-9)
    ours, even = density(samples(both), 0.0), density(samples(average), 0.0)
    gaps = [float((d[:, 0] - d[:, 1]).abs().mean()) for d in (ours, even)]
    least = [float(d.amin(1).mean()) for d in (ours, even)]
    bench.check("gap of true densities under AND, over an average's", gaps[0] / gaps[1], at_most=0.3)
    bench.check("lesser density under AND, above an average's", least[0] - least[1], at_least=0.0)

    alone, same = samples(average.replace(guide=[])), [{"label": 0}]
    twins = [average.replace(guide=[{"name": "superdiff-or", "others": same}])]
    twins.append(average.replace(guide=[], solve={"name": "superdiff-and", "others": same}))
    off = max(float((samples(p) - alone).abs().max()) for p in twins)
    bench.check("identical models against one of them", off, at_most=1e-9)
    return bench.card(
        f"Error of the running densities at 50, 100 and 200 steps: {', '.join(f'{e:.2f}' for e in errors)}. Mean gap of true "
        f"densities {gaps[0]:.2f} under AND, {gaps[1]:.2f} of an average; lesser one {least[0]:.2f} and {least[1]:.2f}."
    )
