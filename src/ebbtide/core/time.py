"""Times of units, and the one place where float64 weights meet tensors.

Time runs from 1 (corrupted) to 0 (data). `t` is float64 on the CPU, shaped like the units: (B,) one time an element,
(B, F) one a frame, (B, L) one a token, (B, 1, H, W) one a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ebbtide.core.tree import Tree, tree_map

Weight: TypeAlias = float | Tensor

_FEW = 64


def right(t: Tensor, x: Tensor) -> Tensor:
    """Pad the shape of `t` with ones on the right until it broadcasts against `x`: (B,) or (B, F) -> (B, F, 1, 1, 1)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def shared(t: Tensor) -> float | None:
    """The time that all units share, or None when they differ (or when gradients to `t` are wanted)."""
    if t.requires_grad:
        return None
    if t.numel() <= _FEW:  # every step of every solver asks this some ten times
        values = t.tolist() if t.ndim == 1 else t.reshape(-1).tolist()
        return values[0] if values.count(values[0]) == len(values) else None
    first = t.reshape(-1)[0]
    return float(first) if bool((t == first).all()) else None


def weight(t: Tensor) -> Weight:
    """A control tensor as a weight: the float that all units share, else the tensor itself."""
    one = shared(t)
    return t if one is None else one


def spread(w: Weight, t: Tensor) -> Tensor:
    """A weight as a control tensor shaped like `t`."""
    return w if isinstance(w, Tensor) else torch.full_like(t, w)


def nil(w: Weight) -> bool:
    """Whether a weight is 0 everywhere, so that its term need not be made at all."""
    return not bool(w.any()) if isinstance(w, Tensor) else w == 0.0


def full(w: Weight) -> bool:
    """Whether a weight is 0 nowhere, so that every unit wants its term."""
    return bool((w != 0).all()) if isinstance(w, Tensor) else w != 0.0


def pick(condition: bool | Tensor, a: Weight, b: Weight) -> Weight:
    """`a` where the condition holds, `b` elsewhere, for floats and for tensors of units."""
    if isinstance(condition, Tensor):
        return torch.where(condition, a, b)
    return a if condition else b


def ratio(a: Weight, b: Weight) -> Weight:
    """a / b, and 0 where b is 0."""
    if isinstance(b, Tensor):
        return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))
    return a * 0.0 if b == 0.0 else a / b


def exp(w: Weight) -> Weight:
    """The exponential of a weight."""
    # a float by torch too: the last bit of math.exp is another one
    return w.exp() if isinstance(w, Tensor) else torch.tensor(w, dtype=torch.float64).exp().item()


def combine(*terms: tuple[Weight, Tree]) -> Any:
    """sum_k w_k x_k, one pass a term; weights are floats, or tensors shaped like the units' times.

    The arithmetic of schedules is float64; here it is cast once to the dtype of `x`. Terms of float weight 0 cost
    nothing. Trees are combined leaf by leaf. The result is a fresh tensor, free for in-place use.
    """
    first = terms[0][1]
    if isinstance(first, dict):
        return {k: combine(*((w, x[k]) for w, x in terms)) for k in first}
    out: Tensor | None = None
    for w, x in terms:
        if isinstance(w, float):
            if w == 0.0:
                continue
            out = x * w if out is None else out.add_(x, alpha=w)
        else:
            w = right(w, x).to(device=x.device, dtype=x.dtype)
            out = x * w if out is None else out.addcmul_(w, x)
    return torch.zeros_like(first) if out is None else out


def unit_mean(x: Tensor, t: Tensor) -> Tensor:
    """The mean of `x` over what each unit spans, float64, shaped like `t`."""
    spanned = [d for d in range(x.ndim) if d >= t.ndim or t.shape[d] != x.shape[d]]
    return (x.double().mean(spanned, keepdim=True) if spanned else x.double()).reshape(t.shape)


def invert(f: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The time in [0, 1] at which a decreasing `f` takes each `value`, by bisection to the last bit.

    Out of range gives the end of time that is nearest.
    """
    low, high = torch.zeros_like(value), torch.ones_like(value)
    for _ in range(64):
        mid = (low + high) / 2
        later = f(mid) > value
        low, high = torch.where(later, mid, low), torch.where(later, high, mid)
    return (low + high) / 2


def where(units: Tensor, new: Tree, old: Tree) -> Any:
    """`new` where a unit is chosen, `old` elsewhere; `units` is boolean on the CPU, padded on the right."""
    return tree_map(lambda a, b: torch.where(right(units, a).to(a.device), a, b), new, old)
