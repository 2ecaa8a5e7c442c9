"""Text: models whose answers are known in closed form, repetition counted by hand, masked models through the border."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.measure import metrics

V = 5
CHAIN = torch.tensor([[0.7, 0.1, 0.1, 0.05, 0.05]]).double()
CHAIN = torch.stack([CHAIN[0].roll(j) for j in range(V)])  # stays where it is with probability 0.7
RATE = float(torch.special.entr(CHAIN[0]).sum())  # entropy a token, as the stationary law is uniform


def uniform(x: Tensor) -> Tensor:
    """Knows nothing."""
    return torch.zeros(*x.shape, V)


def chain(x: Tensor) -> Tensor:
    """The true law of the next token."""
    return CHAIN[x].log()


def walks(n: int, length: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(V, (n, 1), generator=g)
    while x.shape[1] < length:
        x = torch.cat([x, torch.multinomial(CHAIN[x[:, -1]], 1, generator=g)], 1)
    return x


# -------------------------------------------------------------------- causal


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    x = walks(7, 9)
    for start, tokens in ((None, 8), (0, 9)):
        scores = metrics.nll(uniform, x, start=start, batch=3)
        assert scores.tokens.tolist() == [tokens] * 7
        assert metrics.perplexity(*scores) == pytest.approx(V, rel=1e-12)


def test_the_true_model_has_the_perplexity_of_the_source():
    scores = metrics.nll(chain, walks(400, 50))
    found = metrics.bootstrap(metrics.perplexity, *scores, paired=True)
    assert found.low <= math.exp(RATE) <= found.high
    assert (found.high - found.low) / found.value < 0.1
    shifted = metrics.nll(lambda x: chain(x).roll(1, -1), walks(400, 50))
    assert metrics.perplexity(*shifted) > 1.5 * found.value


def test_each_token_is_scored_by_the_answer_before_it():
    """Logits are normalised; the sum is that of the transitions, and the start token is asked about the first."""
    x = torch.tensor([[0, 0, 1, 4]])
    shifted = lambda v: chain(v) + 3.7  # noqa: E731
    expected = -math.log(0.7) - math.log(0.1) - math.log(CHAIN[1, 4])
    assert metrics.nll(shifted, x).total.item() == pytest.approx(expected)
    assert metrics.nll(shifted, x, start=4).total.item() == pytest.approx(expected - math.log(CHAIN[4, 0]))


def test_padding_never_counts():
    x = torch.tensor([[0, 1, 2, 4, 4], [3, 3, 4, 4, 4]])
    scores = metrics.nll(chain, x, pad=4)
    assert scores.tokens.tolist() == [2, 1]
    assert scores.total[1].item() == pytest.approx(-math.log(0.7))
    assert metrics.pseudo_nll(uniform, x, mask=4, pad=4).tokens.tolist() == [3, 2]
    with pytest.raises(EbbError, match="no token"):
        metrics.perplexity(*metrics.nll(chain, torch.full((2, 3), 4), pad=4))


def test_intervals_of_perplexity_cover_the_truth():
    hits = 0
    for k in range(80):
        scores = metrics.nll(chain, walks(40, 12, 100 + k))
        found = metrics.bootstrap(metrics.perplexity, *scores, paired=True, draws=80, seed=k)
        hits += found.low <= math.exp(RATE) <= found.high
    assert 68 <= hits <= 80


def test_an_answer_of_another_shape_is_refused():
    with pytest.raises(EbbError, match=r"\(B, L, V\)"):
        metrics.nll(lambda x: torch.zeros(len(x), V), walks(2, 4))


# -------------------------------------------------------------------- masked


def between(x: Tensor) -> Tensor:
    """log p of a token of the walk given its neighbours, mask = V; the exact conditional where both sides are shown."""
    table = torch.cat([CHAIN, torch.ones(1, V).double()])  # a mask, or nothing, on one side says nothing
    left = torch.cat([torch.full_like(x[:, :1], V), x[:, :-1]], 1)
    right = torch.cat([x[:, 1:], torch.full_like(x[:, :1], V)], 1)
    into = torch.cat([CHAIN.T, torch.ones(1, V).double()])
    return (table[left] * into[right]).log()


def test_pseudo_likelihood_is_the_product_of_the_conditionals():
    """log p(x_j | others) of a Markov chain has the neighbours alone; here from the joint table of all sequences."""
    x = walks(6, 4, 3)
    sequences = torch.cartesian_prod(*[torch.arange(V)] * 4)
    joint = CHAIN[sequences[:, :-1], sequences[:, 1:]].prod(1).reshape([V] * 4)
    expected = []
    for row in x.tolist():
        one = 0.0
        for j in range(4):
            line = joint[tuple(slice(None) if k == j else row[k] for k in range(4))]
            one -= math.log(line[row[j]] / line.sum())
        expected.append(one)
    asked: list[Tensor] = []
    found = metrics.pseudo_nll(lambda v: asked.append(v) or between(v), x, mask=V, batch=4)
    hidden = torch.cat(asked) == V
    assert len(hidden) == 6 * 4
    assert hidden.sum(1).tolist() == [1] * 24
    assert found.total.tolist() == pytest.approx(expected, rel=1e-9)
    assert found.tokens.tolist() == [4] * 6
    assert metrics.perplexity(*metrics.pseudo_nll(uniform, x, mask=V)) == pytest.approx(V)


def test_accuracy_counts_hidden_tokens_and_hides_the_share_asked_for():
    x = walks(200, 30, 4)
    seen: list[Tensor] = []

    def oracle(v: Tensor) -> Tensor:
        seen.append(v)
        guess = torch.where(v == V, 2, v)
        return torch.nn.functional.one_hot(guess, V + 1).double()

    scores = metrics.accuracy(oracle, x, V, 0.3, batch=70)
    hidden = torch.cat(seen) == V
    assert scores.tokens.tolist() == hidden.sum(1).tolist()
    assert float(hidden.double().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(torch.cat(seen)[~hidden], x[~hidden])
    assert metrics.rate(*scores) == pytest.approx(float((x[hidden] == 2).double().mean()))
    masker = lambda v: torch.nn.functional.one_hot(torch.full_like(v, V), V + 1) * 9.0 - (v[..., None] * 0)  # noqa: E731
    assert metrics.rate(*metrics.accuracy(masker, x, V, 0.3)) == pytest.approx(float((x[hidden] == 0).double().mean()))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_masked_diffusion_model_is_asked_at_the_time_of_its_masks(schedule: str):
    times: list[Tensor] = []

    def net(x: Tensor, clock: Tensor) -> Tensor:
        times.append(clock)
        return torch.zeros(*x.shape, V)

    process = {"name": "masked", "vocab": V, "schedule": schedule}
    like = torch.zeros(8, dtype=torch.int64)
    model = ebb.load(net, process=process, predicts="logits", clock="time", like=like)
    x = walks(3, 8)
    x[0, :2], x[1, :] = V, V
    metrics.asked_of(model)(x)
    shown = model.process.alpha(times[0].double())
    assert shown.tolist() == pytest.approx([0.75, 0, 1], abs=1e-6)
    assert metrics.perplexity(*metrics.pseudo_nll(metrics.asked_of(model), walks(2, 8), mask=V)) == pytest.approx(V)
    flow = ebb.load(net, process="flow", like=torch.zeros(2))
    with pytest.raises(EbbError, match="no model of masked tokens"):
        metrics.asked_of(flow)


# -------------------------------------------------------------------- by itself


def test_exact_match_of_tokens_and_of_strings():
    x = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    y = torch.tensor([[1, 2], [3, 5], [6, 5], [7, 8]])
    assert metrics.exact_match(x, y) == 0.5
    assert metrics.exact_match(["a b", "c"], ["a b", "c "]) == 0.5
    assert metrics.bootstrap(metrics.exact_match, x, x, paired=True) == (1, 1, 1)
    with pytest.raises(EbbError, match="one wanted"):
        metrics.exact_match(x, y[:3])


def test_distinct_by_hand():
    x = torch.tensor([[1, 2, 1, 2], [1, 2, 3, 0]])
    assert metrics.distinct(x, 1) == 4 / 8
    assert metrics.distinct(x, 2) == 4 / 6  # 12 21 12 | 12 23 30
    assert metrics.distinct(x, 2, pad=0) == 3 / 5
    assert metrics.distinct(x, 4) == 1
    with pytest.raises(EbbError, match="5-grams"):
        metrics.distinct(x, 5)
    with pytest.raises(EbbError, match="hold no"):
        metrics.distinct(torch.zeros(2, 3), 1, pad=0)


def test_entropy_by_hand_is_of_each_sequence():
    x = torch.tensor([[0, 1, 2, 3], [7, 7, 7, 7], [5, 5, 6, 6]])
    assert metrics.entropy(x[:1]) == pytest.approx(math.log(4))
    assert metrics.entropy(x[1:2]) == 0
    assert metrics.entropy(x) == pytest.approx((math.log(4) + 0 + math.log(2)) / 3)
    assert metrics.entropy(x[2:], 2) == pytest.approx(math.log(3))
    assert metrics.entropy(torch.tensor([[0, 1, 9, 9]]), pad=9) == pytest.approx(math.log(2))


def test_halves_of_a_text_repeat_nothing():
    """Rows all different: every figure of a half is 1, where repeated rows would lower it."""
    x = torch.arange(40).reshape(10, 4)
    assert metrics.bootstrap(metrics.distinct, x, repeat=False) == (1, 1, 1)
    assert metrics.bootstrap(metrics.distinct, x).low < 1
