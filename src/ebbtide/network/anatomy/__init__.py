"""The named sites of a network: its blocks, what attends and feeds forward in them, and what lies around them.

    x -> first -> blocks -> last,    time and condition beside;    a U-Net also carries skips past its middle

A patch or rewrite that is written in these names works for every architecture that has them. Known classes are written
down in `layout`; others are found by structure: a list of equal layers with attention in each, or a way down and a way
up. An anatomy holds names and references to submodules, never the network itself nor a tensor. It is not remembered:
ask once (some milliseconds), and again when the network was rebuilt.

Two traps. DiT embeds time and label in every block, and its output layers ask the first block's again. Torch's own
TransformerEncoderLayer, where no gradient is kept, is one fused call that asks none of its parts: a forward put in
place of a site within it is not heard unless the layer has a hook, while one in place of the layer is.

Source   diffusers 0.42 (UNet2DModel, UNet2DConditionModel, DiT, PixArt, SD3, Flux, Wan, LTX) and transformers 5.20
         (BERT, ModernBERT, Llama), the forwards of these classes
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from torch import nn

from ebbtide.core.errors import EbbError
from ebbtide.network.anatomy.inside import dotted
from ebbtide.network.anatomy.inside import sites as inside
from ebbtide.network.anatomy.layout import GROUPS, Layout, guess, holds, known
from ebbtide.network.anatomy.sites import LAYERS, Block, Port, Site, Skip, gives_more, passing, port

__all__ = ["Anatomy", "Block", "Port", "Site", "Skip", "anatomy", "passing"]


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The sites of one network, in the order in which it calls them.

    name       its class
    blocks     its layers
    first      what makes the hidden state of the input: patches, tokens, the first convolution
    time       what embeds the time
    condition  what embeds labels, text, sizes, the scale of guidance
    last       what makes the answer of the hidden state
    skips      tensors carried from the way down to the way up, in the order in which they are used
    names      the group of every path told of: "blocks" or one of the four
    """

    name: str
    blocks: tuple[Block, ...]
    first: tuple[Site, ...]
    time: tuple[Site, ...]
    condition: tuple[Site, ...]
    last: tuple[Site, ...]
    skips: tuple[Skip, ...]
    names: Mapping[str, str]

    @property
    def attention(self) -> tuple[Site, ...]:
        """All attention in the blocks."""
        return tuple(s for b in self.blocks for s in b.attention)

    @property
    def feed_forward(self) -> tuple[Site, ...]:
        """All feed-forwards in the blocks."""
        return tuple(s for b in self.blocks for s in b.feed_forward)

    @property
    def readers(self) -> tuple[Site, ...]:
        """Those of `condition` that read words: they take ids and give a vector of each."""
        ports = ((s, port(s.module, "input_ids")) for s in self.condition)
        return tuple(Site(s.path, s.module, "text", at) for s, at in ports if at is not None)

    def linears(self) -> Iterator[tuple[str, nn.Linear]]:
        """Every linear layer of attention and feed-forward once, named; those of embeddings and `last` are left out."""
        yield from dict(p for b in self.blocks for s in b.sites for p in s.linears()).items()

    def group(self, parameter: str) -> str:
        """The group that a parameter or module of this name belongs to: that of the longest path; "other" if of none."""
        path = parameter
        while path and path not in self.names:
            path = path.rpartition(".")[0]
        return self.names.get(path, "other")

    def need(self, *wanted: str) -> Anatomy:
        """Itself. Raises EbbError if it has none of some `wanted` attribute ("skips", "attention", "time"...)."""
        for what in wanted:
            if not getattr(self, what):
                kinds = Counter(b.kind for b in self.blocks)
                has = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
                raise EbbError(
                    f"{self.name} has no {what.replace('_', '-')}: it has blocks ({has}), {len(self.attention)} attention, "
                    f"{len(self.feed_forward)} feed-forward and {len(self.skips)} skips; leave out the part that needs it."
                )
        return self


def _outer(module: nn.Module) -> tuple[str, nn.Module, Layout | None]:
    """The first known module within wrappers of one child, its path, and its layout."""
    path, inner = "", module
    while (layout := known(inner)) is None:
        children = list(inner.named_children())
        if len(children) != 1 or next(inner.parameters(recurse=False), None) is not None:
            return "", module, None
        path, inner = dotted(path, children[0][0]), children[0][1]
    return path, inner, layout


def _layers(root: Mapping[str, nn.Module], path: str) -> list[tuple[str, nn.Module]]:
    """The layers of a list, or the one module that this path names; none if it names nothing."""
    module = root.get(path)
    if module is None:
        return []
    if isinstance(module, nn.ModuleList | nn.Sequential):
        return [(f"{path}.{n}", m) for n, m in module.named_children()]
    return [(path, module)]


