"""Keyed noise: the laws of its draws, and that a draw depends on its key, step, salt and place alone."""

from __future__ import annotations

import math

import pytest
import torch
from ebbtide.core.key import Noise, fold, keys, mix, normal, uniform
from scipy import stats
from torch import Tensor

N = 1_000_000
ZERO = torch.zeros(1, dtype=torch.int64)


def still(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.int64)


def layouts() -> dict[str, Tensor]:
    """A million normal draws: of one unit, of a million units, of a thousand units of a thousand, over a million steps."""
    one = keys([5])
    many = keys(range(N))
    some = keys(range(1000))
    return {
        "one unit": normal(one, ZERO, torch.empty(1, N))[0],
        "many units": normal(many, still(N), torch.empty(N)),
        "between": normal(some, still(1000), torch.empty(1000, 1000)).flatten(),
        "many steps": normal(one.expand(N), torch.arange(N), torch.empty(N)),
        "frames": normal(keys(range(1000), (1000,)), torch.zeros(1000, 1000, dtype=torch.int64), torch.empty(1000, 1000)),
    }


@pytest.mark.parametrize("layout", ["one unit", "many units", "between", "many steps", "frames"])
def test_normal_draws_are_normal(layout: str):
    x = layouts()[layout].flatten().double()
    assert x.numel() == N
    assert abs(x.mean()) < 4 / math.sqrt(N)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / N)
    assert abs((x**3).mean()) < 4 * math.sqrt(15 / N)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / N)
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-3
    tail = float((x.abs() > 4).double().mean())
    expected = 2 * stats.norm.sf(4)
    assert abs(tail - expected) < 5 * math.sqrt(expected / N)
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("shape", [(1, N), (N,), (1000, 1000)])
def test_uniform_draws_are_uniform(shape: tuple[int, ...]):
    u = uniform(keys(range(shape[0])), still(shape[0]), shape).flatten()
    assert u.dtype == torch.float64
    assert bool(((u > 0) & (u < 1)).all())
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    assert abs(u.mean() - 0.5) < 4 / math.sqrt(12 * N)
    low = (u * 2**30).frac()  # the low bits are as good as the high ones
    assert stats.kstest(low.numpy(), "uniform").pvalue > 1e-3


def related() -> dict[str, tuple[Tensor, Tensor]]:
    n = 100_000
    key, like = keys(range(n)), torch.empty(n)
    wide = torch.empty(1, n)
    a = Noise(key, still(n), 1)
    return {
        "salts": (normal(key, still(n), like, 1), normal(key, still(n), like, 2)),
        "steps": (normal(key, still(n), like), normal(key, still(n) + 1, like)),
        "seeds": (normal(keys([3]), ZERO, wide)[0], normal(keys([4]), ZERO, wide)[0]),
        "far seeds": (normal(keys([3]), ZERO, wide)[0], normal(keys([3 + 2**32]), ZERO, wide)[0]),
        "neighbours": (normal(keys([3]), ZERO, wide)[0][:-1], normal(keys([3]), ZERO, wide)[0][1:]),
        "the halves of a pair": tuple(normal(keys([3]), ZERO, torch.empty(1, 2 * n))[0].reshape(2, n)),  # type: ignore[dict-item]
        "folds": (a.fold(0).normal(like), a.fold(1).normal(like)),
        "a fold and its parent": (a.normal(like), a.fold(0).normal(like)),
        "a child and its parent": (normal(key, still(n), like), normal(fold(key, 1), still(n), like)),
        "children": (normal(fold(key, 1), still(n), like), normal(fold(key, 2), still(n), like)),
        "units": tuple(normal(keys(range(n), (2,)), torch.zeros(n, 2, dtype=torch.int64), torch.empty(n, 2)).T),  # type: ignore[dict-item]
        "seed and step": (normal(keys(range(n)), still(n) + 1, like), normal(keys(range(1, n + 1)), still(n), like)),
    }


