"""`ebb zoo`: what it says of the shipped models is so, and `ebb explain` says the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ebbtide import zoo
from ebbtide.app.shipped import about, figures, weights_of


def test_the_table_has_every_model_once(run: Callable[..., Any]) -> None:
    told = run("zoo").out.splitlines()
    first = [line.split()[0] for line in told[1:] if line and not line[0].isspace()]
    for name in zoo.names():
        assert first.count(name) == 1
        recipe = json.loads((zoo.folder(name) / "recipe.json").read_text())
        line = next(text for text in told if text.startswith(f"{name} "))
        assert recipe["medium"] in line
    assert f"{len(zoo.names())} models" in told[-1]


@pytest.mark.parametrize("name", ["digits", "classifier"])
def test_sizes_are_those_of_the_network_and_its_files(name: str, run: Callable[..., Any]) -> None:
    from ebbtide.zoo import classifier, models

    told = json.loads(run(f"zoo {name} --json").out)
    module: Any = classifier.load() if name == "classifier" else models.network(zoo.folder(name))[0]
    assert told["parameters"] == sum(p.numel() for p in module.parameters())
    assert told["MB"] == pytest.approx(
        sum(f.stat().st_size for f in zoo.folder(name).glob("*.safetensors")) / 1e6, 1e-2
    )
    recipe = json.loads((zoo.folder(name) / "recipe.json").read_text())
    assert {k: told[k] for k in ("shape", "predicts", "command", "figures")} == {
        k: recipe[k] for k in ("shape", "predicts", "command", "figures")
    }


def test_a_page_is_that_of_explain(run: Callable[..., Any]) -> None:
    for name in zoo.names():
        page = run(f"zoo {name}").out
        assert page == run(f"explain {name}").out
        assert str(about(name)["command"]) in page
        for figure, value in figures(about(name)["figures"]):
            assert any(figure in line and line.rstrip().endswith(value) for line in page.splitlines())


def test_the_list_as_json_is_the_models_one_by_one(run: Callable[..., Any]) -> None:
    assert json.loads(run("zoo --json").out) == [json.loads(run(f"zoo {name} --json").out) for name in zoo.names()]


def test_weights_are_counted_without_reading_them(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {"a": torch.zeros(3, 4, dtype=torch.float16), "b": torch.zeros(())}, tmp_path / "w.safetensors", {"x": "y"}
    )
    assert weights_of(tmp_path / "w.safetensors") == 13


def test_figures_within_figures_carry_both_names() -> None:
    assert figures({"a_b": 0.5, "c": {"d": 2}}) == [("a b", "0.5"), ("c, d", "2")]


def test_an_unknown_model_is_one_sentence(refused: Callable[[str, str], None]) -> None:
    refused("zoo digts", "did you mean digits")


def test_a_recipe_that_cannot_be_read_is_one_sentence(
    refused: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "recipe.json").write_text("{")
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    refused("zoo broken", "cannot be read")
    refused("zoo", "cannot be read")
