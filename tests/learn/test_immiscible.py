"""Immiscible diffusion: who gets which noise."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebbtide.core.key import Noise, fold, keys
from ebbtide.core.registry import make
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.learn.immiscible import Immiscible, exchanged


def noise(n: int, step: int = 0) -> Noise:
    return Noise(keys(range(n)), torch.full((n,), step))


class Sees(nn.Module):
    """Says nothing and keeps what it was shown."""

    def forward(self, x: Tensor, clock: Tensor, class_labels: Tensor) -> Any:
        self.x, self.t = x, clock / 1000
        return SimpleNamespace(sample=torch.zeros_like(x))


def gains(n: int, dims: int, seed: int = 0) -> Tensor:
    draw = noise(n).fold(seed)
    return draw.normal(torch.zeros(n, dims), 1) @ draw.normal(torch.zeros(n, dims), 2).T


@pytest.mark.parametrize("dims", [1, 2, 50])
def test_no_two_gain_by_an_exchange(dims: int) -> None:
    gain = gains(40, dims)
    order = exchanged(gain)
    assert sorted(order.tolist()) == list(range(40))
    for i, j in itertools.combinations(range(40), 2):
        kept, swapped = gain[i, order[i]] + gain[j, order[j]], gain[i, order[j]] + gain[j, order[i]]
        assert swapped <= kept + 1e-4 * gain.abs().max()


def test_on_a_line_exchanges_sort() -> None:
    """In one dimension a permutation that no exchange improves is the sorted one, which is the optimum."""
    x, e = gains(60, 1)[:, 0], gains(60, 1, seed=1)[:, 0]
    order = exchanged(torch.outer(x, e))
    assert bool((e[order][x.argsort()].diff() >= -1e-4).all())


@pytest.mark.parametrize("dims", [2, 50])
def test_most_of_what_the_best_permutation_gains(dims: int) -> None:
    """Against the Hungarian method of scipy."""
    from scipy.optimize import linear_sum_assignment

    shares = []
    for seed in range(5):
        gain = gains(100, dims, seed)
        best = gain[linear_sum_assignment(-gain.numpy())].sum()
        ours = gain[torch.arange(100), exchanged(gain)].sum()
        shares.append(float((ours - gain.trace()) / (best - gain.trace())))
    assert max(shares) <= 1 + 1e-6
    assert min(shares) > 0.8


def test_the_noises_of_a_batch_stay_those_that_were_drawn() -> None:
    """So the law of the noise is untouched: pictures see each row of it once, whatever they are."""
    x0, net = noise(64).normal(torch.zeros(64, 1, 2, 2), 9), Sees()
    Immiscible().loss(net, x0, None, noise(64))
    t = net.t[:, None, None, None]
    seen, drawn = (net.x - (1 - t) * x0) / t, noise(64).normal(x0)
    late = net.t > 0.2
    near = torch.cdist(seen[late].flatten(1), drawn.flatten(1)).min(1)
    assert float(near.values.max()) < 1e-2
    assert len(near.indices.unique()) == int(late.sum())
    assert float((seen - x0)[late].square().sum()) < float((drawn - x0)[late].square().sum())


def test_switched_off_it_is_flow_matching() -> None:
    x0, labels = noise(32).normal(torch.zeros(32, 1, 2, 2), 9), torch.arange(32) % 10
    process = make("process", {"name": "vp-linear"})
    losses = [
        made.loss(Sees(), x0, labels, noise(32))
        for made in (FlowMatching(process=process, kind="eps"), Immiscible(process=process, kind="eps", exchange=False))
    ]
    assert torch.equal(*losses)


def test_the_nearest_of_some_noises_of_its_own() -> None:
    x0 = noise(20).normal(torch.zeros(20, 3), 9)
    own = [Noise(key, torch.zeros(20, dtype=torch.int64)) for key in (keys(range(20)), fold(keys(range(20)), 1))]
    own = [*own, Noise(fold(keys(range(20)), 2), own[0].i)]
    drawn = torch.stack([one.normal(x0) for one in own])
    got = Immiscible(exchange=False, nearest=3).paired(x0, noise(20)).normal(x0)
    far = (drawn - x0).square().sum(2)
    assert torch.equal((got - x0).square().sum(1), far.min(0).values)
    assert len(far.argmin(0).unique()) == 3
