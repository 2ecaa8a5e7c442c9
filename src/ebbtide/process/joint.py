"""Joint diffusion: an x of named fields, each with a process of its own, on one shared clock.

    x = {"image": ..., "text": ...},   move(x)[f] = move_f(x[f], pred.field(f), t, s)

Every field draws its own noise. A leaf of the condition that is itself a dict by field (such as y, the ends) is handed
to each field apart; all other leaves are seen by all.

Paper    Bao et al. 2023, "One transformer fits all distributions in multi-modal diffusion at scale" (arXiv 2303.06555),
         section 3.1, for Gaussian fields; the law is prod_f q_f(x_t[f] | x_0[f]) whatever the fields
Differs  one clock for all fields; the paper gives each its own.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.core.parts import Process
from ebbtide.core.registry import make, part
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree


@part("process", "joint")
class Joint(Process):
    """Joint diffusion: an x of named fields, each with a process of its own, on one shared clock.

    fields   name of the field -> spec of its process, {"name": ..., **parameters}

    Raises EbbError for an empty joint and for a field that no process describes.
    """

    examples = ({"fields": {"picture": {"name": "flow"}, "text": {"name": "masked", "vocab": 4}}},)
    fields: dict[str, dict[str, Any]]

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError("a joint process needs at least one field")
        for name, spec in self.fields.items():
            if "name" not in spec:
                raise ValueError(f"the process of the field {name!r} has no name")
        _ = self.parts

    @functools.cached_property
    def parts(self) -> dict[str, Process]:
        """The process of each field, by name in alphabetical order: the order of a file's keys means nothing."""
        return {name: make("process", self.fields[name]) for name in sorted(self.fields)}

    @property
    def stochastic(self) -> bool:
        """Whether the moves of some field draw noise at eta 0 too."""
        return any(getattr(p, "stochastic", False) for p in self.parts.values())

    @property
    def gives(self) -> frozenset[str]:
        """ "joint", "end" where a field has an end, and "continuous" or "discrete" where all fields are.

        Never "affine", "gaussian", "masked": their arithmetic is that of one field.
        """
        each = [p.gives for p in self.parts.values()]
        return frozenset({"joint"} | (frozenset.intersection(*each) & _ALL) | (frozenset.union(*each) & _ANY))

    def move(
        self, x: Tree, pred: Pred | None, t: Tensor, s: Tensor, eta: float, noise: Noise, cond: dict[str, Tree]
    ) -> Tree:
        """The move of every field, each with its own field of the prediction; see the contract."""
        x = self._checked(x)
        return {
            name: p.move(x[name], None if pred is None else pred.field(name), t, s, eta, noise.fold(j), own)
            for j, name, p, own in self._each(cond)
        }

    def corrupt(self, x0: Tree, t: Tensor, noise: Noise, cond: dict[str, Tree]) -> Tree:
        """x_t ~ prod_f q_f(x_t[f] | x_0[f])."""
        x0 = self._checked(x0)
        return {name: p.corrupt(x0[name], t, noise.fold(j), own) for j, name, p, own in self._each(cond)}

    def prior(self, like: Tree, t: Tensor, noise: Noise, cond: dict[str, Tree]) -> Tree:
        """The start of every field."""
        like = self._checked(like)
        return {name: p.prior(like[name], t, noise.fold(j), own) for j, name, p, own in self._each(cond)}

    def _checked(self, x: Tree) -> dict[str, Tree]:
        if not isinstance(x, dict) or set(x) != set(self.parts):
            got = ", ".join(sorted(x)) if isinstance(x, dict) else "one tensor"
            raise EbbError(f"this joint process is over the fields {', '.join(self.parts)}, but x holds {got}.")
        return x

    def _each(self, cond: dict[str, Tree]) -> list[tuple[int, str, Process, dict[str, Tree]]]:
        return [(j, name, p, self.own(cond, name)) for j, (name, p) in enumerate(self.parts.items())]

    def own(self, cond: dict[str, Tree], name: str) -> dict[str, Tree]:
        """The condition as one field sees it."""
        out = {}
        for key, leaf in cond.items():
            by_field = isinstance(leaf, dict) and set(leaf) <= set(self.parts)
            if not by_field:
                out[key] = leaf
            elif name in leaf:
                out[key] = leaf[name]
        return out


_ALL = {"continuous", "discrete"}
_ANY = {"end"}
