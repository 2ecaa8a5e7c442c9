"""Recipes fit themselves to the pictures they are given."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from ebbtide.core.errors import EbbError
from ebbtide.learn.train import Recipe
from ebbtide.zoo import recipes
from ebbtide.zoo.data import Pictures


def pictures(classes: int | None, channels: int = 3, size: int = 32) -> Pictures:
    labels = None if classes is None else torch.arange(2 * classes) % classes
    n = 4 if classes is None else 2 * classes
    return Pictures(torch.zeros(n, channels, size, size, dtype=torch.uint8), labels)


@pytest.mark.parametrize("classes", [None, 3])
def test_any_pictures_fit(tmp_path: Path, classes: int | None) -> None:
    fitted = recipes.fit(recipes.recipe("digits"), pictures(classes))
    module = fitted.network.build()
    known = classes or 1
    about = {**fitted.network.about(), **fitted.objective.about()}
    assert about["shape"] == [3, 32, 32]
    assert about["labels"] == about["nulls"]["label"] == known
    x, t = torch.zeros(known + 1, 3, 32, 32), torch.zeros(known + 1)
    assert module(x, t, class_labels=torch.arange(known + 1)).sample.shape == x.shape  # the null has a row


def test_digits_fit_digits() -> None:
    assert recipes.fit(recipes.recipe("digits"), pictures(10, 1, 28)) == recipes.recipe("digits")


def test_oblong_pictures_are_refused() -> None:
    with pytest.raises(EbbError, match="size="):
        recipes.fit(recipes.recipe("digits"), Pictures(torch.zeros(2, 1, 8, 16, dtype=torch.uint8), None))


@pytest.mark.parametrize("name", ["digits", "classifier"])
def test_begin_goes_on_where_it_stopped(name: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 20, 30), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=array, labels=np.arange(40) % 10)
    first = recipes.begin(name, tmp_path / "d.npz", tmp_path / "out", steps=3)
    assert [p.step for p in itertools.islice(first, 2)] == [1, 2]
    first.close()  # type: ignore[attr-defined]
    assert [p.step for p in recipes.begin(name, tmp_path / "d.npz", tmp_path / "out", steps=3)] == [3]
    assert (tmp_path / "out" / "model" / "recipe.json").is_file()
    with pytest.raises(EbbError, match="steps"):
        next(recipes.begin(name, tmp_path / "d.npz", tmp_path / "out", steps=4))


def test_the_recipes_are_recipes() -> None:
    assert recipes.names() == ["classifier", "digits"]
    assert all(isinstance(recipes.recipe(n), Recipe) and recipes.recipe(n).name == n for n in recipes.names())