@pytest.mark.parametrize("pair", list(related()))
def test_draws_are_independent(pair: str):
    """No correlation of values, of squares (the shared radius of a pair would show), or of value and square."""
    a, b = (v.double() for v in related()[pair])
    assert not torch.equal(a, b)
    for f, g in ((a, b), (a**2, b**2), (a, b**2), (a**2, b)):
        r = torch.corrcoef(torch.stack([f, g]))[0, 1]
        assert abs(r) < 4.5 / math.sqrt(len(a)), f"correlation {float(r):.4f}"


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 2, -(2**62)])
def test_every_seed_is_its_own(seed: int):
    others = [s for s in (0, 1, -1, 5, 2**32, 2**32 + 1, 2**63 - 1, 2**63) if s % 2**64 != seed % 2**64]
    assert keys([seed])[0] not in keys(others)
    x = normal(keys([seed]), ZERO, torch.empty(1, 1000))
    assert abs(x.mean()) < 0.15
    for other in others:
        assert not torch.equal(x, normal(keys([other]), ZERO, torch.empty(1, 1000)))


def test_mixing_is_a_bijection_and_keys_do_not_collide():
    n = 200_000
    near = torch.arange(-n, n)
    for z in (near, near << 32, near * 2654435761):
        assert len(mix(z).unique()) == 2 * n
    assert len(torch.cat([keys(range(n)), keys(range(-n, 0)), keys(range(2**32, 2**32 + n))]).unique()) == 3 * n
    children = fold(keys(range(500))[:, None], torch.arange(500)[None])
    assert len(torch.cat([children.flatten(), keys(range(500))]).unique()) == 500 * 501
    assert len(keys(range(300), (7, 90)).unique()) == 300 * 7 * 90


def test_mixing_lets_every_bit_decide_every_bit():
    """Avalanche: each input bit flips each output bit half of the time."""
    z = mix(torch.arange(4096) * 77 + 5)
    for bit in range(0, 64, 7):
        flip = (1 << bit) if bit < 63 else -(2**63)
        other = mix((torch.arange(4096) * 77 + 5) ^ flip)
        changed = z ^ other
        share = torch.stack([((changed >> k) & 1).double().mean() for k in range(64)])
        assert bool(((share - 0.5).abs() < 0.05).all()), f"bit {bit}"


def test_a_draw_does_not_depend_on_its_neighbours():
    key, i = keys(range(9)), torch.arange(9)
    whole = normal(key, i, torch.empty(9, 3, 5))
    for rows in ([4], [8, 0], [1, 2, 3]):
        index = torch.tensor(rows)
        assert torch.equal(normal(key[index], i[index], torch.empty(len(rows), 3, 5)), whole[index])
        u = uniform(key, i, (9, 7))
        assert torch.equal(uniform(key[index], i[index], (len(rows), 7)), u[index])
    assert torch.equal(normal(key, i, torch.empty(9, 15)).reshape(9, 3, 5), whole)


def test_units_draw_their_own():
    """Frames, tokens and pixels: what a unit draws is what its key draws alone, whatever the layout."""
    for units, shape in (((3,), (2, 3, 4)), ((5,), (2, 5)), ((1, 2, 3), (2, 4, 2, 3)), ((2, 1, 3), (2, 2, 4, 3, 2))):
        key = keys([1, 2], units)
        i = torch.arange(key.numel()).reshape(key.shape)
        x, u = normal(key, i, torch.empty(shape)), uniform(key, i, shape)
        index = [(b, *rest) for b in range(2) for rest in torch.cartesian_prod(*map(torch.arange, units)).reshape(-1, len(units)).tolist()]
        for place in index:
            spot = tuple(slice(None) if units[d - 1] == 1 and d > 0 and shape[d] > 1 else n for d, n in enumerate(place))
            one = x[spot].flatten()
            alone = key[place].reshape(1), i[place].reshape(1)
            assert torch.equal(one, normal(*alone, torch.empty(1, one.numel()))[0])
            assert torch.equal(u[spot].flatten(), uniform(*alone, (1, one.numel()))[0])


def test_units_that_do_not_lead_the_shape_are_refused():
    with pytest.raises(ValueError, match="do not lead"):
        normal(keys([1], (3,)), torch.zeros(1, 3, dtype=torch.int64), torch.empty(1, 4, 3))


def test_dtypes_are_casts_of_one_draw():
    key = keys([1, 2])
    x = normal(key, still(2), torch.empty(2, 33))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert torch.equal(normal(key, still(2), torch.empty(2, 33, dtype=dtype)), x.to(dtype))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(normal(key, still(2), torch.empty(2, 33, dtype=torch.float32)), x)
    finally:
        torch.set_default_dtype(default)


