"""One step for states of one field and of many: each field is moved by itself, with a process and noise of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.core.tree import Tree
from ebbtide.process.affine import Affine


class Single(NamedTuple):
    """One field of a state; the whole of it, where name is "".

    place  which of the fields, whose draws are folded by it
    cond   the condition as this field sees it
    """

    name: str
    place: int
    process: Affine
    cond: dict[str, Tree]

    def of(self, tree: Tree) -> Any:
        """This field of a tree."""
        return tree[self.name] if self.name else tree

    def noise(self, noise: Noise) -> Noise:
        """Its own stream of the draws of a step: that which `Joint.move` gives it."""
        return noise.fold(self.place) if self.name else noise


def fields(process: Any, cond: dict[str, Tree]) -> list[Single]:
    """The fields of an affine process, itself, or of a joint one. Raises EbbError where one of them is not affine."""
    if "joint" not in process.gives:
        return [Single("", 0, process, cond)]
    for name, p in process.parts.items():
        if "affine" not in p.gives:
            raise EbbError(f"the field {name!r} moves by {p.called!r}, and this solver is for affine processes alone.")
    return [Single(n, j, p, process.own(cond, n)) for j, (n, p) in enumerate(process.parts.items())]


def by_field(process: Any, cond: dict[str, Tree], f: Callable[[Single], Tensor]) -> Tree:
    """`f` of each field, put together as a state."""
    done = {field.name: f(field) for field in fields(process, cond)}
    return done.get("", done)