def _kind(path: str, ways: bool) -> str:
    name = path.rpartition(".")[2]
    if ways:
        return next((k for k in ("down", "mid", "up") if name.startswith(k)), "mid")
    return "single" if "single" in name else "block"


def _block(path: str, module: nn.Module, kind: str) -> Block:
    hidden, context, residual, count = port(module) or Port("", 0), port(module, "encoder_hidden_states"), None, 0
    if context is not None and context.index is None:
        context = None  # it reads the text, and gives none
    if kind == "block" and context is not None:
        kind = "joint"
    resnets = getattr(module, "resnets", None)
    if kind in ("down", "up") and isinstance(resnets, nn.ModuleList):
        residual = gives_more(module) if kind == "down" else port(module, "res_hidden_states_tuple")
        count = len(resnets) + (kind == "down" and bool(getattr(module, "downsamplers", None)))
    return Block(path, module, kind, hidden, (), context, tuple(inside(module, path)), residual, count)


def _origin(block: Block, place: int) -> tuple[str, nn.Module]:
    """What makes a skip tensor of a "down" block."""
    if place == len(block.module.get_submodule("resnets")._modules):
        return block.path, block.module  # the last is also the hidden state that it gives
    lists = [(n, getattr(block.module, n, None)) for n in LAYERS]
    name, layers = [(n, m) for n, m in lists if isinstance(m, nn.ModuleList) and len(m) > place][-1]
    return f"{block.path}.{name}.{place}", layers[place]


def _skips(blocks: tuple[Block, ...], first: tuple[Site, ...]) -> tuple[Skip, ...]:
    """A stack: each "down" block puts its tensors on it, each "up" block takes as many as it has residual layers.

    None where blocks are not laid out like those of diffusers, or what is put and taken does not come out even.
    """
    ways = [b for b in blocks if b.kind in ("down", "up")]
    if not ways or not first or any(b.residual is None for b in ways):
        return ()
    if any(type(b.module).__name__.startswith("K") for b in ways):
        return ()  # the K blocks of diffusers take one tensor for all their layers
    stack: list[tuple[str, nn.Module, int | None, int]] = [(first[-1].path, first[-1].module, None, 0)]
    found: list[Skip] = []
    for number, block in enumerate(blocks):
        if block.kind == "down":
            stack += [(*_origin(block, k), number, k) for k in range(block.residuals)]
        elif block.kind == "up":
            for k, layer in enumerate(block.module.get_submodule("resnets").children()):
                if not stack:
                    return ()
                target = f"{block.path}.resnets.{k}"
                found.append(Skip(*stack.pop(), target, layer, number, block.residuals - 1 - k))
    return () if stack else tuple(found)


def anatomy(module: nn.Module) -> Anatomy:
    """The sites of a network. Raises EbbError where no blocks can be found in it."""
    path, inner, layout = _outer(module)
    if layout is None:
        layout = guess(module)
    kind = type(module).__name__
    if layout is None:
        has = [f"{n} ({type(m).__name__})" for n, m in module.named_children()]
        raise EbbError(
            f"no blocks were found in {kind}: it has no list of equal layers with attention in each and no "
            f"down_blocks and up_blocks, but {', '.join(has[:8]) or 'no submodules'}{', ...' if len(has) > 8 else ''}."
        )
    at = dict(inner.named_modules())
    ways = any(_kind(p, True) == "up" for p in layout.blocks)
    names: dict[str, str] = {}
    blocks: list[Block] = []
    for group in layout.blocks:
        for p, m in _layers(at, group):
            blocks.append(_block(dotted(path, p), m, _kind(group, ways)))
            names[blocks[-1].path] = "blocks"
    if not blocks:
        raise EbbError(f"no blocks were found in {kind}: {' and '.join(layout.blocks)} of its class are missing.")
    around: dict[str, tuple[Site, ...]] = {}
    for group in GROUPS:
        paths = list(chain.from_iterable(_match(p, at) for p in getattr(layout, group)))
        names |= dict.fromkeys((dotted(path, p) for p in paths), group)
        around[group] = tuple(
            Site(dotted(path, p), at[p], group, port(at[p]) or Port("", 0))
            for p in paths
            if p in at and holds(p, at[p])
        )
    return Anatomy(kind, tuple(blocks), **around, skips=_skips(tuple(blocks), around["first"]), names=names)


def _match(pattern: str, at: Mapping[str, nn.Module]) -> list[str]:
    """The modules that a pattern names, or the bare parameter."""
    if "*" in pattern:
        return [p for p in fnmatch.filter(at, pattern) if p.count(".") == pattern.count(".")]
    owner, _, name = pattern.rpartition(".")
    bare = owner in at and at[owner]._parameters.get(name) is not None
    return [pattern] if pattern in at or bare else []
