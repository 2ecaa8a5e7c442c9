"""Files: whole or not at all, refused before the work where they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ebbtide as ebb
from ebbtide import zoo
from ebbtide.app import output
from ebbtide.app.files import free, said, whole, writable
from ebbtide.core.errors import EbbError
from ebbtide.denoise.model import Model
from ebbtide.samples import Samples


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"

    def fail(error: Exception) -> None:
        with whole(file) as part:
            part.write_text("new")
            raise error

    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
    assert list(tmp_path.iterdir()) == []
    file.write_text("old")
    with pytest.raises(EbbError, match="cannot be written"):
        fail(OSError(28, "No space left on device"))
    assert file.read_text() == "old"
    with whole(file) as part:
        part.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "new"


def test_folders_are_made_and_tried(tmp_path: Path) -> None:
    writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(EbbError, match="nothing can be written"):
        writable(tmp_path / "file")


def test_free_names_step_over_all_suffixes(tmp_path: Path) -> None:
    assert free("x", ".png", tmp_path).name == "x-0.png"
    for name in ("x-0.npz", "x-1.plan.yaml", "x-3.png", "xy-2.png"):
        (tmp_path / name).touch()
    assert free("x", ".png", tmp_path).name == "x-2.png"


def test_paths_as_people_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(tmp_path / "a" / "b.png") == "a/b.png"
    assert said(Path("a.png")) == "a.png"
    assert said(Path("/elsewhere/a.png")) == "/elsewhere/a.png"


def test_names_in_a_folder_are_as_many_as_samples() -> None:
    folder = Path("new")
    assert [p.name for p in output.names(folder, [3, 12])] == ["seed-0003.png", "seed-0012.png"]
    for seeds in ([5, 5, 7], [-1, 1, 123456], list(range(20000, 20003))):
        names = output.names(folder, seeds)
        assert len(set(names)) == len(seeds)
        assert [p.name for p in names] == sorted(p.name for p in names) or min(seeds) < 0


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".npz", ""])
def test_python_saves_what_the_command_line_saves(toy: Any, suffix: str) -> None:
    out = ebb.sample(zoo.load("toy"), cond=[0, 1, 2], n=3)
    path = Path(f"a{suffix}")
    files = out.save(path)
    assert all(f.exists() for f in files)
    assert len(files) == (2 if suffix else 4)
    again = ebb.Plan.load(output.beside(path, ".plan.yaml"))
    assert again == out.plan
    with pytest.raises(EbbError, match="overwrite"):
        out.save(path)
    assert out.save(path, overwrite=True) == files


def test_a_lossless_sheet_is_the_same_in_both_forms(toy: Any) -> None:
    out = ebb.sample(zoo.load("toy"), cond=[0, 1, 2], n=3)
    out.save("a.png")
    out.save("a.webp")
    assert np.array_equal(np.asarray(Image.open("a.png")), np.asarray(Image.open("a.webp").convert("L")))


def test_colour_and_its_crosses(tmp_path: Path) -> None:
    x = torch.zeros(2, 3, 8, 8)
    x[1, 0, 0, 0] = torch.nan
    model = Model("c", None, x[0], medium="image")  # type: ignore[arg-type]
    files = output.write(Samples(x, model, ebb.Plan(), [0, 1]), tmp_path / "a.png")
    image = np.asarray(Image.open(files[0]))
    cross = image[2:66, 68:132]
    assert image.shape[2] == 3
    assert (cross[0, 0] == (200, 60, 60)).all()
    assert not (cross == image[2:66, 2:66]).all()


def test_a_trajectory_needs_a_trace(toy: Any) -> None:
    out = ebb.sample(zoo.load("toy"), cond=1, n=1)
    with pytest.raises(EbbError, match="trace=True"):
        out.save("a.gif")


def test_long_trajectories_are_thinned_and_keep_both_ends(toy: Any) -> None:
    plan = ebb.Plan(grid={"name": "linear", "steps": 250})
    out = ebb.sample(zoo.load("toy"), plan, cond=1, n=1, trace=True)
    out.save("a.gif")
    gif = Image.open("a.gif")
    assert 50 < gif.n_frames <= 100  # type: ignore[attr-defined]
    gif.seek(gif.n_frames - 1)  # type: ignore[attr-defined]
    out.save("a.png")
    assert np.array_equal(np.asarray(gif.convert("L")), np.asarray(Image.open("a.png")))


def text_model(words: list[str]) -> Model:
    return Model("words", None, torch.zeros(1, dtype=torch.int64), medium="text", decode=lambda row: words[int(row[0])])  # type: ignore[arg-type]


@pytest.mark.parametrize(("words", "want"), [(["a", "b"], "a\nb\n"), (["a\nc", "b"], "a\nc\n---\nb\n")])
def test_text(tmp_path: Path, words: list[str], want: str) -> None:
    samples = Samples(torch.tensor([[0], [1]]), text_model(words), ebb.Plan(), [0, 1])
    output.write(samples, tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == want
    output.write(samples, tmp_path / "a")
    assert (tmp_path / "a" / "seed-0001.txt").read_text() == "b\n"
    with pytest.raises(EbbError, match="no pictures"):
        output.write(samples, tmp_path / "b.png")


def test_the_plan_of_one_sample() -> None:
    plan = ebb.Plan(run={"model": "m", "n": 3, "seed": 5, "batch": 2, "cond": {"label": [4, 5, 6], "style": 1}})
    assert output.alone(plan, 1).run == {"model": "m", "n": 1, "seed": 6, "cond": {"label": 5, "style": 1}}
    plan = ebb.Plan(run={"n": 2, "seed": [9, 3], "cond": 7})
    assert output.alone(plan, 1).run == {"n": 1, "seed": 3, "cond": 7}
