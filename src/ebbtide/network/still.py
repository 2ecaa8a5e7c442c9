"""What stands still in a network during a run, computed once: embeddings of text, sizes and places know neither x nor t.

    e(c), asked with the same c again  ->  what e said before

`still(network)` is a second network over the same weights, for one run. What embeds conditions in it remembers its last
answer and gives it again, to the bit, while it is asked with the same tensors (or, on the CPU, equal ones of few numbers)
and neither its weights nor that answer were written to. The network itself is not touched, so many runs can share it.
Sequences (B, L, D) are embedded every time, since a network lets go of their embedding on the way: keeping it would take
memory that the network as it is does not.

Where   the sites that `anatomy` knows as conditions and places; none in networks of other classes. A site in training, with
        hooks, or of layers that neither torch nor diffusers brought (adapters) is asked every time.
Memory  one answer a site, alive during a call of the network as it is
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.network.anatomy.layout import known

_FEW = 65_536


def still(network: nn.Module) -> nn.Module:
    """The network with its constant embeddings remembered; the network itself where it has none that are known."""
    layout = known(network)
    paths = () if layout is None else (*layout.condition, *layout.places)
    for path in paths:
        network = _with(network, path.split("."))
    return network


def _with(module: nn.Module, path: list[str]) -> nn.Module:
    """The module with the site at `path` remembering; a copy of every module on the way, sharing all else."""
    inner = module._modules.get(path[0])
    if inner is None or "forward" in module.__dict__:  # a forward of its own is bound to the module as it was
        return module
    made = _with(inner, path[1:]) if path[1:] else _remembering(inner)
    if made is inner:
        return module
    out = copy.copy(module)
    out._modules = {**module._modules, path[0]: made}
    return out


def _remembering(site: nn.Module) -> nn.Module:
    if not all(_plain(m) for m in site.modules()):
        return site
    out = copy.copy(site)
    out.forward = _Remembered(site)
    return out


def _plain(module: nn.Module) -> bool:
    """Whether it computes what its class says, and the same each time."""
    own = type(module).__module__.partition(".")[0] in ("torch", "diffusers")
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    return own and not hooked and not module.training


class _Remembered:
    """The last answer of a site, with what it was asked and the versions of all that it hangs on."""

    def __init__(self, site: nn.Module) -> None:
        self.site = site
        self.weights = [*site.parameters(), *site.buffers()]
        self.asked: tuple[Any, ...] = ()
        self.answer: Any = None
        self.versions: list[int] = []

    def __call__(self, *asked: Any, **named: Any) -> Any:
        """The answer, as before where nothing changed."""
        if named or torch.is_grad_enabled() or any(v.ndim > 2 or v.is_inference() for v in _tensors(asked)):
            return self.site.forward(*asked, **named)
        if not (self.asked and self.versions == self._written() and _same(self.asked, asked)):
            self.answer = self.site.forward(*asked)
        self.asked = asked  # equal ones too, so that nothing is held that the caller lets go of
        self.versions = self._written()
        return self.answer

    def _written(self) -> list[int]:
        return [v._version for v in (*self.weights, *_tensors(self.asked), *_tensors(self.answer))]


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for v in tree:
            yield from _tensors(v)


def _same(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return len(before) == len(now) and all(a is b or _equal(a, b) for a, b in zip(before, now, strict=True))


def _equal(a: Any, b: Any) -> bool:
    """Whether two tensors are the same numbers; asked on the CPU alone, where it takes less than to embed them."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.device.type != "cpu" or b.device.type != "cpu":
        return False
    return a.dtype == b.dtype and a.shape == b.shape and a.numel() <= _FEW and torch.equal(a, b)
