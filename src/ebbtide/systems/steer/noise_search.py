"""Noise search: compute is spent on looking for good noise by a verifier, where more steps would not help any more.

Paper    Ma et al. 2025 (arXiv 2501.09732)
Card     eight narrow Gaussians on a ring, one of them rare. The verifier is 1 at its centre and fades; the judge, which the
         search never sees, is the exact log-probability that a sample is of that Gaussian. Then digits with the classifier.
         The control has a verifier that says the same of everything.
Differs  the law is exact in place of pictures by class; the digits have one classifier, which is verifier and judge
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.systems import Bench, Card, System
from ebbtide.systems.steer.dlbs import FOUR, HIT, LAW, gain, scores

SYSTEM = System(
    id="noise-search",
    family="steer",
    title="Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps",
    year=2025,
    paper="2501.09732",
    claim="Quality keeps rising with search compute long after adding denoising steps has saturated",
    what="Whole runs are candidates: random seeds, neighbours of the best noise, or paths that go up and down again.",
    presets={"noise-search": {"solve": "dpmpp-2m", "grid": {"name": "linear", "steps": 20}}},
    differs="an exact law and digits in place of pictures by class; several verifiers are not averaged by rank",
)

STEPS, N, COUNTS, DIGITS = 20, 300, (1, 4, 16), 24
BLIND = {"name": "hit", "point": [99.0, 0.0]}


def judged(x: Tensor) -> Tensor:
    """log p(the rare Gaussian | x), no lower than -20."""
    log = -(torch.cdist(x, LAW.means) ** 2) / (2 * 0.02) + LAW.weights.log()
    return log.log_softmax(1)[:, 0].clamp_min(-20.0)


def card(bench: Bench) -> Card:
    """Scores against candidates and against steps, the three ways at equal calls, how far winners go, and repetition."""
    model = ebb.load(LAW, like=torch.zeros(2, dtype=torch.float64))
    plan = ebb.Plan(grid={"name": "linear", "steps": STEPS})
    verifier: dict[str, Any] = bench.fault(HIT, BLIND)
    four: dict[str, Any] = bench.fault(FOUR, {**BLIND, "point": 99.0})
    plain = ebb.sample(model, plan, n=N)
    by_count = [ebb.search(model, plan, verifier, k * STEPS, n=N) for k in COUNTS]
    told = [judged(f.samples.x) for f in by_count]
    rises = [gain(b, a) for a, b in itertools.pairwise(told)]
    bench.check("least gain for the judge from 1 to 4 to 16 candidates, in standard errors", min(rises), at_least=2)
    long = judged(ebb.sample(model, plan.replace(grid={"name": "linear", "steps": 20 * STEPS}), n=N).x)
    many = ebb.search(model, plan, verifier, 20 * STEPS, n=N)
    bench.check(
        "best of 20 runs of 20 steps over one of 400, in standard errors",
        gain(judged(many.samples.x), long),
        at_least=3,
    )
    one = torch.equal(by_count[0].samples.x, plain.x)
    bench.check("with one candidate it is the plain sampler, bit for bit", one, at_least=1)

    near = ebb.search(model, plan, verifier, 16 * STEPS, "zero-order", n=N)
    paths = ebb.search(model, plan, verifier, 16 * STEPS, "paths", n=N, width=2)
    ways: tuple[Literal["zero-order", "random"], ...] = ("zero-order", "random")
    close, loose = (ebb.search(model, plan, verifier, 16 * STEPS, w, n=N, width=15, keep=0.97) for w in ways)
    moved = [float((f.samples.x - plain.x).norm(dim=1).mean()) for f in (close, loose)]
    bench.check(
        "one round of close neighbours: how far winners go, over random", moved[0] / max(moved[1], 1e-9), at_most=0.7
    )
    first = scores(HIT, plain)
    better = gain(scores(HIT, close.samples), first)
    bench.check("the same: gain in the verifier, in standard errors", better, at_least=3)
    fair = max(f.samples.calls for f in (near, paths)) / (16 * STEPS * N)
    bench.check("calls of zero-order and of paths over those of random search", fair, at_most=1)
    ahead = gain(scores(HIT, paths.samples), scores(HIT, by_count[-1].samples))
    bench.check("paths: gain over random search at equal calls, in standard errors", ahead, at_least=2)
    again = [ebb.sample(model, f.samples.plan, n=N, seed=f.samples.seeds).x for f in (near, paths, many)]
    same = all(torch.equal(x, f.samples.x) for x, f in zip(again, (near, paths, many), strict=True))
    bench.check("plans repeat the winners without the search, bit for bit", same, at_least=1)

    digits = ebb.search(
        ebb.load("digits"), ebb.Plan(grid={"name": "linear", "steps": 6}), four, 8 * 6, n=DIGITS, width=7
    )
    shown = scores(FOUR, digits.samples)
    alone = scores(FOUR, ebb.sample(ebb.load("digits"), ebb.Plan(grid={"name": "linear", "steps": 6}), n=DIGITS))
    bench.check("digits: gain of the best of 8 over the first, in standard errors", gain(shown, alone), at_least=3)
    figures = ", ".join(f"{v.mean():.2f}" for v in told)
    return bench.card(
        f"The judge's log-probability by 1, 4 and 16 candidates: {figures}; one run of 400 steps {long.mean():.2f}. The "
        f"verifier at {16 * STEPS} calls: random {by_count[-1].scores.mean():.3f}, zero-order {near.scores.mean():.3f}, paths "
        f"{paths.scores.mean():.3f}, one sample {first.mean():.3f}. Digits read as 4: {shown.mean():.2f} against "
        f"{alone.mean():.2f}."
    )
