"""Patches: named sites of a network wrapped for one call, with their memory in the state.

A network call concatenates the rows of several queries. `Rows` tells a patch whose they are: for each run of rows its
tag, role, owners, own step and time. What a patch stores is per element, under its own name: K/V by tag, features by
(tag, role). Nothing is left on the module afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebbtide.core.parts import Part
from ebbtide.core.state import Query, State
from ebbtide.core.tree import Memory, Tree


class Run(NamedTuple):
    """Consecutive rows of one query: where they lie in the call, which elements own them, and what was asked."""

    rows: slice
    owners: Tensor
    tag: str
    role: str
    t: Tensor


class Rows:
    """What a patch sees of one network call, and the memory it may read and write."""

    def __init__(self, queries: Sequence[Query], owners: Sequence[Tensor], state: State, memory: Memory) -> None:
        self.state, self.memory = state, dict(memory)
        self.runs, start = [], 0
        for query, own in zip(queries, owners, strict=True):
            self.runs.append(Run(slice(start, start + len(own)), own, query.tag, query.role, query.t))
            start += len(own)

    def get(self, patch: str, name: str) -> Tree | None:
        """What the patch stored under `name`, one row for each element of the state; None before the first `put`."""
        slot = self.memory.get(patch, {})
        return slot.get(name) if isinstance(slot, dict) else None

    def put(self, patch: str, name: str, owners: Tensor, value: Tensor) -> None:
        """Store rows for some elements; elements without any hold zeros."""
        slot = self.memory.get(patch, {})
        assert isinstance(slot, dict)
        old = slot.get(name)
        whole = old if isinstance(old, Tensor) else value.new_zeros((len(self.state), *value.shape[1:]))
        self.memory[patch] = {**slot, name: whole.index_copy(0, owners.to(whole.device), value)}


class Patch(Part):
    """A change of what is computed inside a network, for one call."""

    closed = False  # see `Rewrite`

    def bind(self, network: Any) -> tuple[Any, tuple[Patch, ...]]:
        """The network that is called from now on, the same, and what is left to do in every call: this patch."""
        return network, (self,)

    def enter(self, network: nn.Module, rows: Rows, name: str) -> AbstractContextManager[Any]:
        """Wrap the sites; on leaving, the module is as it was. `name` is this patch's place in the memory."""
        raise NotImplementedError


@contextmanager
def rewired(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`module` computes `forward` instead of its own, until the context is left."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def reused(fresh: Tensor, stored: Tensor, old: Tensor) -> Tensor:
    """`old` for the rows where `stored` holds, `fresh` elsewhere."""
    return torch.where(stored.reshape(-1, *(1,) * (fresh.ndim - 1)).to(fresh.device), old, fresh)
