"""Patches: named sites of a network wrapped for one call, with their memory in the state.

A network call concatenates the rows of several queries. `Rows` tells a patch whose they are, and keeps what it remembers of
them: per element, under the patch's own name, by (tag, role). Rows that a patch wants computed in different ways (a whole
step beside a short one) have another `mode`, and go into calls of their own; so within a call a patch does one thing.

Patches reach into a shell of the network: modules of its own over the same weights. Nothing is left on the module that the
user holds, and runs in other threads do not hear of it.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Part
from ebbtide.core.state import Query, State
from ebbtide.core.tree import Memory, Tree, tree_map
from ebbtide.network.anatomy import Site


class Run(NamedTuple):
    """Consecutive rows of one query: where they lie in the call, which elements own them, and what was asked.

    whole  whether they are all elements of the state, in order
    """

    rows: slice
    owners: Tensor
    tag: str
    role: str
    t: Tensor
    x: Tree
    whole: bool

    @property
    def place(self) -> str:
        """Where features of such rows are kept."""
        return f"{self.tag}|{self.role}"


class Rows:
    """What a patch sees of one network call: whose rows it holds, and what it remembers of them.

    runs    the rows of each query
    state   the elements that own them
    memory  of all patches, one slot each
    mode    what the patch said of these rows; one number for all
    """

    def __init__(self, queries: Sequence[Query], state: State, memory: Memory) -> None:
        self.state, self.memory, self.runs, start = state, dict(memory), [], 0
        self.mode, self._slot = 0, ""
        self._note: Callable[[int], None] = _unheard
        for query in queries:
            own = query.owners(len(state))
            rows = slice(start, start := start + len(own))
            self.runs.append(Run(rows, own, query.tag, query.role, query.t, query.x, query.of is None))

    def of(self, slot: str, mode: int = 0, note: Callable[[int], None] | None = None) -> Rows:
        """The same rows as the patch of this slot sees them; memory is shared."""
        view = copy.copy(self)
        view.mode, view._slot, view._note = mode, slot, note or _unheard
        return view

    def __len__(self) -> int:
        return self.runs[-1].rows.stop if self.runs else 0

    @property
    def owners(self) -> Tensor:
        """The element of each row, (R,)."""
        return torch.cat([run.owners for run in self.runs])

    @property
    def x(self) -> Tree:
        """What the network is asked about in each row, (R, ...)."""
        return self.runs[0].x if len(self.runs) == 1 else tree_map(lambda *v: torch.cat(v), *(r.x for r in self.runs))

    @property
    def i(self) -> Tensor:
        """The own step of each row's element, (R,): that of its unit which is furthest."""
        return self.state.i.reshape(len(self.state), -1).amax(1)[self.owners]

    def own(self, name: str) -> Tensor | None:
        """What `init` made for the owners of these rows, (R, ...), whatever was asked of them."""
        leaf: Tensor | None = self.memory.get(self._slot, {}).get(name)
        return None if leaf is None else leaf[self.owners.to(leaf.device)]

    def load(self, name: str) -> Tensor | None:
        """What was saved as `name` for these rows, (R, ...), zeros where nothing was; None where it was for none."""
        slot, name = self.memory.get(self._slot, {}), _undotted(name)
        kept: list[Tensor | None] = [slot.get(run.place, {}).get(name) for run in self.runs]
        like = next((v for v in kept if v is not None), None)
        if like is None:
            return None
        each = [
            like.new_zeros((len(run.owners), *like.shape[1:])) if v is None else v if run.whole else v[run.owners]
            for run, v in zip(self.runs, kept, strict=True)
        ]
        return each[0] if len(each) == 1 else torch.cat(each)

    def save(self, name: str, value: Tensor) -> None:
        """Remember `value` (R, ...) of these rows; elements of which nothing was saved hold zeros."""
        slot, name = dict(self.memory.get(self._slot, {})), _undotted(name)
        for run in self.runs:
            new, place = value[run.rows], dict(slot.get(run.place, {}))
            if not run.whole:
                old = place.get(name)
                if old is None or old.shape[1:] != new.shape[1:]:
                    old = new.new_zeros((len(self.state), *new.shape[1:]))
                new = old.index_copy(0, run.owners.to(old.device), new)
            slot[run.place] = {**place, name: new}
        self.memory[self._slot] = slot

    def keep(self, name: str, answer: Any) -> None:
        """Remember what a module answered of these rows: a tensor, or a tuple of tensors and None."""
        if isinstance(answer, Tensor):
            self.save(name, answer)
            return
        for k, v in enumerate(answer):
            self.save(f"{name}|{k}", torch.empty(len(self), 0) if v is None else v)

    def kept(self, name: str) -> Any:
        """What a module answered of these rows, as it was kept; None where nothing was."""
        if (one := self.load(name)) is not None:
            return one
        parts: list[Tensor | None] = []
        while (part := self.load(f"{name}|{len(parts)}")) is not None:
            parts.append(part if part.numel() else None)
        return tuple(parts) or None

    def note(self, count: int | None = None) -> None:
        """Report that the patch did something for `count` rows, all by default; one that never does is an error."""
        self._note(len(self) if count is None else count)


