"""What a start may be given with an element, and how it is told where on the grid to begin.

A start takes its leaf out of the condition: it is spent, and the network, which would not know it, never sees it. It stays
where another part of the plan reads it during the run (`Part.reads`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.state import State
from ebbtide.core.tree import Tree, leaves, tree_map


def held(name: str, like: Tree, ask: Ask, what: str) -> tuple[Tree, State]:
    """The leaf `name` of the condition in the form of `like`, and the first state without it, unless it is read on.

    Raises EbbError where the leaf is missing, or differs from x in fields, shape or kind of number.
    """
    state = ask.state
    if name not in state.cond:
        raise EbbError(
            f"start {ask.loop.start.entry.name!r} needs {what}: give cond={{{name!r}: tensor shaped like x}}."
        )
    leaf = state.cond[name]
    mine, wanted = leaves(leaf), leaves(like)
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in wanted.items()}:
        raise EbbError(f"cond[{name!r}] is {_told(mine)} where the samples are {_told(wanted)}: give it their shape.")
    for key, v in wanted.items():
        if mine[key].is_floating_point() != v.is_floating_point():
            raise EbbError(f"cond[{name!r}] is of {mine[key].dtype} where the samples are of {v.dtype}: convert it.")
    return tree_map(lambda v, x: v.to(x), leaf, like), state if name in ask.loop.reads else drop(state, name)


def drop(state: State, *names: str) -> State:
    """The state without some leaves of its condition."""
    return replace(state, cond={k: v for k, v in state.cond.items() if k not in names})


def leave(state: State, ask: Ask, name: str, leaf: Tree) -> State:
    """The state with a leaf in its condition for the parts of the plan that read it; without, where none does."""
    return replace(state, cond={**state.cond, name: leaf}) if name in ask.loop.reads else state


def points(ask: Ask) -> Tensor:
    """The times of the grid, (B, 1..., n + 1). Raises EbbError for a grid that does not know its times beforehand."""
    found = ask.state.memory["grid"].get("points")
    if found is None:
        raise EbbError(
            f"start {ask.loop.start.entry.name!r} needs a grid whose times are known beforehand, such as 'linear' or "
            f"'karras', not {ask.loop.grid.entry.name!r}."
        )
    assert isinstance(found, Tensor)
    return found


def _told(shapes: dict[str, Tensor]) -> str:
    return ", ".join(f"{k} {tuple(v.shape)}".strip() for k, v in shapes.items()) or "empty"


def later(state: State, ask: Ask, count: int) -> State:
    """The state moved on, unmade, to where `count` steps of the grid are left, and the time of its units there."""
    n = points(ask).shape[-1] - 1
    state = replace(state, i=torch.full_like(state.i, n - min(count, n)))
    return replace(state, t=ask.loop.grid.ahead(state, state.memory["grid"], 0))
