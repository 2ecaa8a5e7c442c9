"""Rewrites: a changed copy of a network, made once when a plan is bound to a model; the original stays as it was.

    network  --rewrite-->  copy  --rewrite-->  copy  ...  --patches, for one call each-->  answer

A copy has the parameters of the original until the rewrite gives it others, so what does not change is not held twice. It
is kept for as long as the original lives, and made anew when the original's weights, modules or settings have changed.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Part
from ebbtide.network.patch import Bound, Patch, settled


class Rewrite(Part):
    """A network changed as a whole. Switched off, it gives the network itself.

    closed  whether nothing inside the copy can be reached any more, by rewrites or by patches
    """

    closed = False

    def __call__(self, network: nn.Module, record: Any = None) -> nn.Module:
        """A changed copy of `network`; `record` holds queries of a run, for rewrites that are calibrated on some.

        Raises EbbError where the rewrite cannot work, with the reason.
        """
        raise NotImplementedError

    def bind(self, network: Any) -> tuple[Any, tuple[Patch, ...]]:
        """The network that is called from now on, and what is left to do in every call: nothing."""
        if not self.on:
            return network, ()
        if not isinstance(network, nn.Module):
            raise EbbError(
                f"network {self.entry.name!r} rewrites a torch module, and this model has none; leave it out, or load "
                "the module itself together with its process."
            )
        with _lock:
            made, state, key = _made.setdefault(network, {}), _state(network), repr(self)
            if key not in made or made[key][0] != state:
                made[key] = (state, self(network))
            return made[key][1], ()


_lock = threading.RLock()
_made: WeakKeyDictionary[nn.Module, dict[str, tuple[Hashable, nn.Module]]] = WeakKeyDictionary()


def bound(network: Any, parts: Sequence[Patch | Rewrite]) -> tuple[Any, tuple[Bound, ...], tuple[str, ...]]:
    """The network as all parts of the slot rewrite it, in order; the patches left; the names of what rewrote it.

    Raises EbbError for a rewrite that cannot work, for sites that a network lacks or that two patches want, and where
    something is to reach into a closed network.
    """
    patches: tuple[Patch, ...] = ()
    names: tuple[str, ...] = ()
    shut = ""
    for part in parts:
        made, left = part.bind(network)
        if made is network and not left:
            continue  # switched off
        if made is not network:
            names += (part.entry.name,)
        if shut or (part.closed and patches):
            raise EbbError(
                f"network {shut or names[-1]!r} leaves nothing to reach inside of: put it last, without patches."
            )
        network, patches, shut = made, patches + left, names[-1] if part.closed else ""
    if not patches:
        return network, (), names
    return *settled(network, patches), names


def copied(network: nn.Module) -> nn.Module:
    """The network's own modules and buffers, over the same parameters: give it others, and never write into these.

    Raises EbbError where weights are not there, and for modules that cannot be copied.
    """
    known = list(network.parameters())
    if any(p.is_meta for p in known):
        raise EbbError("weights of this network are off-loaded; move it to one device before it is rewritten.")
    try:
        return copy.deepcopy(network, {id(p): p for p in known})
    except (RuntimeError, TypeError) as error:
        raise EbbError(
            f"this network cannot be copied, so it cannot be rewritten: {str(error).splitlines()[0]}."
        ) from None


def given(layer: nn.Module, **tensors: Tensor) -> None:
    """Give a layer of a copy parameters of its own."""
    for name, value in tensors.items():
        setattr(layer, name, nn.Parameter(value, requires_grad=False))


def _state(network: nn.Module) -> Hashable:
    """What changes when a copy is no longer one: tensors written to or moved, modules, modes, plain settings."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    said = [
        (name, type(m), repr({k: v for k, v in vars(m).items() if _plain(v)})) for name, m in network.named_modules()
    ]
    return (*said, *((k, v.data_ptr(), v.dtype, v.is_inference() or v._version) for k, v in tensors))


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_plain(v) for v in value.values())
    if isinstance(value, list | tuple):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)
