"""Memorised pictures share a subspace: weights lit by some memorised prompts are zeroed, and others stop replicating too.

Paper    Chavhan et al. 2024 (arXiv 2406.18566)
Card     digits of 12 x 12 under 72 labels: 12 are each tied to one picture, seen 200 times, 60 to pictures of one digit. The
         weights are found with six of the tied labels and judged on the other six. Beside: as many weights at random, and as
         many of the greatest. The control has the network as it is.
Differs  labels for prompts; the reference is "no label". A subspace of memorised prompts' own does not reproduce:
         other labels light up the same weights (overlap 1.03 times), and without them other pictures are 6.8 times as far off
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

import ebbtide as ebb
from ebbtide.denoise.model import Model
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.learn.train import Recipe, fitted
from ebbtide.measure.metrics import frechet_distance
from ebbtide.network.anatomy import anatomy
from ebbtide.network.wanda_prune import WandaPrune, Zeros, layers_of, located, overlap, promptless
from ebbtide.systems import Bench, Card, System
from ebbtide.zoo import reference
from ebbtide.zoo.data import Pictures
from ebbtide.zoo.models import model_of
from ebbtide.zoo.networks import DiT

SYSTEM = System(
    id="memorization-subspace",
    family="guard",
    title="Memorized Images in Diffusion Models share a Subspace that can be Located and Deleted",
    year=2024,
    paper="2406.18566",
    claim="many sets of memorised prompts share one subspace; pruning it stops replication and resists extraction attacks",
    what="The few feed-forward weights that light up for memorised prompts, whatever the prompt, are set to zero once.",
    parts=("network/wanda-prune",),
    presets={
        "memorization-subspace": {
            "grid": {"name": "linear", "steps": 20},
            "network": [{"name": "wanda-prune", "sparsity": 0.01, "steps": 10}],
        },
    },
    slow=True,
    differs="the subspace is no memorised prompts' own at this size: copies end, and other pictures are lost with them",
)

SIZE, TIED, OPEN, COPIES, STEPS = 12, 12, 60, 200, 1200
PLAIN = ebb.Plan(grid=dict(SYSTEM.presets["memorization-subspace"]["grid"]))
KNOWN, UNSEEN, ORDINARY = range(6), range(6, TIED), range(TIED, TIED + 6)


@functools.cache
def data() -> Pictures:
    """The tied pictures, `COPIES` times each, and varied ones of the digit k % 10 under every other label k."""
    drawn = reference.pictures(SIZE)
    assert drawn.labels is not None
    index, labels = [torch.arange(TIED).repeat_interleave(COPIES)], [torch.arange(TIED).repeat_interleave(COPIES)]
    for digit in range(10):
        mine = (drawn.labels[TIED:] == digit).nonzero()[:, 0] + TIED
        for k, some in enumerate(mine.chunk(OPEN // 10)):
            index.append(some)
            labels.append(torch.full((len(some),), TIED + digit + 10 * k))
    return Pictures(drawn.pixels[torch.cat(index)], torch.cat(labels))


@functools.cache
def model() -> Model:
    """A small transformer that learnt them."""
    objective = FlowMatching(null=TIED + OPEN)
    network = DiT(size=SIZE, patch=3, layers=3, heads=3, width=16, classes=TIED + OPEN)
    recipe = Recipe("tied", "digits-drawn", network, objective, STEPS, batch=32, lr=3e-3, warmup=50, ema=0.99)
    return model_of(fitted(recipe, data()), {**objective.about(), **network.about()}, "tied")


def module() -> nn.Module:
    """Its network."""
    denoiser: Any = model().denoiser
    found: nn.Module = denoiser.module
    return found


def tied() -> Tensor:
    """The picture of each tied label, (TIED, 1, S, S)."""
    return data().rows(torch.arange(TIED) * COPIES)[0]


def drawn(plan: ebb.Plan, labels: list[int], seed: int = 0) -> Tensor:
    """One picture for each label."""
    return ebb.sample(model(), plan, cond=labels, n=len(labels), seed=seed, batch=128).x


@functools.cache
def threshold() -> float:
    """A third of the median distance from a picture to its nearest other one: closer is a copy."""
    x = data().rows(torch.arange(TIED * COPIES, len(data())))[0].flatten(1)
    away = torch.cdist(x, x).fill_diagonal_(torch.inf)
    return float(away.min(1).values.median()) / 3


def replicated(plan: ebb.Plan, labels: range, each: int = 16) -> float:
    """How many of the samples under tied labels are copies of the picture."""
    asked = [k for k in labels for _ in range(each)]
    gap = (drawn(plan, asked) - tied()[torch.tensor(asked)]).flatten(1).norm(dim=1)
    return float((gap < threshold()).double().mean())


def ordinary(plan: ebb.Plan, n: int = 480) -> float:
    """The Frechet distance of samples under the other labels to their pictures, averaged over 2 x 2 pixels."""
    real = data().rows(torch.arange(TIED * COPIES, len(data())))[0]
    made = drawn(plan, [TIED + k % OPEN for k in range(n)], seed=10_000)
    return frechet_distance(*(avg_pool2d(x, 2).flatten(1) for x in (made, real)))


@functools.cache
def found(labels: range, sparsity: float, steps: int) -> Zeros:
    """The places that these labels light up, four samples each."""
    asked = [k for k in labels for _ in range(4)]
    record = ebb.record(model(), PLAIN, cond=asked, n=len(asked), seed=20_000)
    return located(record, promptless(record), sparsity, steps)


def cut(zeros: Zeros) -> ebb.Plan:
    """The plan with these places set to zero."""
    return PLAIN.replace(network=[{"name": "wanda-prune", "zeros": zeros}])


def scattered(zeros: Zeros, seed: int = 0) -> Zeros:
    """As many places of each layer, at random."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {k: layer.weight.numel() for k, layer in layers_of(module()).items()}
    return {k: torch.randperm(sizes[k], generator=generator)[: len(v)].tolist() for k, v in zeros.items()}


