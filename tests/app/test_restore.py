"""`ebb restore`: the picture and its report, the plan that repeats it, a run that goes on, and bad input in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.app.conftest import SIDE, interrupt

import ebbtide as ebb
from ebbtide import zoo

HALF = "restore toy half.png --mask hole.png --steps 6 -n 3 "


@pytest.fixture
def files(toy: Any) -> torch.Tensor:
    """half.png, hole.png, small.png: the picture of label 0, whose values grow from left to right."""
    row = torch.linspace(0, 255, SIDE).round().to(torch.uint8)
    whole = row.expand(SIDE, SIDE).clone()
    hole = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    hole[SIDE // 2 :] = 255
    Image.fromarray(torch.where(hole > 0, torch.tensor(130, dtype=torch.uint8), whole).numpy()).save("half.png")
    Image.fromarray(hole.numpy()).save("hole.png")
    small = whole.float().reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3)).round().to(torch.uint8)
    Image.fromarray(small.numpy()).save("small.png")
    Path("lens.py").write_text(
        "def mirror(x, gain=1.0):\n    return gain * x.flip(-1)\n\n\ndef thing(x):\n    return x\n"
    )
    return whole.float() / 127.5 - 1


@pytest.mark.parametrize("by", ["copaint", "red-diff"])
def test_what_is_seen_is_met_and_the_hole_is_filled(run: Any, files: torch.Tensor, by: str) -> None:
    told = json.loads(run(f"{HALF} --by {by} --steps 40 --noise 0.1 --json -o a.npz").out)
    x = torch.from_numpy(np.load("a.npz")["x"])
    seen, hidden = x[:, 0, : SIDE // 2], x[:, 0, SIDE // 2 :]
    assert float((seen - files[: SIDE // 2]).abs().mean()) < 0.15
    # only the picture of label 0 grows from left to right
    assert float((hidden - files[SIDE // 2 :]).abs().mean()) < 0.3
    rms = float((seen - files[: SIDE // 2]).square().sum((1, 2)).div(SIDE * SIDE).sqrt().mean())
    assert told["restored"]["residual"] == pytest.approx(rms, rel=0.05)
    assert told["restored"]["noise"] == 0.1


def test_the_plan_beside_it_repeats_it_and_the_picture_shows_the_report(run: Any, files: torch.Tensor) -> None:
    run(f"{HALF} -o a.png")
    run("sample --plan a.plan.yaml -o b.png")
    run("sample --plan a.png -o c.npz")
    a, b = (np.array(Image.open(f"{k}.png")) for k in "ab")
    assert np.array_equal(a, b)
    x = torch.from_numpy(np.load("c.npz")["x"])
    cell = (a.shape[1] - 2) // 3
    tiles = [
        a[2 + r * cell :][: cell - 2, 2 + c * cell :][:, : cell - 2][:: (cell - 2) // SIDE, :: (cell - 2) // SIDE]
        for r in range(2)
        for c in range(3)
    ]
    pixels = lambda v: ((v + 1) * 127.5).clamp(0, 255).round().numpy()  # noqa: E731
    assert np.abs(tiles[1].astype(float) - pixels(x.double().mean(0)[0])).max() <= 1
    assert np.abs(tiles[2].astype(float) - pixels(2 * x.double().std(0)[0] - 1)).max() <= 1
    for k in range(3):
        assert np.abs(tiles[3 + k].astype(float) - pixels(x[k, 0])).max() <= 1


def test_other_operators_and_ones_own(run: Any, files: torch.Tensor) -> None:
    run("restore toy small.png --operator downsample --with factor=2 --steps 20 -n 2 --by red-diff -o a.npz")
    x = torch.from_numpy(np.load("a.npz")["x"])
    assert float((x[:, 0] - files).abs().mean()) < 0.3
    Image.fromarray(((files.flip(-1) + 1) * 127.5).round().to(torch.uint8).numpy()).save("turned.png")
    run("restore toy turned.png --operator lens.py:mirror --with gain=1 --steps 20 -n 2 --by red-diff -o b.npz")
    assert float((torch.from_numpy(np.load("b.npz")["x"])[:, 0] - files).abs().mean()) < 0.3


def test_a_run_that_was_stopped_ends_in_the_same_files(run: Any, toy: Any, files: torch.Tensor) -> None:
    run(f"{HALF} -o whole.png")
    toy.calls, toy.at = 0, {9: interrupt}
    run(f"{HALF} -o cut.png", code=130)
    toy.at = {}
    run("resume cut.state.safetensors")
    assert np.array_equal(np.array(Image.open("whole.png")), np.array(Image.open("cut.png")))
    assert Path("whole.plan.yaml").read_text() == Path("cut.plan.yaml").read_text()


def test_it_is_what_python_does(run: Any, files: torch.Tensor) -> None:
    run(f"{HALF} --seed 5 -o a.npz")
    plan = ebb.Plan.load("a.plan.yaml").replace(run=None)
    cond = {"measured": ebb.file("half.png"), "mask": ebb.file("hole.png", mask=True)}
    same = ebb.sample(zoo.load("toy"), plan, cond=cond, n=3, seed=5)
    assert np.array_equal(np.load("a.npz")["x"], same.x.numpy())


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("restore toy half.png", "needs --mask"),
        ("restore toy half.png --operator blur --mask hole.png", "takes no mask"),
        ("restore toy half.png --mask hole.png --by magic", "--by magic"),
        ("restore toy half.png --operator blurr", "no operator"),
        ("restore toy half.png --operator blur --with wide=2", "no parameter 'wide'"),
        ("restore toy half.png --operator blur --with width", "PARAM=VALUE"),
        ("restore toy half.png --operator lens.py:gone", "no function 'gone'"),
        ("restore toy half.png --operator gone.py:f", "no file"),
        ("restore toy gone.png --mask hole.png", "gone.png"),
        ("restore toy half.png --mask black.png", "no hole"),
        ("restore toy half.png --mask white.png", "hides everything"),
        ("restore toy half.png --operator downsample --with factor=2", "must agree"),
        ("restore toy half.png --operator grayscale", "3 channels"),
        ("restore toy half.png --mask hole.png --noise -1", "standard deviation"),
        ("restore points half.png --mask hole.png", "no pictures"),
    ],
)
def test_bad_input_is_one_sentence(refused: Any, files: torch.Tensor, line: str, word: str) -> None:
    Image.new("L", (SIDE, SIDE), 0).save("black.png")
    Image.new("L", (SIDE, SIDE), 255).save("white.png")
    refused(line, word)
    assert not Path("toy-0.png").exists()
