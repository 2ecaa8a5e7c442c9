"""Discrete diffusion language models: one interface for processes and decoding rules, and the identities that tie them.

With Q_{t|s} the transition matrix of a process, q_t the law of the noised data and p(x0_i | x_t) a perfect denoiser:

    1  composition   Q_{s|r} Q_{t|s} = Q_{t|r},   Q_{t|0} the marginal q(x_t | x0)
    2  bound         integral of -alpha'_t / (1 - alpha_t) E sum_masked -log p(x0_i | x_t) dt, the same for every schedule
                     and the mean loss over uniformly random orders of the tokens; for a perfect denoiser the entropy
    3  blocks        blocks of one token, or left to right, decode as the greedy autoregressive loop; one block as none
    4  ratios        q_t(x with v at i) / q_t(x) = alpha_t / (1 - alpha_t) p(x0_i = v | x) where x_i is masked, so that the
                     reverse rate of the concrete score, (-alpha' / alpha) ratio, is that of the posterior
    5  posterior     q(x_s | x_t, x0) = Q_{s|0}(x0, x_s) Q_{t|s}(x_s, x_t) / Q_{t|0}(x0, x_t)

and every decoding rule ends without a mask, at the number of calls that it says.

Paper    Yu, Li, Wang 2025, "Discrete diffusion in large language and multimodal models: a survey" (arXiv 2506.13759);
         5: Austin et al. 2021 (2107.03006), eq. 3; 4: Ou et al. 2024 (2406.03736), theorem 1; 2: there, theorem 2
Card     a tabulated law of 4 tokens out of 4 and its exact conditionals; every discrete process and every solver of the
         registry that runs on masks is tried. The control perturbs one row of Q by one percent.
Differs  the survey states no figures but a speed-up of up to 10x for the field, which needs a large network: the table in
         the note counts calls and tokens a call instead, and says where a K/V cache of the prefix stays exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import ebbtide as ebb
from ebbtide.core import registry
from ebbtide.core.key import Noise, keys
from ebbtide.denoise.exact import Table
from ebbtide.denoise.model import Model, process
from ebbtide.learn.masked import MaskedNELBO
from ebbtide.measure.decoding import rules, trial
from ebbtide.process.discrete import Discrete, Schedule
from ebbtide.process.masked import Masked
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="dllm-identities",
    family="text",
    title="Discrete Diffusion in Large Language and Multimodal Models: A Survey",
    year=2025,
    paper="2506.13759",
    claim="Up to 10x faster inference than comparable autoregressive models is reported for the field; catalogue of models, "
    "training, inference and applications",
    what="A registry of discrete processes and decoding rules, tied together by identities that are verified.",
    differs="identities on a tabulated law instead of a catalogue; calls and tokens a call instead of wall time",
)

V = L = 4
SCHEDULES = get_args(Schedule)
NOISE = Noise(keys([0]), torch.zeros(1, dtype=torch.int64))
LAWS = (2 * NOISE.normal(torch.zeros(1, 16, V**L, dtype=torch.float64))[0]).softmax(-1).reshape(16, V, V, V, V)
GRIDS: Any = ({"name": "linear", "steps": 3}, {"name": "cosine", "steps": 3}, {"name": "counts", "tokens": 1})
R, S, T = NOISE.uniform((1, 64, 3), 1)[0].sort(1).values.unbind(1)  # times r < s < t
Rows = Callable[[Discrete, Tensor, Tensor], Tensor]  # Q_{t|s} at (process, s, t): row i holds what i becomes


def perturbed(p: Discrete, s: Tensor, t: Tensor) -> Tensor:
    """The planted fault: one percent of the first row of Q goes to all states alike."""
    q = p.transition(s, t).clone()
    q[..., 0, :] = 0.99 * q[..., 0, :] + 0.01 / p.states
    return q


def composition(rows: Rows, p: Discrete) -> float:
    """(1): Q composed against Q in one go, and its columns against what the process says that x_t tells of x0."""
    gap = rows(p, R, S) @ rows(p, S, T) - rows(p, R, T)
    column = rows(p, 0 * T, T)[:, :V].mT  # (n, states, V)
    told = p.evidence(torch.arange(p.states).expand(len(T), -1), T)
    other = column / column.sum(-1, keepdim=True) - told / told.sum(-1, keepdim=True)
    return float(torch.maximum(gap.abs().max(), other.abs().max()))


def bayes(rows: Rows, p: Discrete) -> float:
    """(5): the posterior of the process against Bayes by enumeration of x0, x_t and x_s."""
    first, then, both = rows(p, 0 * T, S)[:, :V], rows(p, S, T), rows(p, 0 * T, T)[:, :V]
    gaps = []
    for v, i in (both[0] > 0).nonzero().tolist():  # where v may become i
        known = one_hot(torch.tensor(v), V).double().log().expand(len(T), V)
        found = p.posterior(torch.full((len(T),), i), known, T, S)
        gaps.append((found - first[:, v] * then[:, :, i] / both[:, v, i, None]).abs().max())
    return float(max(gaps))


def ratios(rows: Rows, p: Masked, law: Tensor, logits: Tensor) -> float:
    """(4): the reverse rates of concrete scores, from q_t by enumeration, against those of the posterior; relative."""
    gaps = []
    for t in torch.tensor([[0.2], [0.5], [0.9]], dtype=torch.float64):
        q = rows(p, torch.zeros_like(t), t)[0, :V]
        noised = torch.einsum("abcd,ai,bj,ck,dl->ijkl", law, q, q, q, q)  # q_t of all 5^4 states
        for i in range(L):
            shown, masked = noised.movedim(i, -1).split([V, 1], dim=-1)
            mine = p.nelbo_weight(t) * logits.select(i, p.mask)[..., i, :].softmax(-1)
            gaps.append((p.rate(t) / p.alpha(t) * shown / masked / mine - 1).abs().max())
    return float(max(gaps))


def bound(p: Masked, x0: Tensor, logits: Tensor) -> tuple[float, float]:
    """(2): the bound by Monte Carlo over times and masks, in nats, and its standard error."""
    noise = Noise(keys(range(len(x0))), torch.zeros(len(x0), dtype=torch.int64))
    draws = MaskedNELBO(p, call=look_up).bounds(logits, x0, noise)
    return float(draws.mean()), float(draws.std() / len(draws) ** 0.5)


def any_order(truth: Table, p: Masked, logits: Tensor) -> float:
    """(2): the loss of autoregression, over all sequences and all orders, in nats."""
    losses = [MaskedNELBO(p, call=look_up).in_order(logits, truth.states, o) for o in itertools.permutations(range(L))]
    return float(truth.p[0] @ torch.stack(losses).mean(0))


def look_up(logits: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """A model that is a table of what it says to every x_t."""
    return logits[x.unbind(1)]


def greedy(law: Tensor) -> list[int]:
    """(3): the autoregressive loop, each token the likeliest given those before it."""
    out = []
    for _ in range(L):
        out.append(int(law.reshape(V, -1).sum(1).argmax()))
        law = law[out[-1]]
    return out


def table(model: Model) -> tuple[list[str], int]:
    """A line for each decoding rule of the registry, and how many trials left a mask or miscounted."""
    lines, failed = ["rule: calls a sequence and tokens a call (linear, cosine, counts); cache of the prefix"], 0
    for rule in rules(model):
        runs = [trial(model, rule, grid) for grid in GRIDS]
        failed += sum(not run.good for run in runs)
        name = " ".join(f"{k} {v}" if k == "block" else str(v) for k, v in rule.items())
        figures = ", ".join(f"{run.true / run.n:g} and {run.tokens / run.true:.2g}" for run in runs)
        lines.append(f"{name}: {figures}; {'exact' if all(run.ordered for run in runs) else 'not exact'}")
    return lines, failed


def card(bench: Bench) -> Card:
    rows: Rows = bench.fault(lambda p, s, t: p.transition(s, t), perturbed)
    names = [e.name for e in registry.entries("process") if "discrete" in e.features]
    each: list[Any] = [process(name, vocab=V, schedule=s) for name in names for s in SCHEDULES]
    bench.check("1 composition of transitions", max(composition(rows, p) for p in each), at_most=1e-6)
    bench.check("5 posterior against Bayes", max(bayes(rows, p) for p in each), at_most=1e-6)

    masked = [Masked(V, schedule=s) for s in SCHEDULES]
    truth = Table(masked[0], LAWS[0])
    every = torch.cartesian_prod(*[torch.arange(V + 1)] * L)
    logits = truth(every, torch.full((len(every),), 0.5).double(), {}).logits.reshape(*[V + 1] * L, L, V)
    bench.check("4 concrete scores", max(ratios(rows, p, LAWS[0], logits) for p in masked), at_most=1e-6)

    entropy, x0 = float(torch.special.entr(LAWS[0]).sum()), truth.sample(100_000)
    bench.check("2 any-order loss - entropy", abs(any_order(truth, masked[0], logits) - entropy), at_most=1e-6)
    blunt = logits / 2  # a model that is wrong: what its orders say of a sequence differs
    for name, said, goal in (("perfect", logits, entropy), ("blunt", blunt, any_order(truth, masked[0], blunt))):
        bounds = [bound(p, x0, said) for p in masked]
        bench.check(f"2 {name} model: standard errors off", max(abs(b - goal) / e for b, e in bounds), at_most=3)
        bench.check(f"2 {name} model: standard error / bound", max(e / b for b, e in bounds), at_most=0.01)

    tables = Table(masked[0], LAWS, weights=[1.0] * len(LAWS))
    model = ebb.load(tables, like=torch.zeros(L, dtype=torch.int64), labels=len(LAWS))

    def decode(grid: dict[str, Any], **rule: Any) -> Tensor:
        plan = ebb.Plan(solve={"name": "confidence", **rule}, grid=grid)
        return ebb.sample(model, plan, cond=list(range(len(LAWS))), n=len(LAWS)).x

    loop = torch.tensor([greedy(law) for law in LAWS])
    for name, rule in (("blocks of 1", {"block": 1}), ("left to right", {"rule": "left"})):
        bench.check(f"3 {name}: tokens unlike autoregression", (decode(GRIDS[-1], **rule) != loop).sum(), at_most=0)
    other = [decode(grid, block=L) != decode(grid) for grid in GRIDS]
    bench.check("3 one block: tokens unlike none", torch.stack(other).sum(), at_most=0)

    lines, failed = table(ebb.load(truth, like=torch.zeros(L, dtype=torch.int64)))
    bench.check("rules that leave masks or miscount calls", failed, at_most=0)
    return bench.card("\n".join(lines))
