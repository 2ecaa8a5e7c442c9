"""The bound of masked diffusion against entropies, chain rules and networks whose answers are known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ebbtide.core.key import Noise, keys
from ebbtide.denoise.exact import MarkovChain
from ebbtide.learn.masked import MaskedNELBO
from ebbtide.process.masked import Masked

V, L = 3, 5
SCHEDULES = ["linear", "quadratic", "cosine", "geometric"]


def noise(n: int, step: int = 0) -> Noise:
    return Noise(keys(range(n)), torch.full((n,), step))


def chain(process: Masked) -> MarkovChain:
    return MarkovChain(process, [0.5, 0.3, 0.2], [[0.8, 0.1, 0.1], [0.3, 0.3, 0.4], [0.05, 0.15, 0.8]], L)


def exact(process: Masked) -> MaskedNELBO:
    return MaskedNELBO(process, call=lambda network, x, t: network(x, t, {}).logits)


def flat(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros(*x.shape, V, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_network_that_knows_nothing_pays_the_logarithm_of_the_vocabulary(schedule: str) -> None:
    objective = MaskedNELBO(Masked(V, schedule=schedule))
    draws = objective.bounds(flat, torch.zeros(40_000, L, dtype=torch.int64), noise(40_000))
    assert float(draws.mean()) == pytest.approx(L * math.log(V), abs=3 * float(draws.std()) / 200)
    assert draws.std() / 200 < 0.02 * L * math.log(V)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_of_the_truth_is_its_entropy(schedule: str) -> None:
    truth = chain(Masked(V, schedule=schedule))
    x0 = truth.sample(20_000)
    every = torch.tensor(list(itertools.product(range(V), repeat=L)))
    entropy = float(torch.special.entr(truth.log_prob(every).exp()).sum())
    draws = exact(truth.process).bounds(truth, x0, noise(len(x0)))  # type: ignore[arg-type]
    assert float(draws.mean()) == pytest.approx(entropy, abs=3 * float(draws.std()) / len(x0) ** 0.5)
    loss = exact(truth.process).loss(truth, x0, None, noise(len(x0)))  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(float(draws.mean()) / L)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_in_any_order_the_truth_says_the_likelihood(order: tuple[int, ...]) -> None:
    truth = chain(Masked(V))
    x0 = truth.sample(50)
    loss = exact(truth.process).in_order(truth, x0, order)  # type: ignore[arg-type]
    assert torch.allclose(loss, -truth.log_prob(x0))


def test_the_network_is_told_what_is_hidden_and_when() -> None:
    process, seen = Masked(V, schedule="cosine"), []

    def listens(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.clone(), t))
        return flat(x, t)

    x0 = torch.arange(4 * L).reshape(4, L) % V
    MaskedNELBO(process).in_order(listens, x0, range(L))
    for k, (x, t) in enumerate(seen):
        assert torch.equal(x[:, :k], x0[:, :k])
        assert (x[:, k:] == process.mask).all()
        assert torch.allclose(process.alpha(t), torch.full((4,), k / L).double())


def test_visible_tokens_cost_nothing_and_teach_nothing() -> None:
    process = Masked(V)
    logits = torch.zeros(64, L, V, dtype=torch.float64, requires_grad=True)
    shown: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        shown.append(x != process.mask)
        return logits

    MaskedNELBO(process).bounds(network, torch.zeros(64, L, dtype=torch.int64), noise(64)).sum().backward()
    assert logits.grad is not None
    taught = (logits.grad != 0).any(-1)
    assert torch.equal(taught, ~shown[0])
    assert shown[0].any()
    assert taught.any()


def test_a_mask_of_the_vocabulary_is_never_predicted() -> None:
    process = Masked(V, mask=1)

    def stubborn(x: Tensor, t: Tensor) -> Tensor:
        return torch.tensor([0.0, 50.0, 0.0], dtype=torch.float64).expand(*x.shape, V)

    loss = MaskedNELBO(process).in_order(stubborn, torch.tensor([[0, 2, 0, 2, 0]]), range(L))
    assert float(loss) == pytest.approx(L * math.log(2))


def test_draws_belong_to_rows_and_steps() -> None:
    truth = chain(Masked(V))
    x0, objective = truth.sample(32), exact(truth.process)  # type: ignore[arg-type]
    one, other = (objective.bounds(truth, x0, noise(32, step)) for step in (0, 1))
    assert torch.equal(one, objective.bounds(truth, x0, noise(32, 0)))
    assert not torch.equal(one, other)
    t = objective.times(noise(32)).sort().values
    assert torch.allclose(t.diff(), torch.full((31,), 1 / 32, dtype=torch.float64))
