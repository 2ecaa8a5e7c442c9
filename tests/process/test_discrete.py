"""Discrete processes: against matrix exponentials, Bayes by enumeration, and frequencies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.registry import make
from ebbtide.core.state import Pred

V = 4
SPECS = {
    "masked": {"name": "masked", "vocab": V},
    "masked-own": {"name": "masked", "vocab": V, "mask": 1},  # the mask is one of the vocabulary's tokens
    "uniform": {"name": "uniform", "vocab": V},
}
SCHEDULES = ["linear", "quadratic", "cosine", "geometric"]
each = pytest.mark.parametrize("name", SPECS)
shaped = pytest.mark.parametrize("schedule", SCHEDULES)


def process(name: str, schedule: str = "linear"):
    return make("process", {**SPECS[name], "schedule": schedule})


def time(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def noise(n: int, seed: int = 0, units: tuple[int, ...] = ()) -> Noise:
    return Noise(keys(range(seed, seed + n), units), torch.zeros(n, *units, dtype=torch.int64))


def clean(name: str) -> list[int]:
    """The tokens that data may hold."""
    return [v for v in range(V) if not (name == "masked-own" and v == 1)]


def known(x0: Tensor) -> Pred:
    """The prediction that is sure of x0."""
    return Pred(logits=torch.where(one_hot(x0, V) > 0, 0.0, -torch.inf))


def generator(name: str) -> Tensor:
    """The rates at which a token jumps per unit of -d log alpha: lost at rate 1, to the mask or to any token."""
    if name == "uniform":
        return torch.ones(V, V).double() / V - torch.eye(V).double()
    n, mask = (V + 1, V) if name == "masked" else (V, 1)
    return one_hot(torch.full((n,), mask), n).double() - torch.eye(n).double()


def frequencies(x: Tensor, n: int) -> Tensor:
    return one_hot(x.reshape(-1), n).double().mean(0)


def same(freq: Tensor, p: Tensor, n: int) -> None:
    """Frequencies of n draws against probabilities: five standard errors, and never what cannot happen."""
    assert bool((freq[p == 0] == 0).all())
    assert bool(((freq - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()), (freq, p)


@each
@shaped
def test_transitions_are_the_semigroup_of_a_jump_process(name, schedule):
    p = process(name, schedule)
    for t, s in ((0.0, 0.3), (0.2, 0.7), (0.5, 0.5), (0.05, 0.95)):
        q = p.transition(time(t), time(s))[0]
        clock = (p.alpha(time(t)) / p.alpha(time(s))).log()
        torch.testing.assert_close(q, torch.matrix_exp(generator(name) * clock), rtol=0, atol=1e-12)
        u = (t + s) / 2
        both = p.transition(time(t), time(u)) @ p.transition(time(u), time(s))
        torch.testing.assert_close(both[0], q, rtol=0, atol=1e-13)
    last = p.transition(time(0.0), time(1.0))[0]
    assert bool((last == last[0]).all())  # nothing of the data is left


@shaped
def test_schedules_fall_from_one_to_nought_exactly(schedule):
    p = process("masked", schedule)
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    alpha = p.alpha(t)
    assert alpha[0] == 1
    assert alpha[-1] == 0
    assert bool((alpha.diff() < 0).all())
    mid = t[20:380]
    slope = (p.alpha(mid + 1e-6) - p.alpha(mid - 1e-6)) / 2e-6
    torch.testing.assert_close(p.rate(mid), -slope, rtol=1e-5, atol=1e-7)
    # the weight of the bound is the rate at which a masked token is revealed
    h = 1e-7
    torch.testing.assert_close(p.revealed(mid, mid - h) / h, p.nelbo_weight(mid), rtol=1e-4, atol=1e-6)


@each
@shaped
def test_the_posterior_is_bayes_rule(name, schedule):
    """sum_x0 p(x0) q(x_t | x_s) q(x_s | x0) / q(x_t | x0), by enumeration of x0 and x_s from the forward matrices."""
    p = process(name, schedule)
    logits = torch.randn(V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = clean(name)
    for t, s in ((0.9, 0.4), (1.0, 0.6), (0.5, 0.0), (1.0, 0.0), (0.3, 0.3)):
        to_s, on, to_t = (p.transition(time(a), time(b))[0] for a, b in ((0.0, s), (s, t), (0.0, t)))
        for law in (logits, *(known(torch.tensor(v)).logits for v in tokens)):
            weight = torch.full((V,), -torch.inf).double()
            weight[tokens] = law[tokens].double()
            weight = weight.softmax(0)
            for x in range(p.states):
                seen = [v for v in tokens if to_t[v, x] > 0 and weight[v] > 0]
                if not seen:
                    continue
                if name != "uniform" and x != p.mask:
                    seen = [x]  # a visible token is known whatever the network says
                    weight_x = torch.ones(V).double()
                else:
                    weight_x = weight
                bayes = sum(weight_x[v] * on[:, x] * to_s[v] / to_t[v, x] for v in seen)
                got = p.posterior(torch.tensor([[x]]), law.reshape(1, 1, V), time(t), time(s))[0, 0]
                torch.testing.assert_close(got, bayes / bayes.sum(), rtol=0, atol=1e-12)


@each
def test_the_evidence_is_the_likelihood_up_to_a_factor(name):
    p = process(name)
    t = time(0.0, 0.4, 1.0)
    like = p.transition(time(0.0), t)  # (3, states, states)
    x = torch.arange(p.states).expand(3, -1)
    got = p.evidence(x, t)
    for r in range(3):
        for j in range(p.states):
            column, mine = like[r, clean(name), j], got[r, j, clean(name)]
            if column.sum() > 0:
                torch.testing.assert_close(mine * column.sum(), column * mine.sum(), rtol=0, atol=1e-12)
    if name == "masked":
        # a prompt is read at t = 1 too, where corruption would have left nothing of it
        assert torch.equal(got[2, :V], torch.eye(V).double())


@each
@pytest.mark.parametrize("units", [(), (3,)])
def test_corruption_and_moves_by_frequencies(name, units):
    """Frequencies of x_t, of x_s given x_t, and of x_s, from shared times and from a time for every token."""
    p, n = process(name, "cosine"), 30000
    x0 = torch.tensor([clean(name)[0], 3, 2]).expand(n, 3)
    at, to = time(0.9, 0.5, 0.7), time(0.4, 0.5, 0.9)  # down, still, up
    if not units:
        at, to = time(0.6), time(0.3)
    at, to = at.expand(n, *units), to.expand(n, *units)
    x = p.corrupt(x0, at, noise(n, 0, units), {})
    y = p.move(x, known(x0), at, to, 0.0, noise(n, 10**7, units), {})
    again = p.move(x, known(x0), at, to, 0.7, noise(n, 10**7, units), {})
    assert torch.equal(y, again)  # eta is ignored
    for j in range(3):
        t, s = (v[0, j : j + 1] if units else v[:1] for v in (at, to))
        start = time(0.0)
        v = int(x0[0, j])
        same(frequencies(x[:, j], p.states), p.transition(start, t)[0, v], n)
        same(frequencies(y[:, j], p.states), p.transition(start, s)[0, v], n)
        for i in range(p.states):
            rows = x[:, j] == i
            count = int(rows.sum())
            if count < 200:
                continue
            if s > t:
                law = p.transition(t, s)[0, i]
            else:
                law = p.posterior(torch.tensor([[i]]), known(torch.tensor([[v]])).logits, t, s)[0, 0]
            same(frequencies(y[rows, j], p.states), law, count)
    if units:
        assert torch.equal(y[:, 1], x[:, 1])


@each
def test_draws_follow_the_logits(name):
    """From pure noise to data in one move the law is softmax(logits), the mask left out."""
    p, n = process(name), 40000
    logits = torch.tensor([0.3, 1.5, -1.0, 0.2])
    x = p.prior(torch.zeros(n, 1, dtype=torch.int64), time(1.0).expand(n), noise(n), {})
    law = torch.full((V,), -torch.inf).double()
    law[clean(name)] = logits[clean(name)].double()
    pred = Pred(logits=logits.expand(n, 1, V))
    y = p.move(x, pred, time(1.0).expand(n), time(0.0).expand(n), 0.0, noise(n, 10**7), {})
    same(frequencies(y, V), law.softmax(0), n)


@each
def test_ends_and_identities(name):
    p = process(name)
    gen = torch.Generator().manual_seed(1)
    x0 = torch.tensor(clean(name))[torch.randint(len(clean(name)), (50, 7), generator=gen)]
    for t in (0.0, 0.4, 1.0):
        at = time(t).expand(50)
        x = p.corrupt(x0, at, noise(50), {})
        assert x.dtype == torch.int64
        assert torch.equal(p.move(x, None, at, at, 1.0, noise(50, 99), {}), x)
        assert torch.equal(p.move(x, known(x0), at, at * 0, 0.0, noise(50, 99), {}), x0)
    assert torch.equal(p.corrupt(x0, time(0.0).expand(50), noise(50), {}), x0)
    assert torch.equal(
        p.corrupt(x0, time(1.0).expand(50), noise(50), {}), p.prior(x0, time(1.0).expand(50), noise(50), {})
    )


@each
def test_a_row_does_not_see_its_neighbours(name):
    p = process(name, "cosine")
    gen = torch.Generator().manual_seed(2)
    x0 = torch.full((7, 5), 2)
    t, s = torch.rand(2, 7, generator=gen, dtype=torch.float64)
    logits = torch.randn(7, 5, V, generator=gen)
    x = p.corrupt(x0, t, noise(7), {})
    y = p.move(x, Pred(logits=logits), t, s, 0.0, noise(7, 50), {})
    for r in range(7):
        row = slice(r, r + 1)
        assert torch.equal(p.corrupt(x0[row], t[row], noise(1, r), {}), x[row])
        assert torch.equal(p.move(x[row], Pred(logits=logits[row]), t[row], s[row], 0.0, noise(1, 50 + r), {}), y[row])


def test_masks_are_revealed_for_good_and_never_drawn():
    p, n = process("masked-own"), 400
    pred = Pred(logits=torch.tensor([0.0, 50.0, 0.0, 0.0]).expand(n, 6, V))
    x = p.prior(torch.zeros(n, 6, dtype=torch.int64), time(1.0).expand(n), noise(n), {})
    for k in range(5, 0, -1):
        y = p.move(x, pred, time(k / 5).expand(n), time((k - 1) / 5).expand(n), 0.0, noise(n, 1000 * k), {})
        assert torch.equal(y[x != p.mask], x[x != p.mask])
        shown = (y != p.mask).double().mean().item()
        assert shown == pytest.approx(1 - (k - 1) / 5, abs=5 * math.sqrt(0.25 / (6 * n)))
        x = y
    assert not bool((x == p.mask).any())


def test_what_is_missing_or_out_of_range_is_said():
    assert process("masked").mask == V
    with pytest.raises(EbbError, match="at most 4"):
        make("process", {"name": "masked", "vocab": 4, "mask": 6})
    with pytest.raises(EbbError, match="vocab"):
        make("process", {"name": "uniform"})
    with pytest.raises(EbbError, match="logits"):
        process("uniform").move(torch.zeros(1, 2).long(), Pred(), time(0.5), time(0.1), 0.0, noise(1), {})
