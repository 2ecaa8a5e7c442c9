"""RADD: the score of an absorbing process is a law of clean tokens, free of time, so its answer can be kept.

    q_t(x with v at i) / q_t(x) = alpha / (1 - alpha) p(x0_i = v | tokens that show)             where x_i is hidden
    a step that shows no token needs no call:  n (1 - (1 - 1/n)^L) calls in n steps of the log-linear schedule
    -log p(x0) <=  t-DCE = lambda-DCE = any-order autoregression, in expectation

Paper    Ou et al. 2024, "Your absorbing discrete diffusion secretly models the conditional distributions of clean data"
         (arXiv 2406.03736), theorems 1 and 2, section 3.3
Card     Markov chains with exact conditionals: 4 tokens out of 3 for the score, by enumeration; 64 out of 4 for samples
         and calls; 12 out of 4 for losses, there also for a model that is wrong. The control asks at every step.
Differs  no network is trained: the model that is wrong has its logits halved; any such function of x has equal losses.
         t-DSE is not measured. The layer asks 1 + (n - 1)(1 - (1 - 1/n)^L) times: the step after the last token too.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.denoise.exact import MarkovChain
from ebbtide.learn.masked import MaskedNELBO
from ebbtide.process.discrete import Schedule
from ebbtide.process.masked import Masked
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="radd",
    family="text",
    title="Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions of Clean Data",
    year=2024,
    paper="2406.03736",
    claim="Up to 3.5x faster than the strongest baseline at similar quality; SOTA zero-shot perplexity at GPT-2 scale; "
    "equals any-order AR",
    what="The absorbing score is a time-free conditional of clean tokens times a known scalar, so its answer is kept "
    "until a token changes.",
    parts=("guide/unchanged",),
    presets={
        "radd": {"solve": {"name": "ancestral"}, "grid": {"name": "linear", "steps": 1024}, "guide": ["unchanged"]}
    },
    differs="exact Markov sources instead of a trained network of text; t-DSE is not measured",
)

LENGTH, ROWS = 64, 24
SCHEDULES = get_args(Schedule)  # linear, quadratic, cosine, geometric
INITIAL = [0.4, 0.3, 0.2, 0.1]
ONTO = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.05, 0.55, 0.1, 0.3], [0.4, 0.2, 0.2, 0.2]]


def chain(length: int, vocab: int = 4) -> MarkovChain:
    """A Markov chain of this length over the first `vocab` tokens."""
    return MarkovChain(Masked(vocab), INITIAL[:vocab], [row[:vocab] for row in ONTO[:vocab]], length)


def score_gap() -> float:
    """How far the score identity is off at worst, relative: q_t by enumeration of all x_t, six times t, all schedules."""
    vocab, length = 3, 4
    source = chain(length, vocab)
    clean = torch.cartesian_prod(*[torch.arange(vocab)] * length)
    law = source.log_prob(clean).exp().reshape(*[vocab] * length)
    every = torch.cartesian_prod(*[torch.arange(vocab + 1)] * length)
    worst = 0.0
    for schedule in SCHEDULES:
        process = Masked(vocab, schedule=schedule)
        for time in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95):
            t = torch.full((len(every),), time, dtype=torch.float64)
            logits = source(every, t, {}).logits
            q = process.transition(torch.zeros(1, dtype=torch.float64), t[:1])[0, :vocab]
            noised = torch.einsum("abcd,ai,bj,ck,dl->ijkl", law, q, q, q, q)
            alpha = float(process.alpha(t[:1]))
            for i in range(length):
                shown, hidden = noised.movedim(i, -1).split([vocab, 1], dim=-1)
                said = logits[:, i].softmax(-1).reshape(*noised.shape, vocab).select(i, process.mask)
                worst = max(worst, float((alpha / (1 - alpha) * said / (shown / hidden) - 1).abs().max()))
    return worst


def halved(source: MarkovChain, x: Tensor, t: Tensor) -> Tensor:
    """A model of x alone that is wrong: its logits are half of what they should be."""
    logits = source(x, t, {}).logits
    assert isinstance(logits, Tensor)
    return logits / 2


def losses(n: int = 4000) -> dict[str, Tensor]:
    """Draws (n,) of the losses of the paper for the halved model, in nats, all of the same n sequences."""
    source = chain(12)
    length, mask = source.length, source.process.vocab
    x0 = source.sample(n)
    noise = Noise(keys(range(n, 2 * n)), torch.zeros(n, dtype=torch.int64))

    def given(x: Tensor) -> Tensor:
        logits = halved(source, x, torch.ones(len(x), dtype=torch.float64))
        each = cross_entropy(logits.flatten(0, -2), x0.flatten(), reduction="none").reshape(x.shape)
        return torch.where(x == mask, each, 0.0).sum(1)

    ratio = noise.uniform((n,), 3)  # lambda: each token is hidden with this probability
    hidden = noise.uniform((n, length), 4) < ratio[:, None]
    order = noise.uniform((n, length), 5).argsort(1).argsort(1)
    count = (noise.uniform((n,), 6) * length).long() + 1  # k: so many tokens, drawn by lot, are hidden
    draws = {
        "lambda-DCE": given(torch.where(hidden, mask, x0)) / ratio,
        "k-DCE": length / count * given(torch.where(order < count[:, None], mask, x0)),
    }
    for j, schedule in enumerate(SCHEDULES[2:]):
        bound = MaskedNELBO(Masked(mask, schedule=schedule), call=halved)
        draws[f"t-DCE, {schedule}"] = bound.bounds(source, x0, noise.fold(j))
    draws["any order"] = any_order(source, x0, order)
    return draws


def any_order(source: MarkovChain, x0: Tensor, order: Tensor) -> Tensor:
    """-sum_k log p(token k of the order | tokens before it), (N,): each sequence in an order of its own."""
    mask, rows = source.process.vocab, torch.arange(len(x0))
    total = torch.zeros(len(x0), dtype=torch.float64)
    for k in range(source.length):
        logits = halved(source, torch.where(order >= k, mask, x0), torch.ones(len(x0), dtype=torch.float64))
        place = (order == k).long().argmax(1)
        total += cross_entropy(logits[rows, place], x0[rows, place], reduction="none")
    return total


def error(draws: Tensor) -> float:
    """The standard error of the mean of independent draws."""
    return float(draws.std() / len(draws) ** 0.5)


def card(bench: Bench) -> Card:
    bench.check("score against the ratio of marginals, relative", score_gap(), at_most=1e-6)

    model = ebb.load(chain(LENGTH), like=torch.zeros(LENGTH, dtype=torch.int64))
    lines = []
    for steps in (32, 128, 1024):
        grid = {"name": "linear", "steps": steps}
        out = ebb.sample(model, bench.plan({**SYSTEM.presets["radd"], "grid": grid}), n=ROWS)
        expected = steps * (1 - (1 - 1 / steps) ** LENGTH)
        calls = out.calls / ROWS
        bench.check(f"{steps} steps: calls off n (1 - (1 - 1/n)^L)", abs(calls / expected - 1), at_most=0.03)
        lines.append(f"{steps} steps: {calls:.1f} calls, {expected:.1f} expected, {steps / calls:.1f}x fewer")
        if steps == 1024:
            bench.check("1024 steps: calls a sequence", calls, at_most=64, published="never above the length")
        else:
            every = ebb.sample(model, ebb.Plan(solve="ancestral", grid=grid), n=ROWS)
            bench.check(f"{steps} steps: tokens unlike without the layer", (out.x != every.x).sum(), at_most=0)

    found = losses()
    gaps = [a - b for j, a in enumerate(found.values()) for b in [*found.values()][:j]]
    apart = max(float(gap.mean().abs() / error(gap)) for gap in gaps)
    bench.check("losses: standard errors apart, at worst", apart, at_most=2, published="equal")
    lines.append("nats: " + ", ".join(f"{name} {v.mean():.3f} +- {error(v):.3f}" for name, v in found.items()))
    return bench.card("\n".join(lines))
