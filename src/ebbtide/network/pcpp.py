"""PCPP: a picture in strips, one a process; in attention a strip sees what its neighbours were at the step before.

    whole step   every strip attends to all, as they are now
    other steps  strip p attends to its own tokens, and of strips p - reach .. p + reach to the rows nearest to it, a share of
                 theirs, with the keys and values of the step before, which were on their way while that step was computed

With reach = strips - 1 and share = 1 it is displaced patch parallelism; share = 0 gives strips that do not see each other.
Everything but attention works on one token at a time, so a strip needs nothing else. In one process all strips are computed
in turn, to the numbers that several processes give; `parallel.strips` starts those.

Shapes   tokens (R, N, D), row by row; keys and values (R, N, D') by element, tag and role, those of the last step
Paper    Wang et al. 2024, "PCPP: Partially conditioned patch parallelism" (arXiv 2412.02962), section 3; the base: Li et al.
         2024, "DistriFusion" (2402.19481), section 4
Off      strips = 1 computes the network as it is, bit for bit.
Differs  transformers over patches alone, so there are no halos of convolutions and no statistics to mend. What the network
         says is exchanged whole at every step, so all processes hold the same state. Networks that turn keys by their place
         (rotary embeddings) are refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.registry import part
from ebbtide.network.links import Link, current
from ebbtide.network.patch import Patch, Rows, rewired
from ebbtide.network.tokens import Tokens, tokens

WHOLE, APART = 0, 1


@part("network", "pcpp", paper="2412.02962", needs={"module"}, off={"strips": 1})
class PCPP(Patch):
    """PCPP: a picture in strips, one a process; in attention a strip sees what its neighbours were at the step before.

    strips  how many
    share   of the rows of a neighbour that are seen, those nearest
    reach   how many strips away neighbours are seen
    whole   the steps at the start in which all is seen as it is
    """

    strips: Annotated[int, Field(ge=1)] = 2
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    reach: Annotated[int, Field(ge=1)] = 1
    whole: Annotated[int, Field(ge=1)] = 1

    def look(self, network: nn.Module) -> Tokens:
        return tokens(network, "pcpp")

    def claims(self, seen: Tokens) -> Iterable[nn.Module]:
        return seen.all

    def mode(self, seen: Tokens, rows: Rows) -> Tensor:
        stored = rows.load("stored")
        ready = torch.zeros(len(rows)) if stored is None else stored
        return torch.where((rows.i < self.whole) | (ready == 0), WHOLE, APART)

    def spans(self, count: int) -> list[tuple[int, int]]:
        """Where the tokens of each strip begin and end: whole rows of a square picture, none where rows are too few."""
        side = math.isqrt(count)
        rows, wide = (side, side) if side * side == count else (count, 1)
        ends = [round(rows * p / self.strips) * wide for p in range(self.strips + 1)]
        return list(itertools.pairwise(ends))

    def seen_of(self, p: int, q: int, count: int) -> tuple[int, int]:
        """The tokens of strip q that strip p sees; where it ends, it begins, if none."""
        (a, b), side = self.spans(count)[q], math.isqrt(count)
        if abs(p - q) > self.reach:
            return a, a
        wide = side if side * side == count else 1
        rows = math.ceil((b - a) // wide * self.share)
        return (b - rows * wide, b) if q < p else (a, a + rows * wide)

    def sent(self, count: int, whole: bool = False) -> int:
        """Tokens whose keys and values go from strip to strip in one layer of one step."""
        pairs = [(p, q) for p in range(self.strips) for q in range(self.strips) if p != q]
        spans = self.spans(count) if whole else []
        return sum(b - a for a, b in (spans[q] if whole else self.seen_of(p, q, count) for p, q in pairs))

    @contextmanager
    def enter(self, seen: Tokens, rows: Rows) -> Iterator[None]:
        link = current()
        if link is not None and link.size != self.strips:
            raise EbbError(f"'pcpp' has {self.strips} strips for {link.size} processes: give strips={link.size}.")
        with ExitStack() as stack:
            work = _Work(self, rows, link)
            for name, layer in seen.pairs.items():
                stack.enter_context(rewired(layer, work.pair(name, layer.forward)))
            for site in seen.inner:
                if site.kind == "self":
                    stack.enter_context(rewired(site.module, work.attention(site.module.forward)))
            if link is not None:
                stack.enter_context(rewired(seen.enter, work.entering(seen.enter.forward)))
                stack.enter_context(rewired(seen.leave, work.leaving(seen.leave.forward)))
            rows.save("stored", torch.ones(len(rows)))
            if rows.mode == APART:
                rows.note()
            yield
            work.end()


class _Work:
    """One call: which strips this process computes, and what it has heard of the others."""

    def __init__(self, patch: PCPP, rows: Rows, link: Link | None) -> None:
        self.patch, self.rows, self.link = patch, rows, link
        self.mine = range(patch.strips) if link is None else [link.rank]
        self.whole = rows.mode == WHOLE
        self.count = 0  # of all tokens
        self.strip = 0  # the one that attends now
        self.fresh: dict[str, Tensor] = {}
        self.heard: dict[str, list[tuple[int, int, Tensor]]] = {}

    def entering(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """The tokens of all strips, of which this process goes on with its own."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            out: Tensor = own(*args, **kwargs)
            self.count = out.shape[1]
            spans = self.patch.spans(self.count)
            if any(a == b for a, b in spans):
                raise EbbError(f"'pcpp' has no row of tokens for some of {len(spans)} processes: give fewer.")
            a, b = spans[self.mine[0]]
            return out[:, a:b]

        return forward

    def leaving(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """What the network says of all tokens, each process of its own."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.gathered(own(*args, **kwargs))

        return forward

    def gathered(self, out: Tensor) -> Tensor:
        """The tokens of all processes, now."""
        link = self.link
        assert link is not None
        parts = []
        for q, (a, b) in enumerate(self.patch.spans(self.count)):
            if q == link.rank:
                parts.append(out)
                continue
            link.send(q, out)
            parts.append(link.receive(q, out.new_empty((out.shape[0], b - a, *out.shape[2:]))))
        link.settle()
        return torch.cat(parts, 1)

    def attention(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """Attention of each strip on its own."""

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.link is None:
                self.count = hidden.shape[1]
            if self.link is not None or self.whole:
                return own(hidden, *args, **kwargs)
            out = []
            for p in self.mine:
                self.strip = p
                a, b = self.patch.spans(self.count)[p]
                if b > a:
                    out.append(own(hidden[:, a:b], *args, **kwargs))
            return torch.cat(out, 1)

        return forward

    def pair(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        """Keys, or values, of the tokens that a strip sees."""

        def forward(x: Tensor) -> Tensor:
            out: Tensor = own(x)
            if self.link is not None:
                return self.linked(name, out)
            if self.whole:
                self.fresh[name] = out
                return out
            a, b = self.patch.spans(self.count)[self.strip]
            full = self.fresh.setdefault(name, out.new_empty((out.shape[0], self.count, out.shape[2])))
            full[:, a:b] = out
            return self.beside(name, out, self.strip)

        return forward

    def beside(self, name: str, out: Tensor, p: int) -> Tensor:
        """A strip's own, with what it sees of others as they were at the step before."""
        before = self.rows.load(name)
        assert before is not None
        spans = [(q, *self.patch.seen_of(p, q, self.count)) for q in range(self.patch.strips)]
        return torch.cat([out if q == p else before[:, a:b] for q, a, b in spans], 1)

    def linked(self, name: str, out: Tensor) -> Tensor:
        """The same where the other strips are with other processes: to them at once, from them for the next step."""
        link = self.link
        assert link is not None
        if self.whole:
            self.fresh[name] = full = self.gathered(out)
            return full
        p = link.rank
        seen = self.beside(name, out, p)
        start, end = self.patch.spans(self.count)[p]
        full = out.new_zeros((out.shape[0], self.count, out.shape[2]))
        full[:, start:end] = out
        self.fresh[name] = full
        for q in range(link.size):
            if q == p:
                continue
            a, b = self.patch.seen_of(q, p, self.count)
            if b > a:
                link.send(q, out[:, a - start : b - start])
            a, b = self.patch.seen_of(p, q, self.count)
            if b > a:
                value = link.receive(q, out.new_empty((out.shape[0], b - a, out.shape[2])))
                self.heard.setdefault(name, []).append((a, b, value))
        return seen

    def end(self) -> None:
        """Wait for what is on its way, and remember it for the next step."""
        if self.link is not None:
            self.link.settle()
        for name, full in self.fresh.items():
            for a, b, value in self.heard.get(name, ()):
                full[:, a:b] = value
            self.rows.save(name, full)
