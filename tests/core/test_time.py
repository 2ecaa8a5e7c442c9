"""Weights: floats and tensors give the same bits, trees and zeros are nothing special, times are found to the last bit."""

from __future__ import annotations

import itertools

import pytest
import torch

from ebbtide.core import time
from ebbtide.core.time import combine, invert, nil, pick, ratio, right, shared, spread, unit_mean, weight, where

GEN = torch.Generator().manual_seed(0)


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=GEN, dtype=dtype)


@pytest.mark.parametrize(
    ("t", "x", "wanted"),
    [
        ((2,), (2,), (2,)),
        ((2,), (2, 3, 4), (2, 1, 1)),
        ((2, 3), (2, 3, 4, 5), (2, 3, 1, 1)),
        ((2, 1, 4, 5), (2, 3, 4, 5), (2, 1, 4, 5)),
    ],
)
def test_right_pads_on_the_right(t, x, wanted):
    assert right(torch.zeros(t), torch.zeros(x)).shape == wanted


def test_shared_is_the_one_time_of_all_units():
    assert shared(torch.full((3, 2), 0.25)) == 0.25
    assert shared(torch.tensor([0.5])) == 0.5
    assert shared(torch.tensor([0.5, 0.5 + 2**-50], dtype=torch.float64)) is None
    assert shared(torch.ones(2, requires_grad=True)) is None
    mixed = torch.tensor([0.0, 1.0])
    assert weight(mixed) is mixed
    assert weight(torch.ones(4)) == 1.0
    assert spread(0.3, torch.zeros(2, 3, dtype=torch.float64)).tolist() == [[0.3] * 3] * 2
    assert spread(mixed, mixed) is mixed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_floats_and_tensors_of_weights_give_the_same_bits(dtype, terms):
    """For every length, so that vector lanes and tails are met, and whichever of the weights are tensors."""
    for n in (1, 2, 7, 8, 15, 33, 67):
        xs = [randn(2, n, dtype=dtype) for _ in range(terms)]
        ws = randn(terms).tolist()
        floats = combine(*zip(ws, xs, strict=True))
        assert floats.dtype == dtype
        for kinds in itertools.product([False, True], repeat=terms):
            mixed = [torch.full((2,), w, dtype=torch.float64) if k else w for w, k in zip(ws, kinds, strict=True)]
            assert torch.equal(combine(*zip(mixed, xs, strict=True)), floats), (n, kinds)


def test_combine_is_the_weighted_sum_of_each_unit():
    x, y, w = randn(2, 3, 4), randn(2, 3, 4), randn(2, 3)
    got = combine((w, x), (-0.5, y))
    for b, f in itertools.product(range(2), range(3)):
        assert torch.allclose(got[b, f], w[b, f] * x[b, f] - 0.5 * y[b, f], rtol=0, atol=1e-15)


def test_combine_of_trees_is_that_of_their_leaves():
    a, b = ({"p": {"q": randn(2, 3)}, "r": randn(2)} for _ in range(2))
    w = torch.tensor([0.25, 2.0], dtype=torch.float64)
    got = combine((w, a), (0.5, b))
    assert torch.equal(got["p"]["q"], combine((w, a["p"]["q"]), (0.5, b["p"]["q"])))
    assert torch.equal(got["r"], combine((w, a["r"]), (0.5, b["r"])))


def test_terms_of_weight_zero_cost_nothing_and_spread_no_nan():
    x, bad = randn(2, 3), torch.full((2, 3), torch.nan, dtype=torch.float64)
    assert torch.equal(combine((0.0, bad), (2.0, x), (0.0, bad)), 2 * x)
    assert torch.equal(combine((0.0, bad), (0.0, x)), torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("w", [1.0, torch.ones(2, dtype=torch.float64), torch.tensor([1.0, 2.0])])
def test_the_result_is_fresh(w):
    x = randn(2, 3)
    before = x.clone()
    combine((w, x), (0.0, x)).zero_()
    combine((0.0, x), (w, x)).zero_()
    assert torch.equal(x, before)


def test_nil_pick_and_ratio():
    assert nil(0.0)
    assert not nil(1e-300)
    assert nil(torch.zeros(2))
    assert not nil(torch.tensor([0.0, 1e-300], dtype=torch.float64))
    assert pick(True, 1.0, 2.0) == 1.0
    assert pick(torch.tensor([True, False]), 1.0, torch.tensor([5.0, 6.0])).tolist() == [1.0, 6.0]
    assert ratio(3.0, 0.0) == 0.0
    assert ratio(3.0, 2.0) == 1.5
    a = torch.tensor([3.0, 3.0, 0.0], requires_grad=True)
    b = torch.tensor([2.0, 0.0, 0.0], requires_grad=True)
    assert ratio(a, b).tolist() == [1.5, 0.0, 0.0]
    ratio(a, b).sum().backward()  # where the denominator is 0 the gradient is, too
    assert a.grad.tolist() == [0.5, 0.0, 0.0]
    assert b.grad.isfinite().all()


def test_the_exponential_of_a_float_is_that_of_a_tensor():
    values = randn(5000) * 3
    assert values.exp().tolist() == [time.exp(v) for v in values.tolist()]
    assert torch.equal(time.exp(values), values.exp())


@pytest.mark.parametrize(("t", "over"), [((2,), (1, 2, 3)), ((2, 3), (2, 3)), ((2, 1, 4, 5), (1,)), ((2, 3, 4, 5), ())])
def test_unit_mean_is_over_what_a_unit_spans(t, over):
    x = randn(2, 3, 4, 5)
    wanted = (x.mean(over) if over else x).reshape(t)
    assert torch.allclose(unit_mean(x, torch.zeros(t)), wanted, rtol=0, atol=1e-15)
    assert unit_mean(x.float(), torch.zeros(t)).dtype == torch.float64


def test_invert_finds_times_to_the_last_bit():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    falling = lambda t: (1 - t) ** 3  # noqa: E731
    assert torch.allclose(invert(falling, falling(t)), t, rtol=0, atol=1e-5)  # flat at 1: a cube root of rounding
    assert torch.allclose(invert(lambda t: 5 - 3 * t, 5 - 3 * t), t, rtol=0, atol=4e-16)
    small = torch.tensor([5.0, 20.0], dtype=torch.float64)
    assert torch.allclose(invert(lambda t: -t.log(), small).log(), -small, rtol=1e-8)
    outside = torch.tensor([9.0, -9.0], dtype=torch.float64)
    assert torch.allclose(invert(lambda t: 1 - t, outside), torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-15)


def test_where_chooses_unit_by_unit_in_trees():
    new, old = {"a": torch.ones(2, 3, 4), "b": torch.ones(2, 3)}, {"a": torch.zeros(2, 3, 4), "b": torch.zeros(2, 3)}
    units = torch.tensor([[True, False, True], [False, False, True]])
    got = where(units, new, old)
    assert torch.equal(got["b"].bool(), units)
    assert torch.equal(got["a"].bool(), units[..., None].expand(2, 3, 4))
