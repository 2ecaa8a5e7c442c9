"""Links: how patches of several processes that compute parts of one picture hand numbers to each other.

A process that has a link computes its own part alone; without one a patch computes all parts itself, to the same numbers.
What is handed over asynchronously is waited for (`settle`) before a step ends: states hold tensors, never handles.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(eq=False)
class Link:
    """This process among those that share a run, over torch.distributed.

    rank, size  which it is, of how many
    sent        bytes that it has sent
    """

    rank: int
    size: int
    sent: int = 0
    _open: list[tuple[Any, Tensor]] = field(default_factory=list, repr=False)

    def send(self, to: int, value: Tensor) -> None:
        """Begin to hand `value` to another process; it goes on by itself."""
        import torch.distributed as distributed

        value = value.detach().contiguous()
        self.sent += value.numel() * value.element_size()
        self._open.append((distributed.isend(value, to), value))  # held until it has gone

    def receive(self, source: int, like: Tensor) -> Tensor:
        """A tensor like `like` that will hold what another process sends, once `settle` was called."""
        import torch.distributed as distributed

        value = like.new_empty(like.shape)
        self._open.append((distributed.irecv(value, source), value))
        return value

    def settle(self) -> None:
        """Wait until all that was begun is done."""
        for work, _ in self._open:
            work.wait()
        self._open.clear()


_current: ContextVar[Link | None] = ContextVar("link", default=None)


def current() -> Link | None:
    """The link of this process; None where it works alone."""
    return _current.get()


@contextmanager
def linked(link: Link) -> Iterator[Link]:
    """Patches within work with other processes over this link."""
    before = _current.set(link)
    try:
        yield link
    finally:
        _current.reset(before)
