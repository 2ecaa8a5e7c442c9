"""Contract 3: the law of `move`. After `corrupt(t)`, with the true prediction, it is that of `corrupt(s)`.

The true prediction is the data itself, so the law is conditional on x0: every eta, every pair of times, both directions.
At eta = 1 the pair (x_s, x_t) has the law of the forward chain, where the process carries its noise by a alone.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import worlds
from torch import Tensor

from ebbtide.core import registry
from ebbtide.core.key import Noise, keys
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree, leaves, tree_map

N = 6000
CLASSES = 6  # the largest vocabulary that `variants` makes, and its mask
SIGMAS = 4.5  # of a test statistic: seeds are fixed, so a test that passes does so for ever
PAIRS = ((0.9, 0.4), (1.0, 0.5), (0.6, 0.0), (1.0, 0.0), (0.2, 0.7), (0.0, 0.5), (0.5, 1.0))


def processes() -> list[Any]:
    return [
        worlds.marked("law", e, spec, f"{e.name}-{worlds.ident(spec)}")
        for e in worlds.parts("process")
        for spec in worlds.variants(e)
    ]


every = pytest.mark.parametrize("spec", processes())
# a chain that pushes along y - x0 has no upward move without knowing x0, so its posterior is tested with its process
chains = [p for p in processes() if registry.make("process", p.values[0]).gives & {"gaussian", "discrete"}]


def noise(salt: int, n: int = N) -> Noise:
    return Noise(keys(range(7, 7 + n)), torch.zeros(n, dtype=torch.int64), salt)


def clean(process: Any, n: int = N) -> Tree:
    """One element of data, many times over."""
    if "joint" in process.gives:
        return {k: clean(p, n) for k, p in process.parts.items()}
    if "discrete" in process.gives:
        mask = getattr(process, "mask", None)
        return torch.tensor([v for v in range(process.vocab) if v != mask][:3]).repeat(n, 1)
    if "symmetric" in process.gives:
        pairs = torch.tensor([[0, 0.8, -0.3], [0.8, 0, 0.5], [-0.3, 0.5, 0]], dtype=torch.float64)
        return pairs.repeat(n, 1, 1)
    return torch.tensor([[0.8, -0.3]], dtype=torch.float64).repeat(n, 1)


def truth(process: Any, x0: Tree) -> Pred:
    """The prediction of one who knows the data."""
    if "joint" in process.gives:
        preds = {k: truth(p, x0[k]) for k, p in process.parts.items()}
        return Pred(
            *({k: v for k, p in preds.items() if (v := getattr(p, f)) is not None} or None for f in Pred._fields)
        )
    if "discrete" in process.gives:
        return Pred(logits=torch.nn.functional.one_hot(x0, process.vocab).double().clamp_min(1e-300).log())
    return Pred(mean=x0)


def condition(process: Any, n: int = N) -> dict[str, Tree]:
    if "end" not in process.gives:
        return {}
    return {"y": tree_map(lambda v: torch.full_like(v, -0.5), clean(process, n))}


def at(time: float, n: int = N) -> Tensor:
    return torch.full((n,), time, dtype=torch.float64)


def numbers(x: Tree) -> Tensor:
    """Everything in x whose mean tells its law: numbers and their squares, one-hot tokens, (N, K) float64."""
    out = []
    for leaf in leaves(x).values():
        if leaf.is_floating_point():
            out += [leaf.flatten(1), leaf.flatten(1) ** 2]
        else:
            out.append(torch.nn.functional.one_hot(leaf, CLASSES).double().flatten(1))
    return torch.cat(out, 1)


def agree(a: Tensor, b: Tensor, what: str) -> None:
    """The means of two independent sets of draws are those of one law, each within `SIGMAS` of its error."""
    __tracebackhide__ = True
    spread = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    gap = (a.mean(0) - b.mean(0)).abs()
    worst = (gap / spread.clamp_min(1e-12)).max()
    assert bool((gap <= SIGMAS * spread + 1e-12).all()), f"{what}: {float(worst):.1f} standard errors apart"


@every
def test_move_to_the_same_time_is_the_identity(spec: dict[str, Any]):
    process = registry.make("process", spec)
    n = 8
    x = process.corrupt(clean(process, n), at(0.6, n), noise(1, n), condition(process, n))
    for time, eta in itertools.product((0.0, 0.3, 1.0), (0.0, 0.5, 1.0)):
        for pred in (truth(process, clean(process, n)), None):
            moved = process.move(x, pred, at(time, n), at(time, n), eta, noise(2, n), condition(process, n))
            assert all(torch.equal(v, leaves(x)[k]) for k, v in leaves(moved).items())


@every
def test_corrupt_at_0_is_the_data(spec: dict[str, Any]):
    process = registry.make("process", spec)
    x0 = clean(process, 8)
    x = process.corrupt(x0, at(0.0, 8), noise(1, 8), condition(process, 8))
    assert all(torch.equal(v, leaves(x0)[k]) for k, v in leaves(x).items())


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@every
def test_law_of_move_is_that_of_corrupt(spec: dict[str, Any], eta: float):
    process = registry.make("process", spec)
    x0, cond = clean(process), condition(process)
    for t, s in PAIRS:
        there = process.corrupt(x0, at(t), noise(1), cond)
        pred = truth(process, x0) if s < t else None
        moved = process.move(there, pred, at(t), at(s), eta, noise(2), cond)
        agree(numbers(moved), numbers(process.corrupt(x0, at(s), noise(3), cond)), f"{t} to {s}")


@pytest.mark.parametrize("spec", chains)
def test_eta_1_is_the_posterior_of_the_forward_chain(spec: dict[str, Any]):
    """The pair of x_s and x_t, made upwards from s and downwards from t."""
    process = registry.make("process", spec)
    n = 4000
    x0, cond = clean(process, n), condition(process, n)
    for early, late in ((0.4, 0.9), (0.2, 0.5)):
        s, t = at(early, n), at(late, n)
        low = process.corrupt(x0, s, noise(1, n), cond)
        high = process.move(low, None, s, t, 1.0, noise(2, n), cond)
        high2 = process.corrupt(x0, t, noise(3, n), cond)
        low2 = process.move(high2, truth(process, x0), t, s, 1.0, noise(4, n), cond)
        each = [(numbers(a), numbers(b)) for a, b in ((low, high), (low2, high2))]
        up, down = ((a[:, :, None] * b[:, None, :]).flatten(1) for a, b in each)
        agree(up, down, f"the pair at {early} and {late}")


@every
def test_the_prior_is_the_law_of_the_far_end(spec: dict[str, Any]):
    """Up to what is left of the data there: |a| times its distance from what stands in for it."""
    process = registry.make("process", spec)
    x0, cond = clean(process), condition(process)
    mine = leaves(process.prior(x0, at(1.0), noise(1), cond))
    theirs = leaves(process.corrupt(x0, at(1.0), noise(2), cond))
    for name, own in mine.items():
        one = process.parts[name] if name else process
        if not own.is_floating_point():
            agree(numbers(own), numbers(theirs[name]), "prior")
            continue
        stand_in = leaves(cond["y"])[name] if "end" in one.gives else torch.zeros_like(own)
        away = float(one.a(at(1.0, 1))) * (leaves(x0)[name] - stand_in).abs()[0]
        error = ((own.var(0) + theirs[name].var(0)) / N).sqrt()
        assert bool(((own.mean(0) - theirs[name].mean(0)).abs() <= SIGMAS * error + away + 1e-12).all())
        ratio = (own.std(0) + 1e-12) / (theirs[name].std(0) + 1e-12)
        assert bool(((ratio - 1).abs() < SIGMAS / (N / 2) ** 0.5).all())


# ---------------------------------------------------------------- whole runs on tokens


def runs() -> list[Any]:
    return [
        worlds.marked("law", e, (e, spec, kind), f"{e.name}-{worlds.ident(spec)}-{kind}")
        for e in worlds.parts("solve")
        for spec in worlds.variants(e)
        for kind in ("masked", "uniform")
        if worlds.goes(e, spec, kind)
    ]


@pytest.mark.parametrize("world", runs())
def test_a_run_on_independent_tokens_ends_in_their_law(world: tuple[Any, dict[str, Any], str]):
    """Places that are independent can be decided together: any number of steps is exact."""
    entry, spec, kind = world
    made = worlds.make(entry, spec, kind)
    words = worlds.Words(made.model.process, 3, coupled=False)
    model = replace(made.model, denoiser=words, like=torch.zeros(3, dtype=torch.int64))
    n = 8000
    cond = {"label": torch.arange(2).repeat(n // 2)}
    loop = model.loop(made.plan, cond)
    x = worlds.finish(loop, loop.begin(torch.zeros(n, 3, dtype=torch.int64), cond, range(n))).x
    for label in (0, 1):
        own = x[label::2]
        seen = torch.nn.functional.one_hot(own, words.vocab).double()
        law = words.place_law(label)
        error = (law * (1 - law) / len(own)).sqrt()
        assert bool(((seen.mean(0) - law).abs() <= SIGMAS * error + 1e-12).all())
        pairs = torch.einsum("nu,nv->uv", seen[:, 0], seen[:, 2]) / len(own)
        expected = law[0][:, None] * law[2][None, :]
        error = (expected * (1 - expected) / len(own)).sqrt()
        assert bool(((pairs - expected).abs() <= SIGMAS * error + 1e-12).all()), "two places are not independent"
