"""`ebb sample`: what it writes is what was asked for, and its plan alone repeats it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ebbtide.core.plan import Plan

SAMPLE = "sample toy -n 5 --guidance 2 --steps 6 --solver dpmpp-2m --grid karras --seed 3"


def x_of(path: str) -> np.ndarray:
    return np.load(path)["x"]


def test_a_plan_alone_repeats_the_picture(toy: Any, run: Callable[..., Any]) -> None:
    run(f"{SAMPLE} --label 1 -o one.png")
    assert Path("one.png").exists()
    run("sample --plan one.plan.yaml -o two.png")
    run("sample --plan one.png -o three.png")
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes() == Path("three.png").read_bytes()
    run("sample --plan one.png --seed 4 -o four.png")
    assert Path("four.png").read_bytes() != Path("one.png").read_bytes()


def test_the_plan_says_what_was_asked(toy: Any, run: Callable[..., Any]) -> None:
    run(f"{SAMPLE} --label 0,2 --batch 2 --dtype float64 --set grid.rho=5 -o one.png")
    plan = yaml.safe_load(Path("one.plan.yaml").read_text())
    assert plan["grid"] == {"name": "karras", "steps": 6, "rho": 5}
    assert plan["guide"] == [{"name": "cfg", "scale": 2.0}]
    assert plan["solve"] == {"name": "dpmpp-2m"}
    asked = {"model": "toy", "digest": "d1", "cond": [0, 2, 0, 2, 0], "n": 5, "seed": 3, "batch": 2, "dtype": "float64"}
    assert {k: plan["run"][k] for k in asked} == asked


def test_options_beside_a_plan_win(toy: Any, run: Callable[..., Any]) -> None:
    """Element j of a run has seed + j, so elements 2 and 3 of the first are the whole of the second."""
    run(f"{SAMPLE} --label 1 -o all.npz")
    run("sample --plan all.plan.yaml -n 2 --seed 5 -o some.npz")
    assert np.array_equal(x_of("some.npz"), x_of("all.npz")[2:4])
    run("sample --plan all.plan.yaml --steps 9 --guidance 4 --solver heun --grid linear -o other.npz")
    other = Plan.load("other.plan.yaml").to_dict()
    assert other["grid"] == {"name": "linear", "steps": 9}
    assert other["solve"] == {"name": "heun"}
    assert other["guide"] == [{"name": "cfg", "scale": 4.0}]


def test_another_grid_keeps_the_steps(toy: Any, run: Callable[..., Any]) -> None:
    run(f"{SAMPLE} -o a.npz")
    run("sample --plan a.plan.yaml --grid linear -o b.npz")
    assert Plan.load("b.plan.yaml").to_dict()["grid"] == {"name": "linear", "steps": 6}


def test_labels_in_turn_unless_one_is_chosen(toy: Any, run: Callable[..., Any]) -> None:
    told = run("sample toy -n 4 --steps 4 -o turn.npz")
    assert "labels 0 to 2 in turn" in told.err
    assert np.load("turn.npz")["labels"].tolist() == [0, 1, 2, 0]
    run("sample toy -n 4 --steps 4 --label 1 -o one.npz")
    assert np.array_equal(x_of("one.npz")[1], x_of("turn.npz")[1])
    assert not np.array_equal(x_of("one.npz")[2], x_of("turn.npz")[2])
    quiet = run("sample toy -n 4 --steps 4 --label none -o none.npz")
    assert "in turn" not in quiet.err
    # no label said, and none in the plan: repeating it must not fall back to labels in turn
    run("sample --plan none.plan.yaml -o again.npz")
    assert np.array_equal(x_of("none.npz"), x_of("again.npz"))


def test_guidance_of_one_is_no_guidance(toy: Any, run: Callable[..., Any]) -> None:
    run("sample toy -n 3 --steps 5 -o plain.npz")
    calls = json.loads(run("sample toy -n 3 --steps 5 --guidance 1 -o one.npz --json").out)["calls"]
    assert calls == 15
    assert np.array_equal(x_of("plain.npz"), x_of("one.npz"))


def test_a_folder_holds_one_picture_a_sample_each_with_its_own_plan(toy: Any, run: Callable[..., Any]) -> None:
    run(f"{SAMPLE} --batch 2 -o pics")
    files = sorted(p.name for p in Path("pics").iterdir())
    assert files == ["plan.yaml", *(f"seed-000{s}.png" for s in range(3, 8))]
    run("sample --plan pics/seed-0005.png -o one")
    one, same = (Path(f) / "seed-0005.png" for f in ("one", "pics"))
    assert Plan.load(one).run == {**Plan.load(same).run}  # type: ignore[dict-item]
    assert one.read_bytes() == same.read_bytes()
    run("sample --plan pics/plan.yaml -o all")
    assert all((Path("all") / f).read_bytes() == (Path("pics") / f).read_bytes() for f in files)


def test_the_sheet_and_the_folder_show_the_same_pixels(toy: Any, run: Callable[..., Any]) -> None:
    run("sample toy -n 4 --steps 4 -o pics")
    run("sample toy -n 4 --steps 4 -o sheet.png")
    sheet = np.asarray(Image.open("sheet.png"))
    scale = 8  # pictures of 8 pixels are shown 64 pixels wide
    for k in range(4):
        top, left = 2 + k // 2 * 66, 2 + k % 2 * 66
        one = np.asarray(Image.open(f"pics/seed-000{k}.png"))
        assert np.array_equal(sheet[top : top + 64, left : left + 64], one.repeat(scale, 0).repeat(scale, 1))


def test_arrays_are_the_samples_and_their_bytes_repeat(toy: Any, run: Callable[..., Any]) -> None:
    run("sample toy -n 3 --steps 4 --seed 7,1,9 -o a.npz")
    run("sample --plan a.plan.yaml -o b.npz")
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    with np.load("a.npz", allow_pickle=False) as file:
        assert file["x"].shape == (3, 1, 8, 8)
        assert file["seeds"].tolist() == [7, 1, 9]
        assert yaml.safe_load(str(file["plan"]))["run"]["seed"] == [7, 1, 9]
    run("sample toy -n 1 --steps 4 --seed 1 --label 1 -o c.npz")
    assert np.array_equal(x_of("c.npz")[0], x_of("a.npz")[1])
    run("sample --plan a.plan.yaml -n 2 -o d.npz")
    assert np.load("d.npz")["seeds"].tolist() == [7, 1]


@pytest.mark.parametrize("options", ["--frames -o way.png", "-o way.gif"])
def test_frames_end_in_the_sheet(toy: Any, run: Callable[..., Any], options: str) -> None:
    """The labels are three, so both have three columns."""
    run(f"sample toy -n 12 --steps 5 {options}")
    run("sample toy -n 12 --steps 5 -o sheet.png")
    gif = Image.open("way.gif")
    assert gif.n_frames == 5  # type: ignore[attr-defined]
    gif.seek(4)
    assert np.array_equal(np.asarray(gif.convert("L")), np.asarray(Image.open("sheet.png")))
    gif.seek(0)
    assert not np.array_equal(np.asarray(gif.convert("L")), np.asarray(Image.open("sheet.png")))


def test_json_is_all_of_stdout(toy: Any, run: Callable[..., Any]) -> None:
    said = json.loads(run(f"{SAMPLE} -o a.png --frames --json").out)
    assert said["files"] == ["a.png", "a.gif", "a.plan.yaml"]
    assert said["calls"] == 5 * 6 * 2  # samples, steps, and both sides of the guidance
    assert said["failed"] == []
    assert said["calls_per_second"] == pytest.approx(said["calls"] / said["seconds"], rel=0.1)


def test_quiet_says_nothing(toy: Any, run: Callable[..., Any]) -> None:
    told = run("sample toy -n 2 --steps 2 -q")
    assert told.out == told.err == ""


def test_without_a_name_a_new_one_is_found(toy: Any, run: Callable[..., Any]) -> None:
    for k in range(3):
        run(f"sample toy -n 1 --steps 2 --seed {k}")
    assert sorted(p.name for p in Path().glob("*.png")) == ["toy-0.png", "toy-1.png", "toy-2.png"]
    run("sample points -n 3 --steps 4")
    assert Path("points-0.npz").exists()


def test_what_exists_is_kept_unless_told(toy: Any, run: Callable[..., Any]) -> None:
    run("sample toy -n 1 --steps 2 -o a.png")
    before = Path("a.png").read_bytes()
    told = run("sample toy -n 1 --steps 2 --seed 9 -o a.png", code=2)
    assert "--overwrite" in told.err
    assert Path("a.png").read_bytes() == before
    Path("a.png").unlink()
    assert "a.plan.yaml" in run("sample toy -n 1 --steps 2 --seed 9 -o a.png", code=2).err
    run("sample toy -n 1 --steps 2 -o a.png")  # the plan beside it is the same
    assert Path("a.png").read_bytes() == before
    run("sample toy -n 1 --steps 2 --seed 9 -o a.png --overwrite")
    assert Path("a.png").read_bytes() != before
    run("sample toy -n 2 --steps 2 -o d")
    assert "--overwrite" in run("sample toy -n 1 --seed 1 --steps 2 -o d", code=2).err
    assert toy.calls == 4 * 2  # what is refused is refused before the work


def test_other_weights_are_pointed_out(toy: Any, run: Callable[..., Any]) -> None:
    run("sample toy -n 1 --steps 2 --label 0 -o a.png")
    Path("b.yaml").write_text(Path("a.plan.yaml").read_text().replace("digest: d1", "digest: d2"))
    assert "weights differ" in run("sample --plan b.yaml -o b.png").err
    assert "weights differ" not in run("sample --plan a.plan.yaml -o c.png").err


def test_plans_without_a_run_take_a_model(toy: Any, run: Callable[..., Any]) -> None:
    Path("p.yaml").write_text("solve: heun\ngrid: {name: linear, steps: 3}\n")
    assert "name a model" in run("sample --plan p.yaml", code=2).err
    said = json.loads(run("sample toy --plan p.yaml -n 2 --json -o a.png").out)
    assert said["calls"] == 2 * (2 + 2 + 1)  # Heun lands on the data with one call


def test_one_spoilt_sample_fails_alone(toy: Any, run: Callable[..., Any]) -> None:
    """Steps of 1/8: the answer at t = 3/8, that of step 6, is the first one below a half."""
    run("sample toy -n 5 --steps 8 -o good.npz")
    run("sample toy -n 5 --steps 8 -o good")
    toy.spoilt = 2
    told = run("sample toy -n 5 --steps 8 --seed 0 -o bad.npz --json", code=1)
    assert "sample 2 (seed 2) is not finite from step 6 on" in told.err
    assert json.loads(told.out)["failed"] == [{"place": 2, "seed": 2, "step": 6}]
    good, bad = x_of("good.npz"), x_of("bad.npz")
    assert np.array_equal(np.delete(good, 2, 0), np.delete(bad, 2, 0))
    assert not np.isfinite(bad[2]).any()

    run("sample toy -n 5 --steps 8 -o bad", code=1)
    names = lambda folder: {p.name for p in Path(folder).iterdir()}  # noqa: E731
    assert names("good") - names("bad") == {"seed-0002.png"}

    run("sample toy -n 5 --steps 8 -o bad.png", code=1)
    cell = np.asarray(Image.open("bad.png"))[2:66, 2 + 2 * 66 : 66 + 2 * 66]
    assert np.unique(cell).size == 2  # the paper and the cross
    assert (np.diag(cell) == np.diag(cell[::-1])).all()
    assert cell[0, 0] != cell[0, 32]


BAD = {
    "sample tey -o a.png": "did you mean toy",
    "sample": "name a model",
    "sample toy --solver hein -o a.png": "did you mean heun",
    "sample toy --grid karas -o a.png": "did you mean karras",
    "sample toy --process flou -o a.png": "did you mean flow",
    "sample toy --steps 0 -o a.png": "steps",
    "sample toy --steps -3 -o a.png": "steps",
    "sample toy --eta 1.5 -o a.png": "eta",
    "sample toy --solver heun --eta 0.5 -o a.png": "no parameter 'eta'",
    "sample toy -n 0 -o a.png": "at least 1",
    "sample toy --batch 0 -o a.png": "at least one",
    "sample toy --label 3 -o a.png": "labels 0 to 2",
    "sample toy --label seven -o a.png": "--label",
    "sample toy --seed x -o a.png": "--seed",
    "sample toy --seed 1,2 -n 3 -o a.png": "2 seeds",
    "sample points --label 1 -o a.npz": "knows no labels",
    "sample points --guidance 2 -o a.npz": "'null'",
    "sample toy --dtype int8 -o a.png": "int8",
    "sample toy --device tpu9 -o a.png": "tpu9",
    "sample toy --data here -o a.png": "two models",
    "sample toy --size 9 -o a.png": "--size",
    "sample toy --plan nope.yaml -o a.png": "nope.yaml",
    "sample toy --set grid.foo=1 -o a.png": "no parameter 'foo'",
    "sample toy --set steps=1 -o a.png": "slot.param=value",
    "sample toy --set solve=[euler] -o a.png": "solve must be the name of a part",
    "sample toy --set start=encoded --set start.strength=2 -o a.png": "less than or equal to 1",
    "sample toy --set guide.scale=1 -o a.png": "holds no part",
    "sample toy --set 'grid={name: explicit, times: [0.1, 0.9]}' -o a.png": "must fall",
    "sample toy --grid adaptive -o a.png": "heun",
    "sample toy -o a.pgn": "did you mean .png",
    "sample toy -o a.txt": "makes no text",
    "sample points -o a.png": "no pictures",
    "sample points --frames -o a.npz": "no pictures",
    "sample points --preview -o a.npz": "makes none",
    "sample toy -o file/a.png": "file",
    "resume nothing.safetensors": "nothing.safetensors",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_sentence_and_code_2(toy: Any, refused: Callable[[str, str], None], line: str) -> None:
    Path("file").write_text("in the way")
    refused(line, BAD[line])
    assert [p.name for p in Path().iterdir()] == ["file"]
    assert toy.calls == 0


def test_pictures_of_ones_own(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With noise gone the exact denoiser's answer is one of the pictures, and the plan knows where they lie."""
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    Path("mine").mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image).save(f"mine/{k}.png")
    Path("mine/broken.png").write_text("no picture")
    told = run("sample --data mine --denoiser exact -n 4 --steps 30 -o new")
    assert "note: 1 pictures of mine cannot be opened" in told.err
    for file in sorted(Path("new").glob("*.png")):
        assert min(np.abs(np.asarray(Image.open(file)).astype(int) - image).max() for image in images) <= 1
    run("sample --plan new/plan.yaml -o again")
    assert all((Path("again") / p.name).read_bytes() == p.read_bytes() for p in Path("new").iterdir())
    assert Plan.load("new/plan.yaml").run["denoiser"] == "exact"  # type: ignore[index]
    run("sample mine --size 4 -n 2 --steps 2 -o small.npz")  # named without --data, the local denoiser
    assert x_of("small.npz").shape == (2, 1, 4, 4)
    Path("mine").rename("gone")
    assert "there is no mine" in run("sample --plan new/plan.yaml -o last", code=2).err
    Path("mine").mkdir()
    assert "no readable picture" in run("sample --plan new/plan.yaml -o last", code=2).err
    run("sample --plan new/plan.yaml --data gone -o last")
    assert (Path("last") / "seed-0003.png").exists()
    assert "'exat'" in run("sample --data gone --denoiser exat -o more", code=2).err


def test_labelled_pictures_are_drawn_from_all_classes_unless_told(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.arange(3)[:, None, None] * np.full((1, 6, 6), 100, dtype=np.uint8)
    np.savez("mine.npz", images=images.astype(np.uint8), labels=np.arange(3))
    run("sample --data mine.npz --denoiser exact -n 20 --steps 20 -o any.npz")
    assert len(np.unique(x_of("any.npz").round(2))) == 3
    run("sample --data mine.npz --denoiser exact -n 20 --steps 20 --label 1 -o one.npz")
    assert np.allclose(x_of("one.npz"), 100 / 127.5 - 1, atol=1e-3)
