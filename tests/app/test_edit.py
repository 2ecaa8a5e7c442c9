"""`ebb edit`: a picture under another condition, its plan, its sheet, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ebbtide as ebb
from conftest import SIDE, interrupt
from ebbtide import zoo


@pytest.fixture
def picture(toy) -> torch.Tensor:
    """Something between the first label's picture and nothing, in cat.png."""
    x = torch.linspace(-0.8, 0.8, SIDE).expand(SIDE, SIDE)
    pixels = ((x + 1) * 127.5).round().to(torch.uint8)
    Image.fromarray(pixels.numpy()).save("cat.png")
    return pixels.float()[None] / 127.5 - 1


@pytest.mark.parametrize("by", ["edit-friendly", "magicmix", "encoded"])
def test_the_plan_repeats_the_edits(run, picture, by: str):
    told = "--from-label 0" if by == "edit-friendly" else ""
    run(f"edit toy cat.png --label 1 {told} --by {by} --steps 10 -n 3 -o a.npz")
    run("sample --plan a.plan.yaml -o b.npz")
    assert Path("a.plan.yaml").read_text() == Path("b.plan.yaml").read_text()
    assert np.array_equal(np.load("a.npz")["x"], np.load("b.npz")["x"])


def test_an_edit_is_what_python_gives(run, picture):
    run("edit toy cat.png --label 1 --from-label 0 --steps 10 --guidance 2 --strength 0.7 -n 3 -o a.npz")
    plan = ebb.Plan(
        solve="ancestral",
        grid={"name": "linear", "steps": 10},
        guide={"name": "cfg", "scale": 2.0},
        start={"name": "edit-friendly", "strength": 0.7, "scale": 1.0},
        correct=["residual"],
    )
    cond = {"label": 1, "source": picture[None], "from": {"label": 0}}
    assert np.array_equal(np.load("a.npz")["x"], ebb.sample(zoo.load("toy"), plan, cond=cond, n=3).x.numpy())


def test_under_its_own_label_and_no_guidance_the_picture_comes_back(run, picture):
    run("edit toy cat.png --label 0 --from-label 0 --guidance 1 --steps 10 -n 2 -o a.npz")
    assert float((torch.from_numpy(np.load("a.npz")["x"]) - picture).abs().max()) < 1e-5


def test_further_from_the_picture_is_nearer_to_the_label(run, picture):
    wanted = zoo.load("toy").denoiser.law.means.reshape(-1, 1, SIDE, SIDE)[1]  # type: ignore[attr-defined]
    far = []
    for strength in (0.2, 0.6, 1.0):
        run(f"edit toy cat.png --label 1 --from-label 0 --strength {strength} --steps 10 -o a.npz --overwrite")
        far.append(float((torch.from_numpy(np.load("a.npz")["x"]) - wanted).square().mean()))
    assert far[0] > 2 * far[1]
    assert far[1] > far[2]


def test_the_sheet_shows_the_picture_first(run, picture):
    run("edit toy cat.png --label 1 --from-label 0 --steps 6 -n 3 -o a.png")
    with Image.open("a.png") as sheet:
        scale = 64 // SIDE
        assert sheet.size == (2 * (SIDE * scale + 2) + 2,) * 2  # one picture and three edits
        cell = np.asarray(sheet.convert("L"))[2 : 2 + SIDE * scale : scale, 2 : 2 + SIDE * scale : scale]
    assert np.array_equal(cell, np.asarray(Image.open("cat.png")))


def test_several_pictures_and_labels_are_taken_in_turn(run, picture):
    Image.new("L", (SIDE, SIDE), 255).save("white.png")
    run("edit toy cat.png white.png --label 1,2 --from-label 0 --steps 6 -n 4 -o a.png")
    with Image.open("a.png") as sheet:
        cells = np.asarray(sheet.convert("L"))
        assert (cells[2 : 2 + 64, 2 + 66 : 2 + 66 + 64] == 255).all()  # the first row: both pictures, in their columns
        assert sheet.size == (2 * 66 + 2, 3 * 66 + 2)


def test_a_stopped_edit_goes_on(run, picture, toy):
    line = "edit toy cat.png --label 1 --from-label 0 --steps 10 -n 4 --batch 2"
    run(f"{line} -o whole.npz")
    toy.calls, toy.at = 0, {20: interrupt}
    run(f"{line} -o a.npz", code=130)
    toy.at = {}
    run("resume a.state.safetensors")
    assert np.array_equal(np.load("a.npz")["x"], np.load("whole.npz")["x"])


def test_json_says_what_was_written(run, picture):
    said = json.loads(run("edit toy cat.png --label 1 --from-label 0 --steps 6 --json -o a.png").out)
    assert said["files"] == ["a.png", "a.plan.yaml"]
    assert said["n"] == 4


def test_what_nobody_chose_is_said(run, picture):
    Image.new("L", (3 * SIDE, 2 * SIDE), 90).save("wide.png")
    told = run("edit toy wide.png --label 1 --steps 6 -o a.png").err
    assert f"wide.png is {3 * SIDE} x {2 * SIDE} and is made {SIDE} x {SIDE}" in told
    assert "--from-label says what it shows" in told


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("edit toy cat.png", "say what the picture is to become"),
        ("edit toy cat.png --label 7", "labels 0 to 2, not 7"),
        ("edit toy cat.png --label 1 --from-label 9", "labels 0 to 2, not 9"),
        ("edit toy cat.png --label 1 --from-prompt cat", "not asked in words"),
        ("edit toy cat.png --label 1 --from-label 0 --from-prompt cat", "leave one out"),
        ("edit toy cat.png --label 1 --by majicmix", "magicmix"),
        ("edit toy cat.png --label 1 --by encoded --from-label 0", "--from-label is read by --by edit-friendly"),
        ("edit toy cat.png --label 1 --strength 2", "between 0 and 1"),
        ("edit toy cat.png --label 1 --strength 0.01", "makes none of 30 steps"),
        ("edit points cat.png --label 1", "makes no pictures"),
        ("edit toy gone.png --label 1", "gone.png cannot be read"),
        ("edit toy cat.png --label 1 --set solve=euler", "needs 'stochastic'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(refused, picture, line: str, words: str):
    refused(f"{line} -o a.png", words)
    assert not Path("a.png").exists()
