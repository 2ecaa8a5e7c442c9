"""The recipes that `ebb train` knows, and the one call it makes.

for progress in begin("digits", "mnist.npz", "runs/digits"): ...      # wrap it in a bar; stop when you like
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ebbtide.core.errors import EbbError, nearest
from ebbtide.learn.classification import Classification
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.learn.train import Progress, Recipe, train
from ebbtide.zoo.classifier import SmallCNN
from ebbtide.zoo.data import Pictures, load_pictures
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


def begin(
    name: str,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    steps: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train the recipe `name` on `data`, or go on with the run that lies in `out`: see `learn.train.train`.

    data    what `load_pictures` reads; None fetches the recipe's own data set from the hub
    out     the folder of the checkpoint, by default runs/NAME; at the end it holds `model`, which `ebb.load` opens

    Raises EbbError, before the first step, for an unknown recipe, unreadable data and a folder with another run.
    """
    known = recipe(name)
    pictures = load_pictures(f"hub:{known.data}" if data is None else data, size=getattr(known.network, "size", None))
    folder = Path("runs") / name if out is None else out
    return train(fit(known, pictures), pictures, folder, steps=steps, seed=seed, device=device)