def greatest(zeros: Zeros) -> Zeros:
    """As many places of each layer, those of the greatest weights."""
    layers = layers_of(module())
    return {k: layers[k].weight.detach().abs().flatten().topk(len(v)).indices.tolist() for k, v in zeros.items()}


def card(bench: Bench) -> Card:
    """Copies under labels that were not looked at, other pictures, two prunings of that size, and how far sets overlap."""
    spec: dict[str, Any] = dict(SYSTEM.presets["memorization-subspace"]["network"][0])
    known, unseen, other = (found(k, spec["sparsity"], spec["steps"]) for k in (KNOWN, UNSEEN, ORDINARY))
    plan = bench.plan({**SYSTEM.presets["memorization-subspace"], "network": [{**spec, "zeros": known}]})
    before, far = replicated(PLAIN, UNSEEN), ordinary(PLAIN)
    falls = {"wanda": 1 - replicated(plan, UNSEEN) / before}
    falls["random"] = sum(1 - replicated(cut(scattered(known, k)), UNSEEN) / before for k in range(4)) / 4
    falls["greatest"] = 1 - replicated(cut(greatest(known)), UNSEEN) / before
    total = sum(layer.weight.numel() for s in anatomy(module()).feed_forward for _, layer in s.linears())
    share = sum(map(len, known.values())) / total
    bench.check("weights pruned, of all in feed-forwards", share, at_most=0.02)
    bench.check("fall of the copies under labels not looked at", falls["wanda"], at_least=0.7, published="all")
    harm = ordinary(plan) / far
    shared = overlap(known, unseen) / overlap(known, other)
    part = WandaPrune(zeros=known)
    return bench.card(
        f"Does not reproduce: copies {before:.2f} fall by {falls['wanda']:.2f}, but also by {falls['greatest']:.2f} where "
        f"the greatest weights go and by {falls['random']:.2f} with weights at random (aim: under 0.3 both); the "
        f"Frechet distance of other labels is {harm:.1f} times the whole network's (aim: 1.1), "
        f"and two tied sets overlap {shared:.2f} times as much as tied and other (aim: 3). {len(repr(part))} signs in the plan."
    )
