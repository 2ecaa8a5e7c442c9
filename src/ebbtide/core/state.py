"""The records that travel: `State` and the small tuples around it.

Sampling is a fold over an immutable `State`. Saving, resuming, streaming, batching requests at different steps,
resampling particles and searching with beams are all one operation: indexing the state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import fold, keys
from ebbtide.core.tree import Memory, Tree, leaves, merge_rows, tree_map, write_rows


def _copies(index: Tensor) -> Tensor:
    """Which copy of its element each place is, 1, 2... in their order; 0 where there is only one."""
    order = index.argsort(stable=True)
    ranked = index[order]
    first = torch.searchsorted(ranked, ranked)
    single = torch.searchsorted(ranked, ranked, right=True) - first == 1
    rank = torch.where(single, 0, torch.arange(len(index)) - first + 1)
    return torch.empty_like(rank).index_copy(0, order, rank)


def _kind(shapes: dict[str, torch.Size]) -> str:
    return ", ".join(f"{k or 'a tensor'} {tuple(v)}" for k, v in shapes.items()) or "empty"


@dataclass(frozen=True)
class State:
    """Everything that a run needs to go on; every leaf has the batch first.

    x       what is being sampled (B, ...): a tensor or a dict of fields
    cond    conditions, measurements, bridge ends, sources: all data that belongs to an element
    t       time of each unit, float64 in [0, 1]: 1 corrupted, 0 data     }
    i       each unit's own step count, int64                             } always on the CPU
    key     each unit's noise key, int64                                  }
    group   (B,) which elements belong to one request                     }
    memory  one slot a part; a missing slot, and a missing leaf, is an empty one (zeros)
    """

    x: Tree
    cond: dict[str, Tree]
    t: Tensor
    i: Tensor
    key: Tensor
    group: Tensor
    memory: dict[str, Memory] = field(default_factory=dict)

    @staticmethod
    def blank(like: Tree, cond: dict[str, Tree], seeds: Sequence[int], units: Sequence[int] = ()) -> State:
        """A state at t = 1 that holds zeros: elements shaped like `like` (B, ...), one seed each."""
        key = keys(seeds, units)
        return State(
            x=tree_map(torch.zeros_like, like),
            cond=cond,
            t=torch.ones(key.shape, dtype=torch.float64),
            i=torch.zeros(key.shape, dtype=torch.int64),
            key=key,
            group=torch.arange(len(key)),
        )

    def __len__(self) -> int:
        return self.key.shape[0]  # len() of a tensor is slow, and this is asked in every call

    def _tree(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("x", "cond", "t", "i", "key", "group", "memory")}

    def take(self, index: Tensor) -> State:
        """The elements `index` (n,): reordered, dropped or copied.

        Keys are a tree: an element that is copied k > 1 times gives all k copies new keys; one taken once keeps its
        own. So no two live elements ever share a key.
        """
        new = tree_map(lambda v: v[index.to(v.device)], self._tree())
        copy = _copies(index.cpu()).to(self.key.device).reshape(-1, *(1,) * (self.key.ndim - 1))
        new["key"] = torch.where(copy > 0, fold(new["key"], copy), new["key"])
        return State(**new)

    def put(self, index: Tensor, other: State) -> State:
        """The elements of `other` written over the rows `index`: the inverse of `take` without copies."""
        return State(**merge_rows(write_rows(index, len(self)), other._tree(), self._tree()))

    def cat(self, other: State) -> State:
        """The elements of both; memory that only one side has is empty on the other.

        Groups are kept as they are: who joins requests numbers them apart first. Raises EbbError where x or the
        conditions of the two are of different kinds.
        """
        n, m = len(self), len(other)
        for name in ("x", "cond"):
            mine, theirs = ({k: v.shape[1:] for k, v in leaves(getattr(s, name)).items()} for s in (self, other))
            if mine != theirs:
                raise EbbError(
                    f"these states cannot be joined: {name} is {_kind(mine)} in one and {_kind(theirs)} in the other."
                )
        write = write_rows(torch.arange(n, n + m), n + m)

        def join(b: Tensor | None, a: Tensor | None) -> Tensor:
            first = None if a is None else torch.cat([a, a.new_zeros((m, *a.shape[1:]))])
            return write(b, first)

        return State(**merge_rows(join, other._tree(), self._tree()))

    def units(self, index: Sequence[int], fresh: State | None = None) -> State:
        """The units `index` along axis 1: roll, grow or drop; each -1 takes the next unit of `fresh`.

        x, t, i, key and the memory of solver and grid have a unit axis; all else belongs to the element and stays.
        """
        old, new = [j for j in index if j >= 0], list(index).count(-1)
        count = iter(range(len(old), len(old) + new))
        kept = iter(range(len(old)))
        order = torch.tensor([next(kept) if j >= 0 else next(count) for j in index])
        pick = torch.tensor(old, dtype=torch.int64)
        width = self.t.shape[1]

        def along(b: Tensor | None, a: Tensor | None) -> Tensor:
            if a is None:
                assert b is not None
                a = b.new_zeros((b.shape[0], width, *b.shape[2:]))
            if a.ndim < 2 or a.shape[1] != width:
                return a
            parts = [a[:, pick.to(a.device)]]
            if new:
                parts.append(a.new_zeros((a.shape[0], new, *a.shape[2:])) if b is None else b[:, :new])
            return torch.cat(parts, 1)[:, order.to(a.device)]

        def branch(state: State | None) -> dict[str, Any]:
            if state is None:
                return {}
            slots = {k: state.memory[k] for k in ("solve", "grid") if k in state.memory}
            return {"x": state.x, "t": state.t, "i": state.i, "key": state.key, "memory": slots}

        out = merge_rows(along, branch(fresh), branch(self))
        return replace(self, **{**out, "memory": {**self.memory, **out["memory"]}})

    def remember(self, slot: str, memory: Memory) -> State:
        """This state with one slot of its memory replaced."""
        return replace(self, memory={**self.memory, slot: memory})

    def flat(self) -> dict[str, Tensor]:
        """All tensors under dotted names: the one form for files and processes."""
        return leaves(self._tree())

    @staticmethod
    def unflat(tensors: dict[str, Tensor]) -> State:
        """The inverse of `flat`."""
        tree: dict[str, Any] = {"cond": {}, "memory": {}}
        for name, tensor in tensors.items():
            *path, leaf = name.split(".")
            node = tree
            for step in path:
                node = node.setdefault(step, {})
            node[leaf] = tensor
        return State(**tree)

    def save(self, path: str | os.PathLike[str], about: dict[str, Any] | None = None) -> None:
        """Write the state as safetensors, with `about` as JSON in its header; the file appears whole or not at all."""
        from safetensors.torch import save_file

        path = Path(path)
        part = path.with_name(path.name + ".part")
        save_file(
            {k: v.clone(memory_format=torch.contiguous_format) for k, v in self.flat().items()},
            part,
            {"ebbtide": json.dumps(about or {})},
        )
        os.replace(part, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> tuple[State, dict[str, Any]]:
        """A saved state and what was written about it.

        Raises EbbError when the file is missing or is not a saved state.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("ebbtide", "null"))
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise EbbError(f"{path} cannot be read as a saved state: {error}.") from error
        except json.JSONDecodeError:
            about = None
        if about is None or not {"x", "t", "i", "key", "group"} <= {k.split(".")[0] for k in tensors}:
            raise EbbError(f"{path} is a safetensors file, but no saved ebbtide state.")
        return State.unflat(tensors), about