def _undotted(name: str) -> str:
    """A name as memory holds it, where dots separate levels."""
    return name.replace(".", "/")


def _unheard(count: int) -> None:
    pass


class Patch(Part):
    """A change of what is computed inside a network, for one call."""

    closed = False  # see `Rewrite`

    def look(self, network: nn.Module) -> Any:
        """What the patch must know of a network, found once when a plan is bound to a model: its sites.

        Raises EbbError where the network has no such sites.
        """
        return network

    def claims(self, seen: Any) -> Iterable[nn.Module]:
        """The modules whose answer it replaces, which no other patch may."""
        return ()

    def mode(self, seen: Any, rows: Rows) -> Tensor:
        """How each row is to be computed, whole numbers (R,): rows of one number are called together."""
        return torch.zeros(len(rows), dtype=torch.int64)

    def enter(self, seen: Any, rows: Rows) -> AbstractContextManager[Any]:
        """Wrap the sites that `look` found, for rows of one mode; on leaving, all is as it was."""
        raise NotImplementedError

    def bind(self, network: Any) -> tuple[Any, tuple[Patch, ...]]:
        """The network that is called from now on, the same, and what is left to do in every call: this patch.

        Raises EbbError where the model has no module to reach into.
        """
        if not self.on:
            return network, ()
        if not isinstance(network, nn.Module):
            raise EbbError(f"network {self.called!r} reaches into a torch module, and this model has none.")
        return network, (self,)


class Bound(NamedTuple):
    """A patch with what it saw of one network."""

    patch: Patch
    seen: Any


def settled(network: nn.Module, patches: Sequence[Patch]) -> tuple[nn.Module, tuple[Bound, ...]]:
    """A shell of the network, and the patches that reach into it.

    Raises EbbError where sites are missing, and where two patches want the same.
    """
    inner = shell(network)
    out = tuple(Bound(patch, patch.look(inner)) for patch in patches)
    names = {module: path for path, module in inner.named_modules()}
    taken: dict[nn.Module, str] = {}
    for patch, seen in out:
        for module in patch.claims(seen):
            if module in taken:
                raise EbbError(
                    f"network {taken[module]!r} and {patch.called!r} both replace what {names[module]} gives; "
                    "leave one of them out."
                )
        taken |= dict.fromkeys(patch.claims(seen), patch.called)
    return inner, out


def shell(network: nn.Module) -> nn.Module:
    """The same modules once more over the same weights, so that wrapping one is not heard in the network itself.

    A forward of a module's own, as hooks that move weights put it there, is the copy's where it was bound to the module.
    """
    made: dict[nn.Module, nn.Module] = {}
    for module in network.modules():
        made[module] = copy.copy(module)
    for old, new in made.items():
        new._modules = {k: m if m is None else made[m] for k, m in old._modules.items()}
        for k, v in vars(old).items():
            if k in ("forward", "_old_forward"):
                vars(new)[k] = _rebound(v, old, new)
    return made[network]


def _rebound(f: Any, old: nn.Module, new: nn.Module) -> Any:
    if f is old:
        return new
    if isinstance(f, types.MethodType) and f.__self__ is old:
        return types.MethodType(f.__func__, new)
    if isinstance(f, functools.partial):
        return functools.partial(f.func, *(_rebound(a, old, new) for a in f.args), **f.keywords)
    return f


def keeping(rows: Rows, site: Site) -> Callable[..., Any]:
    """What a site computes, which is kept under its name."""
    own = site.module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        rows.keep(site.path, out)
        return out

    return forward


@contextmanager
def rewired(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`module` computes `forward` instead of its own, until the context is left."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
