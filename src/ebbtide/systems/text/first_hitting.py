"""First hitting: masked diffusion sampled event by event, at one call a token and with no error of a grid.

    1 - alpha(tau) = u^(1/n) (1 - alpha(t)),   one of the n hidden tokens, alike likely, drawn from p(x0 | x_t)

Paper    Zheng et al. 2024, "Masked diffusion models are secretly time-agnostic masked models and exploit inaccurate
         categorical sampling" (arXiv 2409.02908), sections 4 and 5
Card     a Markov chain of 6 tokens out of 3 with exact conditionals, so that the law of all 729 sequences is known.
         Precision: Gumbel-max over 50 000 equal classes beside one that is exp(16) times likelier.
         The control samples the same plan by ancestral steps.
Differs  2 000 draws of the 1000-step sampler instead of 100 000 (its network calls are spared by `unchanged`, which
         changes no token); the largest of 50 000 Gumbel variables is drawn as the largest of 50 000 uniform numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.core.state import Step
from ebbtide.denoise.exact import MarkovChain
from ebbtide.measure.fit import cells, chi_square, kolmogorov
from ebbtide.process.masked import Masked
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="first-hitting",
    family="text",
    title="Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate Categorical Sampling",
    year=2024,
    paper="2409.02908",
    claim="20x faster sampling with a provably equal output law; exposes a 32-bit numerical flaw that lowers temperature "
    "and token diversity",
    what="Samples the exact moments at which tokens unmask instead of stepping a time grid, at one call a token.",
    parts=("solve/first-hitting",),
    presets={"first-hitting": {"solve": {"name": "first-hitting"}, "grid": {"name": "events"}}},
    differs="exact conditionals instead of a trained network; no high-order variants; 2000 draws of the 1000-step sampler",
)

V, L, N, LONG, SLOW = 3, 6, 100_000, 1000, 2000
CHAIN = MarkovChain(Masked(V), [0.5, 0.3, 0.2], [[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.25, 0.05, 0.7]], L)
MODEL = ebb.load(CHAIN, like=torch.zeros(L, dtype=torch.int64))
LAW = CHAIN.log_prob(torch.cartesian_prod(*[torch.arange(V)] * L)).exp()
CLASSES, PEAK = 50_000, 16.0


@contextmanager
def drawn() -> Iterator[list[int]]:
    """How many categorical draws are made meanwhile, in one number."""
    count, true = [0], Noise.categorical

    def counted(noise: Noise, logits: Tensor, salt: int = 0) -> Tensor:
        count[0] += math.prod(logits.shape[:-1])
        return true(noise, logits, salt)

    with mock.patch.object(Noise, "categorical", counted):
        yield count


def moments(plan: Any) -> tuple[Any, list[Tensor]]:
    """Samples, and the time of every event but the last: at least the first, even if there is none."""
    times: list[Tensor] = []

    def watch(step: Step, places: list[int]) -> None:
        times.append(step.state.t)

    return ebb.sample(MODEL, plan, n=N, watch=watch), times[: L - 1]


def largest(k: int, t: Tensor) -> Tensor:
    """P(the k-th largest of L uniform numbers <= t): when k - 1 of them or fewer lie above."""
    return torch.stack([math.comb(L, j) * t ** (L - j) * (1 - t) ** j for j in range(k)]).sum(0)


def tail(bits: int, draws: int = 400_000) -> tuple[float, float, float]:
    """Gumbel-max with uniform numbers of so many bits: the tail's share, its standard error, the largest Gumbel."""
    u = Noise(keys(range(draws)), torch.zeros(draws, dtype=torch.int64)).uniform((draws, 2))
    u = torch.stack([(u[:, 0].log() / CLASSES).exp(), u[:, 1]], 1)  # the largest of all classes of the tail; the peak
    u = (u * 2.0**bits).floor() / 2.0**bits
    gumbel = -(-u.log()).log()
    share = (gumbel[:, 0] > gumbel[:, 1] + PEAK).double()
    return float(share.mean()), float(share.std() / draws**0.5), float(gumbel[gumbel.isfinite()].max())


def card(bench: Bench) -> Card:
    plan = bench.plan("first-hitting")
    with drawn() as mine:
        out, times = moments(plan)
    steps: Any = {"name": "linear", "steps": LONG}
    with drawn() as theirs:
        slow = ebb.sample(MODEL, ebb.Plan(solve="ancestral", grid=steps, guide=["unchanged"]), n=SLOW)
    coarse = ebb.sample(MODEL, ebb.Plan(solve="ancestral", grid={"name": "linear", "steps": L}), n=N // 5)

    bench.check("p-value of the law", chi_square(cells(out.x, V), LAW), at_least=0.01)
    bench.check("p-value, 1000 ancestral steps", chi_square(cells(slow.x, V), LAW), at_least=0.01)
    bench.check("p-value, 6 ancestral steps", chi_square(cells(coarse.x, V), LAW), at_most=0.01)
    bench.check("calls a sequence - 6", abs(out.calls / N - L), at_most=0)
    bench.check("1000 steps / calls", LONG * N / out.calls, at_least=20, published="20x faster")
    bench.check("draws saved against 1000 steps", theirs[0] / SLOW / (mine[0] / N), at_least=20)
    fits = [kolmogorov(largest(k, t)) for k, t in enumerate(times, 1)]
    bench.check("p-value of the event times, worst of 5", min(1.0, 5 * min(fits)), at_least=0.01)

    exact = CLASSES * math.exp(-PEAK) / (1 + CLASSES * math.exp(-PEAK))
    short, blur, ceiling = tail(24)
    long, error, _ = tail(52)
    bench.check("largest Gumbel variable in 24 bits", ceiling, at_most=16.7)
    bench.check("tail mass in 24 bits: standard errors short", (exact - short) / blur, at_least=3)
    bench.check("tail mass in 52 bits: standard errors off", abs(long - exact) / error, at_most=3)

    entropy = float(torch.special.entr(LAW).sum())
    seen = cells(out.x, V).double() / N
    return bench.card(
        f"{out.seconds / N * 1e6:.0f} us a sequence, {slow.seconds / SLOW * 1e6:.0f} us with 1000 steps and spared calls; "
        f"entropy {float(torch.special.entr(seen).sum()):.3f} nats of {entropy:.3f}; "
        f"24 bits leave {short / exact:.2f} of the tail"
    )
