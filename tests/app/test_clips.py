"""Clips are written as people look at them: in motion, or frame beside frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import ebbtide as ebb
from ebbtide import zoo
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model
from ebbtide.process.flow import Flow

FRAMES, SIDE = 3, 8


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Model:
    """A model of clips whose frame k is grey of its own, 0, 0.5 and 1, almost without noise."""
    grey = torch.linspace(-1, 1, FRAMES).reshape(FRAMES, 1, 1, 1).expand(FRAMES, 1, SIDE, SIDE)
    law = GaussianMixture(Flow(), [1.0], grey[None], 1e-6)
    model = Model("clips", law, torch.zeros(FRAMES, 1, SIDE, SIDE), medium="video", digest="d")
    monkeypatch.setattr(zoo, "names", lambda: ["clips"])
    monkeypatch.setattr(zoo, "load", lambda name, **_: model)
    monkeypatch.chdir(tmp_path)
    return model


def test_a_gif_holds_a_sheet_for_every_frame(clips: Model, run: Callable[..., Any]) -> None:
    assert "clips-0.gif" in run("sample clips -n 4 --steps 4").err
    shown = [np.asarray(f.convert("L")).max() for f in ImageSequence.Iterator(Image.open("clips-0.gif"))]
    assert shown == [64, 128, 255]  # the first is darker than the paper between the clips


def test_a_picture_shows_frames_side_by_side(clips: Model, run: Callable[..., Any]) -> None:
    run("sample clips -n 2 --steps 4 -o strip.png")
    pixels = np.asarray(Image.open("strip.png"))
    scale = (pixels.shape[0] - 6) // (2 * SIDE)  # one clip below the other, and margins of 2
    middle = pixels[2 + scale * SIDE // 2]
    assert [middle[2 + scale * (SIDE * k + SIDE // 2)] for k in range(FRAMES)] == [0, 128, 255]


def test_a_folder_holds_a_gif_for_every_clip(clips: Model, run: Callable[..., Any]) -> None:
    run("sample clips -n 2 --steps 4 -o each/ --frames")
    assert sorted(p.name for p in Path("each").iterdir()) == [
        "frames.gif",
        "plan.yaml",
        "seed-0000.gif",
        "seed-0001.gif",
    ]
    assert Image.open("each/seed-0000.gif").n_frames == FRAMES
    assert Image.open("each/frames.gif").n_frames == 4


def test_motion_and_the_way_there_do_not_fit_into_one_file(clips: Model, run: Callable[..., Any]) -> None:
    assert "--frames" in run("sample clips -o clips.gif --frames", code=2).err


def test_clips_are_strips(clips: Model) -> None:
    images = ebb.sample(clips, ebb.Plan(grid={"name": "linear", "steps": 4}), n=2).images()
    assert [image.size for image in images] == [(FRAMES * SIDE, SIDE)] * 2
    assert np.asarray(images[0])[0, ::SIDE].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("labels", "columns"), [("0,1,2", 3), ("0,1", 2), ("1", 4), ("0,1,2,0,1,2,0,1,2,0,1,1", 4)])
def test_conditions_in_turn_have_a_column_each(toy: Any, run: Callable[..., Any], labels: str, columns: int) -> None:
    """Where nothing is taken in turn, twelve pictures lie as square as they come."""
    run(f"sample toy --label {labels} -n 12 --steps 4 -o sheet.png")
    assert round(Image.open("sheet.png").width / 66) == columns
