"""Keyed noise: a draw depends on a unit's key, a salt, the unit's own step and its place in the unit, on nothing else.

    z = mix(place + mix(key + i * G + salt)),   one 64-bit mix for every pair of numbers

So a sample never depends on its neighbours in the batch, on the device or on any global generator, and a run that is
stopped, split, batched with others or resumed draws the same numbers. Draws are made on the CPU and then moved.

Source   splitmix64 finaliser: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", section 4;
         counter-based streams: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """A 64-bit pattern as the int64 that torch stores."""
    return word - (1 << 64) if word >= 1 << 63 else word


_M1, _M2, _GOLD = (_signed(w) for w in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15))
_LOW24 = (1 << 24) - 1
_TWO24 = 2.0**-24


def _scramble(z: Tensor) -> Tensor:
    """The splitmix64 finaliser without its last shift, in place on a tensor of our own."""
    z.bitwise_xor_((z >> 30).bitwise_and_((1 << 34) - 1)).mul_(_M1)
    return z.bitwise_xor_((z >> 27).bitwise_and_((1 << 37) - 1)).mul_(_M2)


def mix(z: Tensor) -> Tensor:
    """Scramble 64-bit integers so that every output bit depends on every input bit (a bijection)."""
    z = _scramble(z.clone())
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def fold(key: Tensor, salt: int | Tensor) -> Tensor:
    """A child key: different for every (key, salt). `key` int64 of any shape, `salt` an integer or broadcastable."""
    return mix(key * 3 + mix(torch.as_tensor(salt, dtype=torch.int64) * _GOLD + 1))


def keys(seeds: Sequence[int], units: Sequence[int] = ()) -> Tensor:
    """Noise keys of elements with these seeds, (B,) or (B, *units) when the units of an element own their times."""
    key = mix(torch.tensor([_signed(seed & ((1 << 64) - 1)) for seed in seeds], dtype=torch.int64) * _GOLD + 1)
    if not units:
        return key
    place = torch.arange(math.prod(units)).reshape(1, *units)
    return fold(key.reshape(-1, *(1 for _ in units)), place)


@functools.lru_cache(1024)
def _salt(salt: int) -> int:
    return int(mix(torch.tensor([_signed((salt * 2654435761 + 1) & ((1 << 64) - 1))]))[0])


@functools.lru_cache(64)
def _places(n: int) -> Tensor:
    return torch.arange(n) * _M2 + 1


def _words(key: Tensor, i: Tensor, n: int, salt: int) -> Tensor:
    """`n` 64-bit words for each unit, (*units, n)."""
    return _scramble(_places(n) + mix(key + i * _GOLD + _salt(salt))[..., None])


def _inside(units: Sequence[int], shape: Sequence[int]) -> tuple[list[int], list[int] | None]:
    """The dimensions that a unit spans, and how to bring (*units, *those) into the order of `shape`.

    Units lead the shape, and a unit dimension of size 1 spans its counterpart: pixels (B, 1, H, W) of (B, C, H, W).
    """
    k = len(units)
    if tuple(units) == tuple(shape[:k]):
        return list(shape[k:]), None
    spanned = [d for d in range(k) if units[d] != shape[d]]
    if any(units[d] != 1 for d in spanned):
        raise ValueError(f"units of shape {tuple(units)} do not lead a tensor of shape {tuple(shape)}")
    held = [d for d in range(k) if d not in spanned]
    order = held + spanned + list(range(k, len(shape)))
    return [shape[d] for d in order[len(held) :]], [order.index(d) for d in range(len(shape))]


def _laid_out(draws: Tensor, key: Tensor, shape: Sequence[int], inside: list[int], order: list[int] | None) -> Tensor:
    if order is None:
        return draws.reshape(tuple(shape))
    held = [n for d, n in enumerate(key.shape) if n == shape[d]]
    return draws.reshape(*held, *inside).permute(order)


def normal(key: Tensor, i: Tensor, like: Tensor, salt: int = 0) -> Tensor:
    """Standard normal draws shaped like `like` (leading dimensions: those of `key`), on its device, in its dtype.

        n = sqrt(-2 log u) (cos 2 pi w, sin 2 pi w),   u, w of 24 bits from one word; u is kept off zero

    Box-Muller in float32: the tails end at 5.9 standard deviations.
    """
    inside, order = _inside(key.shape, like.shape)
    n = math.prod(inside)
    half = (n + 1) // 2
    z = _words(key, i, half, salt)
    radius = (z >> 40).bitwise_and_(_LOW24).to(torch.float32).mul_(_TWO24)
    radius = radius.clamp_min_(2.0**-25).log_().mul_(-2).sqrt_()
    angle = z.bitwise_and_(_LOW24).to(torch.float32).mul_(2 * math.pi * _TWO24)
    out = torch.empty(*key.shape, 2 * half)
    torch.mul(radius, angle.cos(), out=out[..., :half])
    torch.mul(radius, angle.sin_(), out=out[..., half:])
    return _laid_out(out[..., :n], key, like.shape, inside, order).to(device=like.device, dtype=like.dtype)


def uniform(key: Tensor, i: Tensor, shape: Sequence[int], salt: int = 0) -> Tensor:
    """Uniform draws in the open interval (0, 1), float64 with 52 bits, `shape` leading with that of `key`, on the CPU."""
    inside, order = _inside(key.shape, shape)
    z = _words(key, i, math.prod(inside), salt)
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    u = ((z >> 12).bitwise_and_((1 << 52) - 1).double() + 0.5).mul_(2.0**-52)
    return _laid_out(u, key, shape, inside, order)


@dataclass(frozen=True)
class Noise:
    """The draws one part may make in one step: a key and a step count for each unit, and the part's own salt.

    `replay` (B, T, ...) holds recorded normal maps, one for each step of an element; where present they are given out
    in place of fresh draws (inversion, cycle editing). A map of zeros, and a step beyond T, has none: it draws afresh.
    """

    key: Tensor
    i: Tensor
    salt: int = 0
    replay: Tensor | None = None

    def fold(self, salt: int) -> Noise:
        """A stream of its own for a field, a candidate or a stage of the same part."""
        return Noise(self.key, self.i, self.salt * 1021 + salt + 1)

    def take(self, index: Tensor) -> Noise:
        """The streams of some elements (or of several rows of one element: fold them apart before drawing)."""
        return Noise(self.key[index], self.i[index], self.salt, None if self.replay is None else self.replay[index])

    def normal(self, like: Tensor, salt: int = 0) -> Tensor:
        """Standard normal draws shaped like `like`; the same call with the same salt gives the same draw."""
        if self.replay is not None and salt == 0:
            step, last = self.i.reshape(len(self.i), -1)[:, 0], self.replay.shape[1] - 1
            maps = self.replay[torch.arange(len(step)), step.clamp(max=last)].to(like)
            known = (maps != 0).flatten(1).any(1) & (step <= last).to(maps.device)
            if bool(known.all()):
                return maps
            fresh = normal(self.key, self.i, like, self.salt * 64 + salt)
            return torch.where(known.reshape(-1, *(1,) * (maps.ndim - 1)), maps, fresh)
        return normal(self.key, self.i, like, self.salt * 64 + salt)

    def uniform(self, shape: Sequence[int], salt: int = 0) -> Tensor:
        """Uniform draws in (0, 1), float64, on the CPU."""
        return uniform(self.key, self.i, shape, self.salt * 64 + salt)

    def categorical(self, logits: Tensor, salt: int = 0) -> Tensor:
        """One index for each row of `logits` (..., V), int64 (...), by inversion of the float64 distribution.

        Inversion needs one uniform where the Gumbel trick needs V, and has no ceiling on rare classes.
        """
        cdf = logits.double().softmax(-1).cumsum(-1)
        u = self.uniform(logits.shape[:-1], salt).to(logits.device)[..., None] * cdf[..., -1:]
        return torch.searchsorted(cdf, u, right=True)[..., 0].clamp_(max=logits.shape[-1] - 1)
