"""Data sets, training recipes, and the weights that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebbtide.denoise.model import Model

WEIGHTS = Path(__file__).parent / "weights"
"""Where shipped models lie, one folder each."""


def names() -> list[str]:
    """The names of all shipped models: those that `ebb.load(name)` opens without a path."""
    return sorted(p.parent.name for p in WEIGHTS.glob("*/recipe.json"))


def folder(name: str) -> Path:
    """The folder of a shipped model: config.json, weights, and recipe.json, which says how they were made.

    Raises EbbError with the nearest names when there is none.
    """
    from ebbtide.core.errors import EbbError, nearest

    if name not in names():
        raise EbbError(f"no model named {name!r} ships with ebbtide; {nearest(name, names())}")
    return WEIGHTS / name


def load(source: str | Path, device: Any = None) -> Model:
    """A shipped model by its name, or one that `ebb train` left in a folder. Raises EbbError where there is none."""
    from ebbtide.zoo.models import open_model

    named = isinstance(source, str) and source in names()
    return open_model(folder(str(source)) if named else Path(source), str(source), device)


def from_data(path: str | Path, **options: Any) -> Model:
    """Pictures as a model with no network: see `zoo.models.data_model`."""
    from ebbtide.zoo.models import data_model

    return data_model(path, **options)