def test_nothing_touches_the_global_generator():
    before = torch.get_rng_state()
    noise = Noise(keys([1]), ZERO)
    noise.normal(torch.empty(1, 9))
    noise.uniform((1, 9))
    noise.categorical(torch.zeros(1, 9, 4))
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- Noise


def test_salts_and_folds_are_streams_apart():
    noise = Noise(keys([1]), ZERO, 1)
    like = torch.empty(1, 64)
    drawn = [noise.normal(like, s) for s in range(8)]
    drawn += [noise.fold(s).normal(like) for s in range(8)]
    drawn += [noise.fold(s).fold(r).normal(like) for s in range(4) for r in range(4)]
    drawn += [Noise(keys([1]), ZERO, s).normal(like) for s in (2, 3, 256, 257, 512, 513)]
    drawn += [Noise(keys([1]), ZERO, s).fold(1).normal(like) for s in (2, 3, 256, 257, 512, 513)]
    assert len({tuple(x[0].tolist()) for x in drawn}) == len(drawn)


def test_folding_deep_does_not_overflow():
    noise = Noise(keys([1]), ZERO, 512)
    seen = set()
    for depth in range(12):
        noise = noise.fold(depth)
        seen.add(tuple(noise.normal(torch.empty(1, 8))[0].tolist()))
        assert 0 < float(noise.uniform((1,))) < 1
    assert len(seen) == 12


def test_take_keeps_streams():
    noise = Noise(keys(range(5)), torch.arange(5), 3)
    index = torch.tensor([4, 1])
    assert torch.equal(noise.take(index).normal(torch.empty(2, 6)), noise.normal(torch.empty(5, 6))[index])


def test_recorded_maps_are_replayed_step_by_step():
    maps = torch.arange(2 * 3 * 4).reshape(2, 3, 4).double()
    like = torch.empty(2, 4)
    for i, shown in (([0, 2], [0, 2]), ([1, 1], [1, 1]), ([7, 0], [2, 0])):
        noise = Noise(keys([1, 2]), torch.tensor(i), 1, maps)
        assert torch.equal(noise.normal(like), torch.stack([maps[0, shown[0]], maps[1, shown[1]]]).float())
        fresh = Noise(keys([1, 2]), torch.tensor(i), 1)
        assert torch.equal(noise.normal(like, 1), fresh.normal(like, 1))
        assert torch.equal(noise.take(torch.tensor([1])).normal(like[:1])[0], maps[1, shown[1]].float())


# ---------------------------------------------------------------- classes


def test_categorical_frequencies_rare_classes_included():
    n = 2_000_000
    p = torch.tensor([0.5, 1e-5, 0.3, 0.0, 0.2 - 2e-5, 1e-5], dtype=torch.float64)
    drawn = Noise(keys([9]), ZERO).categorical(p.log().expand(1, n, 6))
    assert drawn.dtype == torch.int64
    count = drawn.flatten().bincount(minlength=6).double()
    assert count[3] == 0
    assert bool(((count - n * p).abs() <= 4.5 * (n * p * (1 - p)).sqrt()).all()), count.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_categorical_does_not_mind_offsets_and_extremes(dtype: torch.dtype):
    noise = Noise(keys(range(200)), still(200))
    sure = torch.full((200, 5), -1000.0, dtype=dtype)
    sure[:, 2] = 1000.0
    assert bool((noise.categorical(sure) == 2).all())
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(noise.categorical(logits), noise.categorical(logits.double()))
    never = logits.clone()
    never[:, [0, 4]] = -torch.inf
    drawn = noise.categorical(never)
    assert bool(((drawn > 0) & (drawn < 4)).all())


def test_categorical_has_no_ceiling_on_rare_classes():
    """A class of probability 3e-8, out of reach of float32 Gumbel draws, comes as often as it should."""
    n, rows = 1_000_000, 30
    logits = torch.tensor([0.0, math.log(3e-6)], dtype=torch.float64).expand(1, n, 2)
    hits = sum(int(Noise(keys([s]), ZERO).categorical(logits).sum()) for s in range(rows))
    expected = n * rows * 3e-6
    assert abs(hits - expected) < 4.5 * math.sqrt(expected)
