"""`ebb train`: what it trains can be gone on with, and a stopped run ends in the weights of one that was not."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from conftest import interrupt
from ebbtide.app import screen, stopping
from ebbtide.learn import train
from ebbtide.zoo import recipes
from ebbtide.zoo.language import MaskedLM
from ebbtide.zoo.networks import DiT

Run = Callable[..., Any]
SIDE = 8


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of 40 tiny pictures in an empty folder, and a small recipe for them beside the others."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, SIDE, SIDE), dtype=np.uint8)
    np.savez("data.npz", images=images, labels=np.arange(40) % 3)
    small = replace(recipes.DIGITS, name="small", network=DiT(layers=1, heads=1, width=8), batch=8, steps=6)
    monkeypatch.setitem(recipes._RECIPES, "small", small)
    return tmp_path


def weights(folder: str) -> bytes:
    return next((Path(folder) / "model").glob("*.safetensors")).read_bytes()


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Ctrl-C while step number `steps` is computed."""
    count = itertools.count(1)
    rate = train.rate_of
    monkeypatch.setattr(train, "rate_of", lambda *a: (interrupt() if next(count) == steps else None, rate(*a))[1])


def test_stopped_and_gone_on_with_is_never_stopped(pictures: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("train classifier --data data.npz --steps 5 --out whole")
    stop_after(monkeypatch, 3)
    line = "train classifier --data data.npz --steps 5 --out part"
    monkeypatch.setattr("sys.argv", ["ebb", *line.split()])
    told = run(line, code=130)
    assert "stopped at step 3 of 5" in told.err
    assert f"Go on with: ebb {line}" in told.err
    assert not Path("part/model").exists()
    told = run(line)
    assert "part/model" in told.err
    assert weights("part") == weights("whole")


def test_what_was_trained_can_be_sampled(pictures: Path, run: Run) -> None:
    told = run("train small --data data.npz --out mine --seed 1")
    assert "ebb sample mine/model" in told.err
    said = json.loads(run("sample mine/model -n 4 --steps 3 --guidance 2 -o a.npz --json").out)
    assert said["model"] == "mine/model"
    assert np.load("a.npz")["x"].shape == (4, 1, SIDE, SIDE)
    assert np.load("a.npz")["labels"].tolist() == [0, 1, 2, 0]
    run("sample --plan a.plan.yaml -o b.npz")
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    assert json.loads(Path("mine/model/recipe.json").read_text())["recipe"]["seed"] == 1


def test_a_terminal_shows_text(pictures: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, height=30, highlight=False)
    monkeypatch.setattr(screen, "stderr", lambda: console)
    network = MaskedLM(length=16, layers=1, heads=1, width=16, hidden=16)
    monkeypatch.setitem(recipes._RECIPES, "small", replace(recipes.SHAKESPEARE, name="small", network=network, batch=4))
    Path("d.txt").write_text("abba " * 20)
    run("train small --data d.txt --steps 2 --out mine")
    for word in ("75 windows", "2/2", "windows/s", "ebb sample"):
        assert word in file.getvalue() + run("train small --data d.txt --steps 2 --out mine").err
    run("sample mine/model -n 2 --steps 4 -o a.txt")
    assert set(Path("a.txt").read_text()) <= set("ab -\n0123456789#[]:()") | set("seed ")


def test_a_terminal_shows_figures_and_samples(pictures: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=100, height=30, highlight=False)
    monkeypatch.setattr(screen, "stderr", lambda: console)
    run("train small --data data.npz --steps 2 --out mine")
    for word in ("40 pictures", "2/2", "loss ", "pictures/s", "▀"):
        assert word in file.getvalue()


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("train digit --data data.npz", "did you mean digits"),
        ("train digits", "hub:mnist"),
        ("train digits --data gone.npz", "gone.npz"),
        ("train shakespeare", "--data FILE.txt"),
        ("train shakespeare --data gone.txt", "gone.txt"),
        ("train emoji --data data.npz", "of x and name"),
        ("train emoji --data data.npz --size 8", "leave the size out"),
        ("train digits --data data.npz --out data.npz", "nothing can be written"),
        ("train classifier --data data.npz --steps 0", "at least 1"),
        ("train digits --data data.npz --device tpu9", "tpu9"),
    ],
)
def test_bad_input(pictures: Path, refused: Callable[[str, str], None], line: str, word: str) -> None:
    refused(line, word)


def test_another_run_in_the_folder_is_not_overwritten(pictures: Path, run: Run) -> None:
    run("train classifier --data data.npz --steps 2 --out mine")
    before = weights("mine")
    assert "differs" in run("train classifier --data data.npz --steps 2 --seed 4 --out mine", code=2).err
    assert weights("mine") == before


def test_the_command_is_told_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/ebb", "train", "digits", "--data", "my pictures"])
    assert stopping.again() == "ebb train digits --data 'my pictures'"
