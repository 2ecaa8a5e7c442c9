"""Cooperative diffusion recovery likelihood: energies over noise levels, whose short chains start from learnt drafts.

    p(x_s | x_t) ~ exp(f(x_s, s)) q(x_t | x_s)         nearly one hill, so a few Langevin steps can be honest
    train    f up at the data, down where the chain ended; the initialiser is taught where the chain ended
    sample   x_1 ~ N(0, I);  draft, refine, one level down, and again

An energy adds up over models, ranks points, and guides: by Tweedie's formula it is a denoiser, so `cfg` is (1 + w) f(x | c) -
w f(x), and what corrects a denoiser's samples inpaints. The loss is `learn.recovery`, the sampler `solve/recovery`.

Paper    Zhu, Xie, Wu, Gao 2023, "Learning energy-based models by cooperative diffusion recovery likelihood" (arXiv
         2309.05153)
Card     five Gaussians around a circle, six levels, five Langevin steps of a short stride. One network learns by chains
         from drafts, one of the same size by chains from x_t; samples and energies are held against the mixture. The
         control draws the drafts alone.
Differs  no pictures: what they ask of digits is asked of the plane (shuffled coordinates for shuffled pixels), and sums of
         energies are those of two attributes that share one Gaussian. With long chains (stride 0.5, or 15 steps) a
         chain from x_t is as good as one from a draft in the plane, where hills lie within one step of each other: the
         advantage is that of short chains, as it is published.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.learn.recovery import Energies, RecoveryLikelihood
from ebbtide.measure.metrics import sliced_w2
from ebbtide.process.gaussian import VPLinear
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="cdrl",
    family="train",
    title="Learning Energy-Based Models by Cooperative Diffusion Recovery Likelihood",
    year=2023,
    paper="2309.05153",
    claim="large gain over earlier EBMs on CIFAR-10 and ImageNet, plus guidance, composition, inpainting and OOD detection",
    what="A ladder of conditional energies over noise levels, whose short Langevin chains start from a learnt draft.",
    parts=("solve/recovery",),
    presets={
        "cdrl": {
            "solve": {"name": "recovery", "langevin": 5, "stride": 0.3},
            "grid": {"name": "explicit", "sigmas": [1000.0, 5.0, 2.6, 1.4, 0.72, 0.38, 0.2, 0.0]},
        },
    },
    slow=True,
    differs="mixtures in the plane, no pictures; the advantage over chains without a draft is that of short chains",
)

PROCESS = VPLinear()
ANGLES = torch.arange(5, dtype=torch.float64) * 2 * math.pi / 5
MEANS = 1.2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
WEIGHTS = (0.3, 0.1, 0.25, 0.1, 0.25)
TRUTH = GaussianMixture(PROCESS, WEIGHTS, MEANS, 0.08)
CHAIN, GRID = SYSTEM.presets["cdrl"]["solve"], SYSTEM.presets["cdrl"]["grid"]
SIGMAS = torch.tensor(GRID["sigmas"][-2::-1], dtype=torch.float64)
LEVELS = tuple(PROCESS.time(-SIGMAS.log()).tolist())
ROWS, STEPS, RATE, WIDTH = 256, 1200, 1e-2, 64


def mlp(out: int, width: int, noise: Noise, last: float = 1.0) -> nn.Sequential:
    """(x, two clocks, label) to `out` numbers, its weights drawn from `noise`, those of the end scaled by `last`."""
    end = nn.Linear(width, out)
    net = nn.Sequential(nn.Linear(5, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), end)
    for j, p in enumerate(net.parameters()):
        gain = 1.6 / p.shape[-1] ** 0.5 if p.ndim == 2 else 0.0
        p.data = noise.normal(p[None], j)[0] * gain
    end.weight.data *= last
    return net


class PlanePair(nn.Module):
    """f(x, t) = -|x|^2 / 2 + MLP, and the initialiser, an MLP of its own; a label is one more input."""

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        self.hill, self.guess = mlp(1, WIDTH, noise.fold(0), 0.1), mlp(2, WIDTH, noise.fold(1))

    @staticmethod
    def seen(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """What both are shown, (B, 5)."""
        said = torch.zeros_like(t) if labels is None else labels.to(t)
        return torch.cat([x, torch.stack([2 * t.sqrt() - 1, 2 * (-5 * t).exp() - 1, said], 1)], 1)

    def energy(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.hill(self.seen(x, t, labels))[:, 0] - x.square().sum(1) / 2

    def draft(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.guess(self.seen(x, t, labels))


class Both(nn.Module):
    """The sum of one pair's energies under labels -1 and 1: points that have both attributes. Drafts are averaged."""

    def __init__(self, pair: PlanePair) -> None:
        super().__init__()
        self.pair = pair

    def energy(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.pair.energy(x, t, -torch.ones_like(t)) + self.pair.energy(x, t, torch.ones_like(t))

    def draft(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return (self.pair.draft(x, t, -torch.ones_like(t)) + self.pair.draft(x, t, torch.ones_like(t))) / 2


def train(objective: RecoveryLikelihood, data: Tensor, labels: Tensor | None = None, steps: int = STEPS) -> PlanePair:
    """A pair fitted to rows of data (N, 2)."""
    key = keys(range(ROWS))
    pair = PlanePair(Noise(key[:1], torch.zeros(1, dtype=torch.int64), 1))
    adam = torch.optim.Adam(pair.parameters(), lr=RATE, betas=(0.9, 0.99))
    for step in range(steps):
        noise = Noise(key, torch.full((ROWS,), step))
        rows = (noise.fold(9).uniform((ROWS,)) * len(data)).long()
        adam.param_groups[0]["lr"] = RATE * (1 - step / steps)
        adam.zero_grad()
        objective.loss(pair, data[rows], None if labels is None else labels[rows], noise).backward()
        adam.step()
    return pair


@functools.cache
def trained(draft: bool) -> PlanePair:
    """The network of either card run: what is switched off in the control is the sampler's refinement."""
    objective = RecoveryLikelihood(LEVELS, PROCESS, CHAIN["langevin"], CHAIN["stride"], draft)
    return train(objective, TRUTH.sample(8192, seed=10_000).float())


@functools.cache
def attributes() -> PlanePair:
    """A network of two attributes: label -1 the three Gaussians to the right, 1 the two above; one has both."""
    near = {-1: (0, 1, 4), 1: (1, 2)}
    owner = torch.tensor([label for label, some in near.items() for _ in some])
    means = torch.cat([MEANS[list(some)] for some in near.values()])
    shares = [1 / len(near[int(label)]) for label in owner]
    labelled = GaussianMixture(PROCESS, shares, means, 0.08, (owner + 1) // 2)
    data = [labelled.sample(4096, seed=10_000, label=k) for k in (0, 1)]
    labels = torch.tensor([-1, 1]).repeat_interleave(4096)
    objective = RecoveryLikelihood(LEVELS, PROCESS, CHAIN["langevin"], CHAIN["stride"], drop=0.0)
    return train(objective, torch.cat(data).float(), labels, STEPS // 2)


def shared(plan: ebb.Plan) -> float:
    """The share of samples from the sum of two energies that lie nearest to the Gaussian with both attributes."""
    x = ebb.sample(ebb.load(Energies(Both(attributes()), PROCESS), like=torch.zeros(2)), plan, n=2000, seed=0).x
    return float((torch.cdist(x.double(), MEANS).argmin(1) == 1).double().mean())


def miss(pair: PlanePair, plan: ebb.Plan) -> float:
    """Sliced W2 of 4096 samples to the mixture."""
    model = ebb.load(Energies(pair, PROCESS), like=torch.zeros(2))
    return sliced_w2(ebb.sample(model, plan, n=4096, seed=0).x, TRUTH.sample(4096, seed=100_000), slices=32)


def ranks(v: Tensor) -> Tensor:
    """The rank of every entry, float64."""
    return v.argsort().argsort().double()


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The probability that a draw from inside scores above one from outside."""
    n, m = len(inside), len(outside)
    return float((ranks(torch.cat([inside, outside]))[:n].sum() - n * (n - 1) / 2) / (n * m))


def energies(pair: PlanePair, n: int = 2000) -> tuple[float, float, float]:
    """At the lowest level: rank correlation with the exact log-density, and both AUROCs against shuffled coordinates."""
    t, noise = torch.full((n,), LEVELS[0], dtype=torch.float64), Noise(keys(range(n)), torch.zeros(n).long())
    x = PROCESS.corrupt(TRUTH.sample(n, seed=50_000), t, noise, {})
    assert isinstance(x, Tensor)
    other = torch.stack([x[:, 0], x[:, 1].roll(n // 2)], 1)
    with torch.no_grad():
        said = [pair.energy(v.float(), t.float(), None).double() for v in (x, other)]
    true = [TRUTH.log_prob(v, t) for v in (x, other)]
    correlation = torch.stack([ranks(said[0]), ranks(true[0])]).corrcoef()[0, 1]
    return float(correlation), auroc(*said), auroc(*true)


def card(bench: Bench) -> Card:
    pair, plain = trained(True), trained(False)
    ours = miss(pair, bench.plan("cdrl"))
    undrafted = miss(plain, ebb.Plan(solve={**CHAIN, "draft": False}, grid=GRID))
    unrefined = miss(pair, ebb.Plan(solve={**CHAIN, "langevin": 0}, grid=GRID))
    bench.check("sliced W2 over that without initialiser", ours / undrafted, at_most=0.7, published="below")
    bench.check("sliced W2 over that of the initialiser alone", ours / unrefined, at_most=0.8, published="below")
    correlation, said, true = energies(pair)
    bench.check("rank correlation of energy and exact log-density", correlation, at_least=0.9)
    bench.check("AUROC against shuffled coordinates over the exact one", said / true, at_least=0.95)
    bench.check("sum of two energies, samples in both sets", shared(bench.plan("cdrl")), at_least=0.8)
    return bench.card(
        f"W2: {ours:.3f}, without initialiser {undrafted:.3f}, initialiser alone {unrefined:.3f}. AUROC {said:.3f}, "
        f"of the exact density {true:.3f}."
    )
