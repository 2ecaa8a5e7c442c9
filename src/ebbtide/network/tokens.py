"""Tokens of a transformer: where they enter, attend and leave, for patches that compute some of them in a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.network.anatomy import Site, anatomy


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

    @property
    def all(self) -> tuple[nn.Module, ...]:
        """All of these modules."""
        return (self.enter, self.leave, *self.pairs.values(), *(s.module for s in self.inner))


def tokens(network: nn.Module, who: str) -> Tokens:
    """The tokens of a plain stack of blocks. Raises EbbError, naming the part that asks, where a network has none."""
    net = anatomy(network).need("attention", "first", "last")
    pairs: dict[str, nn.Module] = {}
    for block in net.blocks:
        if block.kind != "block" or block.turned:
            why = f"blocks of kind {block.kind}" if not block.turned else f"blocks that take {block.turned!r}"
            raise EbbError(f"{who!r} runs some tokens of a plain stack of blocks; {net.name} has {why}.")
        for site in (s for s in block.attention if s.kind == "self"):
            if len(site.pairs) < 2:
                raise EbbError(
                    f"{who!r} finds no layers of keys and values in {site.path} of {net.name}; leave it out."
                )
            pairs |= site.pairs
    inner = tuple(s for block in net.blocks for s in (block, *block.sites))
    return Tokens(net.first[-1].module, pairs, net.last[-1].module, inner)


def some(own: Callable[..., Any], chosen: Tensor) -> Callable[..., Any]:
    """A layer of whose tokens only the chosen ones go on."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        out: Tensor = own(*args, **kwargs)
        return out.gather(1, wide(chosen, out))

    return forward


def wide(chosen: Tensor, tokens: Tensor) -> Tensor:
    """Places (R, K) for every number of a token, (R, K, D)."""
    return chosen.to(tokens.device)[..., None].expand(-1, -1, tokens.shape[-1])
