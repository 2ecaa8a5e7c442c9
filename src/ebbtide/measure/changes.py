"""What changes inside a network from step to step, and where its time goes: what there is for a cache to spare.

    change_k(site) = |b_k - b_{k-1}| / |b_k|        b_k what the site gave for an element at step k, averaged over elements

A site is a block of the network, or an attention or feed-forward within one. Near 0 the answer of the last step would have
done; near 1 it tells nothing of this one; above 1 it misleads.

Shapes   one change for each step but the first; of a step that asks several times (stages), the first counts
Source   Ma et al. 2024, "DeepCache" (arXiv 2312.00858), section 3.2, whose figure of adjacent steps this is
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import Tensor

from ebbtide.network.anatomy import anatomy
from ebbtide.network.patch import rewired
from ebbtide.network.record import Record


class Seen(NamedTuple):
    """What was measured of one site.

    path     its name in the network
    kind     what it is: "down", "mid", "up", "block", or what of a block ("self", "feed-forward" ...)
    changes  one for each step but the first
    seconds  spent in it, all calls together; a block's hold those of what is within it
    """

    path: str
    kind: str
    changes: tuple[float, ...]
    seconds: float

    @property
    def mean(self) -> float:
        """The mean change from one step to the next."""
        return sum(self.changes) / len(self.changes)


class Profile(NamedTuple):
    """The sites of a network in the order of its blocks, and the seconds of all its calls."""

    sites: list[Seen]
    seconds: float


def changes(record: Record, watch: Callable[[int, int], None] | None = None) -> Profile:
    """Ask a record again and see how each site's answer moves.

    watch   called with the calls made and those to be made

    Raises EbbError for a network in which no blocks are found.
    """
    network = record.network
    kinds = {site.path: (site.module, site.kind) for block in anatomy(network).blocks for site in (block, *block.sites)}
    last: dict[str, Tensor] = {}
    moved: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, float] = defaultdict(float)
    seen, began = -1, time.perf_counter()
    with ExitStack() as stack:
        for path, (module, _) in kinds.items():
            stack.enter_context(rewired(module, _timed(module.forward, path, spent)))
        for count, (asked, given) in enumerate(record.answers(network, {p: m for p, (m, _) in kinds.items()}), 1):
            if asked.step > seen:
                for path, now in given.items():
                    if path in last and last[path].shape == now.shape:
                        moved[path].append(_change(last[path], now))
                last, seen = given, asked.step
            if watch is not None:
                watch(count, len(record.asked))
    seconds = time.perf_counter() - began
    sites = [Seen(p, kind, tuple(moved[p]), spent[p]) for p, (_, kind) in kinds.items() if moved[p]]
    return Profile(sites, seconds)


def _timed(own: Callable[..., Any], path: str, spent: dict[str, float]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        out = own(*args, **kwargs)
        spent[path] += time.perf_counter() - began
        return out

    return forward


def _change(before: Tensor, now: Tensor) -> float:
    moved = (now - before).flatten(1).double().norm(dim=1)
    return float((moved / now.flatten(1).double().norm(dim=1).clamp_min(1e-30)).mean())
