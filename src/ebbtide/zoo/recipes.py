"""The recipes that `ebb train` knows."""

from __future__ import annotations

from ebbtide.core.errors import EbbError, nearest
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.learn.train import Recipe
from ebbtide.zoo.networks import DiT

DIGITS = Recipe(
    name="digits",
    data="mnist",
    network=DiT(),
    objective=FlowMatching(),
    steps=10000,
    lr=2e-3,
)

_RECIPES = {r.name: r for r in (DIGITS,)}


def recipe(name: str) -> Recipe:
    """The recipe of this name. Raises EbbError with the nearest names when there is none."""
    if name not in _RECIPES:
        raise EbbError(f"there is no recipe {name!r}; {nearest(name, _RECIPES)}")
    return _RECIPES[name]
