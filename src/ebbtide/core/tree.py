"""Trees: what travels is a tensor, or a dict of trees by name. How they are mapped, merged, written and named.

A missing leaf is one of zeros wherever two trees of memory meet, so zeros mean "nothing stored".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError

Tree: TypeAlias = Any
"""A tensor, or a dict of trees by name."""
Memory: TypeAlias = dict[str, Any]
"""What a part keeps in the state: batch-first leaves by name."""


def tree_map(f: Callable[..., Tensor], tree: Any, *rest: Any) -> Any:
    """Apply `f` leaf by leaf to trees of one structure."""
    if isinstance(tree, dict):
        return {k: tree_map(f, v, *(r[k] for r in rest)) for k, v in tree.items()}
    return f(tree, *rest)


def merge(f: Callable[[Tensor, Tensor], Tensor], new: Any, old: Any) -> Any:
    """`f(new, old)` leaf by leaf over the union of two memories: a leaf that is missing on one side is one of zeros.

    Zeros therefore mean "nothing stored" in every memory of the package.
    """
    if isinstance(new, dict) or isinstance(old, dict):
        new, old = new or {}, old or {}
        return {k: merge(f, new.get(k), old.get(k)) for k in {**old, **new}}
    if new is None:
        new = torch.zeros_like(old)
    elif old is None:
        old = torch.zeros_like(new)
    return f(new, old)


def leaves(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """The leaves of a tree under dotted names."""
    if isinstance(tree, dict):
        out: dict[str, Tensor] = {}
        for k, v in tree.items():
            if "." in k:
                raise EbbError(f"the name {k!r} holds a dot, which separates the levels of a saved state.")
            out |= leaves(v, f"{prefix}.{k}" if prefix else k)
        return out
    return {prefix: tree}


def write_rows(index: Tensor, n: int) -> Callable[[Tensor | None, Tensor | None], Tensor]:
    """Write rows over rows; where the whole has no such leaf yet, it starts as zeros."""

    def write(part: Tensor | None, whole: Tensor | None) -> Tensor:
        assert part is not None or whole is not None
        if whole is None:
            assert part is not None
            whole = part.new_zeros((n, *part.shape[1:]))
        if part is None:
            part = whole.new_zeros((len(index), *whole.shape[1:]))
        return whole.index_copy(0, index.to(whole.device), part)

    return write


def merge_rows(f: Callable[[Tensor | None, Tensor | None], Tensor], a: Any, b: Any) -> Any:
    """Like `merge`, for two trees with different numbers of rows: `f` sees None for a missing leaf."""
    if isinstance(a, dict) or isinstance(b, dict):
        a, b = a or {}, b or {}
        return {k: merge_rows(f, a.get(k), b.get(k)) for k in {**b, **a}}
    return f(a, b)
