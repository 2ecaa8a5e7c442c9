"""FreeCache: keys and values of tokens that are settled stay as they were, and only the others go through the network.

    whole step   all tokens;  kept of each: its key and value in every layer, and what the last layer gave
    short step   the tokens that are hidden, or show since the last step, enter the layers; they attend to fresh keys and
                 values of their own and to the kept ones of all others, whose outputs stay as they were

A token is settled once its key and value were made of the token that shows there. So one that was decided is computed once
more, as itself; one that is masked again, or replaced, is not settled, whoever did it. With `window`, hidden tokens that are
so far or farther right of the first one wait as well: for solvers that decide blocks. Every `refresh` steps all is computed.

Shapes   x (R, L); keys and values (R, H, L, D), outputs (R, L, N); by element, tag and role
Paper    Hu et al. 2025 (arXiv 2505.21467), section 3.1, its free cache
Off      refresh = 1 computes every step as it is.
Differs  a token that was just decided is computed once more before it is settled: the paper freezes blocks as they are.
         The tokens of a step are as many as the element with the most has; places added to the others are not kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.tree import Memory
from ebbtide.network.anatomy import Block, Port, anatomy
from ebbtide.network.attending import Attending
from ebbtide.network.patch import Patch, Rows, rewired

WHOLE, SHORT = 0, 1


class Stack(NamedTuple):
    """The layers of a language model, and where each is told how to turn queries and keys (None: it is not)."""

    name: str
    blocks: tuple[Block, ...]
    turned: tuple[Port | None, ...]


class Chosen(NamedTuple):
    """The tokens that enter: their places (R, K), and where they are kept, (R, K), one past the end for those added."""

    place: Tensor
    kept: Tensor


@part("network", "freecache", paper="2505.21467", needs={"module", "masked"}, off={"refresh": 1})
class FreeCache(Patch):
    """FreeCache: keys and values of tokens that are settled stay as they were, and only the others are computed.

    refresh  None: never
    """

    window: Annotated[int, Field(ge=1)] | None = None
    refresh: Annotated[int, Field(ge=1)] | None = None

    def look(self, network: nn.Module) -> Stack:
        net = anatomy(network).need("attention")
        for block in net.blocks:
            kinds = [site.kind for site in block.attention]
            if block.kind != "block" or kinds != ["self"]:
                has = f"a block of kind {block.kind} with {', '.join(kinds) or 'no'} attention"
                raise EbbError(
                    f"'freecache' keeps keys and values of plain layers of self-attention; {net.name} has {has}."
                )
        return Stack(net.name, net.blocks, tuple(block.turning for block in net.blocks))

    def claims(self, seen: Stack) -> Iterable[nn.Module]:
        return (m for b in seen.blocks for m in (b.module, *(s.module for s in b.attention)))

    def init(self, state: State, ask: Ask) -> Memory:
        process: Any = ask.process
        return {"mask": torch.full((len(state),), process.mask + 1)}

    def mode(self, seen: Stack, rows: Rows) -> Tensor:
        made, mask = rows.load("tokens"), rows.own("mask")
        if made is None or mask is None:
            return torch.full((len(rows),), WHOLE)
        due = (made == 0).all(1).cpu() | (mask == 0).cpu()
        if self.refresh is not None:
            due = due | (rows.i % self.refresh == 0)
        return torch.where(due, WHOLE, SHORT)

    @contextmanager
    def enter(self, seen: Stack, rows: Rows) -> Iterator[None]:
        if rows.x.ndim != 2:
            raise EbbError(
                f"'freecache' knows tokens in one row, not {rows.x.ndim - 1} dimensions of them; leave it out."
            )
        chosen = None if rows.mode == WHOLE else self.choose(rows)
        rows.save("tokens", rows.x + 1)
        if chosen is not None:
            rows.note()
        call = Pass(seen, rows, chosen)
        with ExitStack() as stack:
            for j, block in enumerate(seen.blocks):
                stack.enter_context(rewired(block.module, call.layer(j)))
            yield

    def choose(self, rows: Rows) -> Chosen:
        """The tokens that enter at a short step, in order."""
        x, made, mask = rows.x, rows.load("tokens"), rows.own("mask")
        assert made is not None
        assert mask is not None
        hidden = x == (mask - 1).to(x)[:, None]
        enters = hidden | (made != x + 1)
        width = x.shape[1]
        if self.window is not None:
            place = torch.arange(width, device=x.device).expand_as(x)
            first = place.masked_fill(~hidden, width).amin(1, keepdim=True)
            enters &= ~hidden | (place < first + self.window)
        count = enters.sum(1)
        most = max(1, int(count.max()))
        place = enters.long().argsort(dim=1, descending=True, stable=True)[:, :most]
        real = torch.arange(most, device=x.device) < count[:, None]
        return Chosen(torch.where(real, place, 0), torch.where(real, place, width))


class Pass:
    """One call of the layers, of all tokens where none are chosen, else of those; `width` is how many there are in all."""

    def __init__(self, seen: Stack, rows: Rows, chosen: Chosen | None) -> None:
        self.seen, self.rows, self.chosen = seen, rows, chosen
        self.length, self.width = rows.x.shape[1], 0

    def layer(self, j: int) -> Callable[..., Any]:
        """What the j-th layer computes in place of its own forward."""
        block, turned, own = self.seen.blocks[j], self.seen.turned[j], self.seen.blocks[j].module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if j == 0:
                args, kwargs = self.entered(args, kwargs)
            if turned is not None and self.chosen is not None:
                chosen, given = self.chosen, turned.taken(args, kwargs)
                args, kwargs = turned.handed(args, kwargs, tuple(_picked(p, chosen) for p in given))
            with Attending(functools.partial(self.attend, j)) as heard:
                out = own(*args, **kwargs)
            if heard.count != 1:
                raise EbbError(
                    f"'freecache' reads attention where torch computes it, and {block.path} of {self.seen.name} asks for it "
                    f"{heard.count} times: load the model with attn_implementation='sdpa', or leave it out."
                )
            if j + 1 < len(self.seen.blocks):
                return out
            full = self.joined("out", block.hidden.given(out), 1)
            return block.hidden.answered(out, full[:, : self.width])

        return forward

    def entered(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the first layer, of whose tokens only the chosen ones go on."""
        hidden = self.seen.blocks[0].hidden
        x = hidden.taken(args, kwargs)
        if len(x) != len(self.rows):
            raise EbbError(f"'freecache' needs {self.seen.name} asked for all rows at once: give it attention='mask'.")
        self.width = x.shape[1]
        return (args, kwargs) if self.chosen is None else hidden.handed(args, kwargs, _picked(x, self.chosen))

    def attend(self, j: int, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and mask of the j-th layer: fresh ones beside those that are kept."""
        k, v = (self.joined(f"{j}/{name}", fresh, 2)[:, :, : self.width] for name, fresh in (("k", k), ("v", v)))
        if self.chosen is not None and mask is not None and mask.shape[-2] > 1:
            of = self.chosen.place.to(mask.device)[:, None, :, None]
            mask = mask.expand(len(of), *mask.shape[1:]).gather(2, of.expand(-1, mask.shape[1], -1, mask.shape[3]))
        return k, v, mask

    def joined(self, name: str, fresh: Tensor, dim: int) -> Tensor:
        """What was kept with the fresh in its place, to the whole length; kept in turn."""
        full = _padded(fresh, self.length, dim)
        if self.chosen is not None:
            kept, place = self.rows.load(name), self.chosen.kept.to(fresh.device)
            assert kept is not None
            index = place[..., None] if dim == 1 else place[:, None, :, None]
            full = _padded(kept, self.length + 1, dim).scatter(dim, index.expand_as(fresh), fresh)
            full = full.narrow(dim, 0, self.length)
        self.rows.save(name, full)
        return full


def _padded(x: Tensor, length: int, dim: int) -> Tensor:
    """Zeros after the end, up to a length."""
    return pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, length - x.shape[dim]))


def _picked(x: Tensor, chosen: Chosen) -> Tensor:
    """The chosen tokens of (R, L, N), or of (1, L, N) for all rows."""
    place = chosen.place.to(x.device)
    return x.expand(len(place), *x.shape[1:]).gather(1, place[..., None].expand(-1, -1, x.shape[-1]))
