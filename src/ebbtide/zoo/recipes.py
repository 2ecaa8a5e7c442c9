"""The recipes that `ebb train` knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ebbtide.core.errors import EbbError, nearest
from ebbtide.learn.classification import Classification
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.learn.train import Recipe
from ebbtide.zoo.classifier import SmallCNN
from ebbtide.zoo.data import Pictures
from ebbtide.zoo.networks import DiT

DIGITS = Recipe(
    name="digits",
    data="mnist",
    network=DiT(),
    objective=FlowMatching(),
    steps=10000,
    lr=2e-3,
)

CLASSIFIER = Recipe(
    name="classifier",
    data="mnist",
    network=SmallCNN(),
    objective=Classification(),
    steps=3500,
    lr=2e-3,
    ema=0.995,
)

_RECIPES = {r.name: r for r in (DIGITS, CLASSIFIER)}


def names() -> list[str]:
    """All recipes."""
    return sorted(_RECIPES)


def recipe(name: str) -> Recipe:
    """The recipe of this name. Raises EbbError with the nearest names when there is none."""
    if name not in _RECIPES:
        raise EbbError(f"there is no recipe {name!r}; {nearest(name, _RECIPES)}")
    return _RECIPES[name]


def fit(recipe: Recipe, data: Pictures) -> Recipe:
    """The recipe with size, channels and classes of its network taken from the pictures.

    Pictures without labels train a model of one class that is never named. Raises EbbError for pictures that are not
    square.
    """
    channels, high, wide = data.pixels.shape[1:]
    if high != wide:
        raise EbbError(f"these pictures are {high} x {wide}; this network wants squares: load them with size=.")
    classes = max(len(data.names), 1 if data.labels is None else int(data.labels.max()) + 1)
    network: Any = replace(recipe.network, size=high, channels=channels, classes=classes)  # type: ignore[type-var]
    objective: Any = recipe.objective
    if isinstance(getattr(objective, "null", None), int):
        objective = replace(objective, null=classes)
    return replace(recipe, network=network, objective=objective)