class _Sentinel:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


OWN: Final = _Sentinel("OWN")
NULL: Final = _Sentinel("NULL")


class Query(NamedTuple):
    """One question to the denoiser.

    cond   OWN the owner's condition | NULL the null condition | a tree of its own
    tag    the branch: which condition, which model. K/V memory is kept by tag, features by (tag, role)
    role   "point" the state's own (x, t) | "stage" inside a solver | "look" ahead | "commit" a finished block
    of     which element each row belongs to (None: row r is element r)
    at     which units a row shows (None: all)
    until  the time of each unit that a step along this answer is to reach, for denoisers that jump (None: the next instant)
    """

    x: Tree
    t: Tensor
    cond: Any = OWN
    tag: str = "main"
    role: str = "point"
    of: Tensor | None = None
    at: Tensor | None = None
    until: Tensor | None = None

    def rows(self, index: Tensor) -> Query:
        """The same question for some of its rows."""
        pick: Callable[[Tensor], Tensor] = lambda v: v[index.to(v.device)]  # noqa: E731
        return self._replace(
            x=tree_map(pick, self.x),
            t=self.t[index],
            cond=self.cond if isinstance(self.cond, _Sentinel) else tree_map(pick, self.cond),
            of=index if self.of is None else self.of[index],
            at=None if self.at is None else self.at[index],
            until=None if self.until is None else self.until[index],
        )

    def owners(self, n: int) -> Tensor:
        """The element of each row, (rows,), for a state of `n` elements."""
        return torch.arange(n) if self.of is None else self.of


class Pred(NamedTuple):
    """What a denoiser answers, always in data space.

    mean    E[x0 | x_t], shaped like x
    logits  log p(x0 | x_t) up to a constant, x.shape + (V,)
    var     Var[x0 | x_t] where the model knows it
    aux     anything else a network says beside it (heads, attention maps)
    """

    mean: Any = None
    logits: Any = None
    var: Any = None
    aux: Any = None

    def field(self, name: str) -> Pred:
        """The prediction of one field of a joint state."""
        return Pred(*(v.get(name) if isinstance(v, dict) else v for v in self))

    def map(self, f: Callable[..., Tensor], *others: Pred) -> Pred:
        """`f` on every leaf that is there."""
        return Pred(*(None if v is None else tree_map(f, v, *(o[k] for o in others)) for k, v in enumerate(self)))


class Move(NamedTuple):
    """What a solver proposes.

    x       where the units would be
    memory  the solver's memory there, leaves per unit
    t       the time reached (None: the one asked for)
    hops    by how much each unit's step count grows (None: 1)
    err     local error of each unit, in units of x (None: not estimated)
    """

    x: Tree
    memory: Memory = {}  # noqa: RUF012
    t: Tensor | None = None
    hops: Tensor | None = None
    err: Tensor | None = None


class Step(NamedTuple):
    """What the loop yields: the new state, the prediction made on the way, network rows computed, units accepted."""

    state: State
    pred: Pred | None
    calls: int
    accepted: Tensor | None
    info: dict[str, Any]
