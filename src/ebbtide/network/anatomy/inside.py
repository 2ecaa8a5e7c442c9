"""Attention and feed-forward within a block, found by what they hold and by what they are called."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from ebbtide.network.anatomy.sites import Port, Site, port

_QUERY = re.compile(r"(^|_)(to_?)?(q|qkv|query|wq|wqkv|attn)(_|$)", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_CROSS = re.compile(r"cross|attn_?2|attention_?2|encoder_att|multihead_attn|encdec", re.IGNORECASE)
_FEED = re.compile(r"(^|_)(ff|ffn|mlp|moe|feed_?forward)(_|\d|$)", re.IGNORECASE)
_FEED_CLASS = re.compile(r"feedforward|mlp|ffn|moe|mbconv|layerff", re.IGNORECASE)
_ASIDE = re.compile(r"norm|ada|mod|emb|scale|gate|time|skip|shortcut|rope|rotary", re.IGNORECASE)
_LINEAR = re.compile(r"^(?!.*(mlp|att)).*(linear|conv\dd|conv1d)", re.IGNORECASE)


def dotted(*names: str) -> str:
    """The names joined, without the empty ones."""
    return ".".join(n for n in names if n)


def _matrices(module: nn.Module) -> int:
    """How many linear maps the module has; a wrapped one (LoRA, quantised) counts once."""
    if _LINEAR.search(type(module).__name__):
        return 1
    own = sum(p.ndim > 1 for p in module.parameters(recurse=False))
    return own + sum(_matrices(child) for child in module.children())


def _asks(module: nn.Module) -> bool:
    """Whether it makes queries itself."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    named = (n for n, child in module.named_children() if _LINEAR.search(type(child).__name__))
    return any(_QUERY.search(n) for n in named)


def is_attention(name: str, module: nn.Module) -> bool:
    """Whether a child of this name is attention: it makes queries, or is called so and wraps one that does."""
    if isinstance(module, nn.ModuleList) or not module._modules or feeds(name, module):
        return False
    if _asks(module):
        return True
    if not _ATTENTION.search(f"{name} {type(module).__name__}"):
        return False
    return sum(_asks(m) for m in module.modules()) == 1


def feeds(name: str, module: nn.Module) -> bool:
    """Whether a child of this name is a feed-forward: it is called so, and holds two linear maps at least."""
    if isinstance(module, nn.ModuleList) or not module._modules:
        return False
    if not (_FEED.search(name) or _FEED_CLASS.search(type(module).__name__)):
        return False
    return not any(_asks(m) for m in module.modules()) and _matrices(module) > 1


def attends(name: str, module: nn.Module) -> bool:
    """Whether attention is in it."""
    return is_attention(name, module) or any(attends(n, m) for n, m in module.named_children())


def _kind(name: str, module: nn.Module) -> str:
    if any("add_q" in n for n, _ in module.named_children()):
        return "joint"
    says = getattr(module, "is_cross_attention", None)  # what diffusers and transformers keep
    if isinstance(says, bool):
        return "cross" if says else "self"
    return "cross" if _CROSS.search(name) else "self"


def _site(path: str, module: nn.Module, kind: str, before: tuple[tuple[str, nn.Module], ...] = ()) -> Site:
    return Site(path, module, kind, port(module) or Port("", 0), before)


def sites(block: nn.Module, path: str) -> Iterator[Site]:
    """The sites in a block of this name, in order.

    Where a block holds attention but no feed-forward, the linear layers that remain are one, spelt out.
    """
    rest: list[tuple[str, nn.Module]] = []
    seen = fed = False
    for name, child in block.named_children():
        at = dotted(path, name)
        if is_attention(name, child):
            seen = True
            yield _site(at, child, _kind(name, child))
        elif feeds(name, child):
            fed = True
            kind = "context-feed-forward" if re.search("context|txt|text|added", name) else "feed-forward"
            yield _site(at, child, kind)
        else:
            yield from sites(child, at)
            if not _ASIDE.search(f"{name} {type(child).__name__}") and _matrices(child):
                rest.append((at, child))
    # A list holds attention of several layers, and what lies beside it there is none's feed-forward.
    if seen and not fed and not isinstance(block, nn.ModuleList) and sum(_matrices(m) for _, m in rest) > 1:
        yield _site(*rest[-1], "feed-forward", tuple(rest[:-1]))
