"""Keyed noise: every draw has the right law, and streams that differ in anything are independent."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from ebbtide.core.key import Noise, keys, mix, normal, uniform
from ebbtide.core.state import State

N = 1_000_000
SIGMAS = 4.5  # draws are fixed by their keys, so a test that passes once passes always


def noise(seed: int = 0, i: int = 0, salt: int = 0) -> Noise:
    return Noise(keys([seed]), torch.tensor([i]), salt)


# A stream can run along any of the counters that a draw depends on; each must look like independent draws.
ALONG = {
    "places of a unit": lambda: (keys([3]), torch.tensor([5])),
    "seeds": lambda: (keys(range(N)), torch.full((N,), 7)),
    "steps": lambda: (keys([11]).expand(N), torch.arange(N)),
    "units": lambda: (keys([2], (N,))[0], torch.zeros(N, dtype=torch.int64)),
}


@pytest.fixture(params=ALONG)
def stream(request):
    return ALONG[request.param]()


def shape(key: torch.Tensor) -> tuple[int, int]:
    return len(key), N // len(key)


def test_normal_draws_are_normal(stream):
    key, i = stream
    z = normal(key, i, torch.empty(shape(key)), salt=1).double().reshape(-1)
    assert abs(z.mean()) < SIGMAS * N**-0.5
    assert abs(z.var() - 1) < SIGMAS * (2 / N) ** 0.5
    assert abs((z**3).mean()) < SIGMAS * (15 / N) ** 0.5
    assert abs((z**4).mean() - 3) < SIGMAS * (96 / N) ** 0.5
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    assert 4.5 < z.abs().max() < 6


def test_uniform_draws_are_uniform(stream):
    key, i = stream
    u = uniform(key, i, shape(key), salt=1).reshape(-1)
    assert u.dtype == torch.float64
    assert u.min() > 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < SIGMAS * (1 / 12 / N) ** 0.5
    assert abs(u.var() - 1 / 12) < SIGMAS * (1 / 180 / N) ** 0.5
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    low = (u * 2**52).long() & 0xFF  # the last bits are as even as the first
    assert stats.chisquare(torch.bincount(low, minlength=256).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    "other",
    [
        noise(salt=1),
        noise(i=1),
        noise(seed=1),
        noise(seed=-1),
        noise(seed=2**32),
        noise().fold(0),
        noise().fold(1),
        noise().fold(0).fold(0),
    ],
    ids=["salt", "step", "seed", "negative", "seed + 2^32", "field", "another field", "fold of a fold"],
)
def test_streams_that_differ_in_one_thing_are_independent(other):
    like = torch.empty(1, N)
    a, b = noise().normal(like)[0].double(), other.normal(like)[0].double()
    for f in (lambda z: z, torch.square, lambda z: z.abs().log()):
        assert abs(torch.corrcoef(torch.stack([f(a), f(b)]))[0, 1]) < SIGMAS * N**-0.5
    cell = (noise().uniform((1, N)) * 16).long() * 16 + (other.uniform((1, N)) * 16).long()
    assert stats.chisquare(torch.bincount(cell[0], minlength=256).numpy()).pvalue > 1e-3


def test_neighbours_and_halves_of_one_stream_are_independent():
    """Box-Muller makes two numbers of one word; they and their neighbours must not know of each other."""
    z = noise().normal(torch.empty(1, N))[0].double()
    for lag in (1, 2, 3, N // 2, N // 2 - 1, N // 2 + 1):
        for f in (lambda v: v, torch.square):
            assert abs(torch.corrcoef(torch.stack([f(z[lag:]), f(z[:-lag])]))[0, 1]) < SIGMAS * (N - lag) ** -0.5


def test_every_bit_of_the_mix_depends_on_every_bit():
    x = mix(torch.arange(4096) * 977)
    for bit in range(64):
        flipped = mix(x) ^ mix(x ^ (1 << bit if bit < 63 else -(1 << 63)))
        share = torch.stack([(flipped >> b) & 1 for b in range(64)]).double().mean(1)
        assert abs(share - 0.5).max() < 6 * 0.5 / 64  # 6 standard deviations of a mean of 4096 bits


def test_seeds_of_any_size_and_sign_have_keys_of_their_own():
    seeds = [0, 1, -1, -2, 2**31, 2**32, 2**32 + 1, -(2**32), 2**62, 2**63 - 1, 2**63, 2**63 + 1]
    assert len(set(keys(seeds).tolist())) == len(seeds)
    assert len(set(keys(range(100_000)).tolist())) == 100_000
    assert keys([2**200 + 7]).tolist() == keys([7]).tolist()  # seeds count modulo 2^64
    assert len(set(keys(seeds, (3, 2)).reshape(-1).tolist())) == 6 * len(seeds)


@pytest.mark.parametrize("units", [(), (2,)])
def test_keys_stay_distinct_through_six_doublings(units):
    state = State.blank(torch.zeros(1, 2), {}, [0], units)
    seen = set(state.key.reshape(-1).tolist())
    for _ in range(6):
        state = state.take(torch.arange(len(state)).repeat_interleave(2))
        fresh = state.key.reshape(-1).tolist()
        assert not seen & set(fresh)
        seen |= set(fresh)
    assert len(state) == 64
    assert len(set(state.key.reshape(-1).tolist())) == state.key.numel()


# ---------------------------------------------------------------- draws of a part


def test_categorical_frequencies():
    p = torch.tensor([0.0, 0.7, 0.2, 0.0, 0.0999, 1e-4, 0.0], dtype=torch.float64)
    drawn = noise(5).categorical((p.log() + 3).float().expand(1, N, -1))
    assert (drawn.dtype, drawn.shape) == (torch.int64, (1, N))
    count = torch.bincount(drawn[0], minlength=len(p)).double()
    assert (abs(count - N * p) <= SIGMAS * (N * p * (1 - p)).sqrt()).all()


def test_categorical_has_no_ceiling_on_rare_classes():
    """Among 30 classes of 1e-6 each and one that takes the rest, the rare ones still come 30 times in a million."""
    p = torch.full((31,), 1e-6, dtype=torch.float64)
    p[7] = 1 - 30e-6
    drawn = noise(9).categorical(p.log().expand(1, N, -1))
    assert abs((drawn != 7).sum() - 30) < SIGMAS * 30**0.5


def test_recorded_maps_are_given_at_each_elements_own_step():
    maps = torch.arange(4 * 4 * 2.0).reshape(4, 4, 2)
    maps[3] = 0  # zeros: nothing was recorded
    like = torch.empty(4, 2, dtype=torch.float64)
    told = Noise(keys([0, 1, 2, 3]), torch.tensor([2, 0, 9, 1]), 1, maps)
    fresh = Noise(told.key, told.i, 1)
    drawn = fresh.normal(like)
    wanted = torch.stack(
        [maps[0, 2].double(), maps[1, 0].double(), drawn[2], drawn[3]]
    )  # beyond the last: drawn afresh
    assert torch.equal(told.normal(like), wanted)
    assert torch.equal(told.take(torch.tensor([2, 0])).normal(like[:2]), wanted[[2, 0]])
    assert torch.equal(told.normal(like, salt=1), fresh.normal(like, salt=1))
    assert torch.equal(told.fold(0).normal(like), fresh.fold(0).normal(like))


# ---------------------------------------------------------------- units


@pytest.mark.parametrize("draw", [lambda k, i, s: normal(k, i, torch.empty(s)), uniform], ids=["normal", "uniform"])
@pytest.mark.parametrize(
    ("units", "size"), [((3,), (3, 5)), ((1, 3, 4), (2, 3, 4)), ((2, 3), (2, 3, 3)), ((1, 3, 4), (2, 3, 4, 2))]
)
def test_a_unit_draws_by_its_own_key_alone(draw, units, size):
    """Cut out one unit, with its key: the same numbers. Channels (B, C, H, W) of pixels (B, 1, H, W) are inside a unit."""
    key = keys([1, 2], units)
    whole = draw(key, torch.ones(key.shape, dtype=torch.int64), (2, *size))
    assert len(whole.unique()) == whole.numel()
    for at in torch.cartesian_prod(torch.arange(2), *map(torch.arange, units)).tolist():
        one = tuple(slice(k, k + 1) for k in at)
        cut = tuple(
            slice(None) if n == 1 and m > 1 else s for s, n, m in zip(one, key.shape, whole.shape, strict=False)
        )
        alone = draw(key[one], torch.ones(key[one].shape, dtype=torch.int64), whole[cut].shape)
        assert torch.equal(alone, whole[cut])


def test_units_that_do_not_lead_the_tensor_are_refused():
    with pytest.raises(ValueError, match="do not lead"):
        normal(keys([1], (3,)), torch.zeros(1, 3, dtype=torch.int64), torch.empty(1, 2, 3))
