"""RAS: at most steps a transformer runs on the tokens that matter now; the others keep what they gave last.

    whole step   all tokens; kept of each: what it gave, and in every self-attention its key and value
    short step   `ratio` of the tokens enter the blocks and attend to all: to fresh keys and values of those that entered, to
                 the kept ones of the others, whose outputs stay as they were

Who sits out: of the share 1 - ratio, `high` from the tokens of largest  m exp(-starvation n), the rest from those of smallest
m exp(starvation n), where m is the deviation of the numbers that a token gave last and n the steps that it sat out. So
sitting out long speaks against sitting out again, on either side.

Shapes   tokens (R, N, D), kept (R, K, D); outputs (R, N, P); keys and values (R, N, D'); by element, tag and role
Paper    Liu et al. 2025 (arXiv 2502.10389), sections 3.2 to 3.5
Off      ratio = 1 computes every token at every step.
Differs  m is the deviation over all numbers of a patch, as pictures of one channel have none across channels. The length of
         the step is left out: it is the same for all tokens of an element. Networks that turn keys by their place (rotary
         embeddings) are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.registry import part
from ebbtide.network.anatomy import Site, anatomy
from ebbtide.network.patch import Patch, Rows, rewired

WHOLE, SHORT = 0, 1
Share = Annotated[float, Field(ge=0, le=1)]


class Tokens(NamedTuple):
    """Where tokens enter, where they attend and where they leave.

    enter  gives the tokens that the blocks take
    pairs  the layers that make keys and values in self-attention, by name
    leave  gives what the network says of each token
    inner  what runs on the tokens that entered
    """

    enter: nn.Module
    pairs: dict[str, nn.Module]
    leave: nn.Module
    inner: tuple[Site, ...]


@part("network", "ras", paper="2502.10389", needs={"module"}, refuses={"gradients"}, off={"ratio": 1.0})
class RAS(Patch):
    """RAS: at most steps a transformer runs on the tokens that matter now, the others keep what they gave last.

    whole    the steps at the start that compute all tokens
    resets   later steps that do, counted from 0
    """

    examples = ({"whole": 1, "resets": (3,)},)
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    whole: Annotated[int, Field(ge=1)] = 2
    resets: tuple[int, ...] = (12, 20)
    high: Share = 0.3
    starvation: Annotated[float, Field(ge=0)] = 1.0

    def look(self, network: nn.Module) -> Tokens:
        net = anatomy(network).need("attention", "first", "last")
        pairs: dict[str, nn.Module] = {}
        for block in net.blocks:
            if block.kind != "block" or block.turned:
                why = f"blocks of kind {block.kind}" if not block.turned else f"blocks that take {block.turned!r}"
                raise EbbError(f"'ras' runs some tokens of a plain stack of blocks; {net.name} has {why}.")
            for site in (s for s in block.attention if s.kind == "self"):
                if len(site.pairs) < 2:
                    raise EbbError(
                        f"'ras' finds no layers of keys and values in {site.path} of {net.name}; leave it out."
                    )
                pairs |= site.pairs
        inner = tuple(s for block in net.blocks for s in (block, *block.sites))
        return Tokens(net.first[-1].module, pairs, net.last[-1].module, inner)

    def claims(self, seen: Tokens) -> Iterable[nn.Module]:
        return (seen.enter, seen.leave, *seen.pairs.values(), *(s.module for s in seen.inner))

    def mode(self, seen: Tokens, rows: Rows) -> Tensor:
        stored = rows.load("stored")
        if stored is None:
            return torch.full((len(rows),), WHOLE)
        due = (rows.i < self.whole) | torch.isin(rows.i, torch.tensor(self.resets, dtype=torch.int64))
        return torch.where(due | (stored == 0), WHOLE, SHORT)

    @contextmanager
    def enter(self, seen: Tokens, rows: Rows) -> Iterator[None]:
        with ExitStack() as stack:
            rows.save("stored", torch.ones(len(rows)))
            if rows.mode == WHOLE:
                for name, layer in seen.pairs.items():
                    stack.enter_context(rewired(layer, storing(rows, name, layer.forward)))
                stack.enter_context(rewired(seen.leave, storing(rows, "out", seen.leave.forward, fresh=True)))
            else:
                chosen = self.choose(rows)
                rows.note()
                stack.enter_context(rewired(seen.enter, some(seen.enter.forward, chosen)))
                for name, layer in (*seen.pairs.items(), ("out", seen.leave)):
                    stack.enter_context(rewired(layer, filling(rows, name, layer.forward, chosen)))
            yield

    def choose(self, rows: Rows) -> Tensor:
        """The tokens that enter at a short step, (R, K) in order; what sat out is counted."""
        out, idle = rows.load("out"), rows.load("idle")
        assert out is not None
        assert idle is not None
        away = idle * self.starvation
        level = out.double().std(-1).clamp_min(1e-12).log()
        n = level.shape[1]
        count = n - max(1, round(self.ratio * n))
        top = round(self.high * count)
        stays = torch.ones_like(level, dtype=torch.bool)
        stays.scatter_(1, (level - away).topk(top, 1).indices, False)
        low = (level + away).masked_fill(~stays, torch.inf)
        stays.scatter_(1, low.topk(count - top, 1, largest=False).indices, False)
        rows.save("idle", torch.where(stays, 0.0, idle + 1))
        return stays.nonzero()[:, 1].reshape(len(level), n - count)


def storing(rows: Rows, name: str, own: Callable[..., Any], fresh: bool = False) -> Callable[..., Any]:
    """A layer whose answers for all tokens are kept; `fresh` says that nobody has sat out since."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        if out.ndim != 3:
            raise EbbError(f"'ras' knows tokens in one row, and this network has {out.ndim - 2} of them; leave it out.")
        rows.save(name, out)
        if fresh:
            rows.save("idle", torch.zeros(out.shape[:2], dtype=torch.float64, device=out.device))
        return out

    return forward


def some(own: Callable[..., Any], chosen: Tensor) -> Callable[..., Any]:
    """A layer of whose tokens only the chosen ones go on."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        out: Tensor = own(*args, **kwargs)
        return out.gather(1, wide(chosen, out))

    return forward


def filling(rows: Rows, name: str, own: Callable[..., Any], chosen: Tensor) -> Callable[..., Any]:
    """A layer that answers for the chosen tokens, beside what is kept of the others."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        out: Tensor = own(*args, **kwargs)
        kept = rows.load(name)
        assert kept is not None
        full = kept.scatter(1, wide(chosen, out), out)
        rows.save(name, full)
        return full

    return forward


def wide(chosen: Tensor, tokens: Tensor) -> Tensor:
    """Places (R, K) for every number of a token, (R, K, D)."""
    return chosen.to(tokens.device)[..., None].expand(-1, -1, tokens.shape[-1])
