"""Files as conditions: what a command is given is written into the plan, and the plan alone repeats it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.app.conftest import SIDE, interrupt

import ebbtide as ebb
from ebbtide import zoo
from ebbtide.denoise import files

IMG2IMG = "--set start=encoded --set start.strength=0.5 --steps 4"
PLAN = ebb.Plan(start={"name": "encoded", "strength": 0.5}, grid={"name": "linear", "steps": 4})


@pytest.fixture
def picture(toy) -> torch.Tensor:
    """The bytes of cat.png in the folder of the test."""
    pixels = torch.arange(SIDE * SIDE, dtype=torch.uint8).reshape(SIDE, SIDE) * 4
    Image.fromarray(pixels.numpy()).save("cat.png")
    return pixels


def test_the_plan_beside_a_sample_repeats_what_it_was_given(run, picture):
    run(f"sample toy --label 0,1 -n 4 --given source=cat.png {IMG2IMG} -o a.npz")
    run("sample --plan a.plan.yaml -o b.npz")
    assert Path("a.plan.yaml").read_text() == Path("b.plan.yaml").read_text()
    assert np.array_equal(np.load("a.npz")["x"], np.load("b.npz")["x"])


def test_what_a_file_holds_is_what_python_gives(run, picture):
    run(f"sample toy --label 1 -n 2 --given source=cat.png {IMG2IMG} -o a.npz")
    source = (picture.float() / 127.5 - 1).expand(2, 1, SIDE, SIDE)
    same = ebb.sample(zoo.load("toy"), PLAN, cond={"label": 1, "source": source}, n=2)
    assert np.array_equal(np.load("a.npz")["x"], same.x.numpy())


def test_several_files_of_one_name_are_taken_in_turn(run, picture):
    Image.new("L", (SIDE, SIDE), 255).save("white.png")
    run(
        "sample toy -n 4 --given source=cat.png --given source=white.png --set start=encoded --set start.strength=0 -o a.npz"
    )
    x = np.load("a.npz")["x"]
    assert (x[1::2] == 1).all()
    assert np.array_equal(x[0], x[2])
    assert not np.array_equal(x[0], x[1])


def test_no_label_beside_a_file_is_the_null_label(picture):
    model = zoo.load("toy")
    told = model.condition({"source": ebb.file("cat.png")}, 3)
    assert torch.equal(told["label"], model.condition(None, 3)["label"])
    assert told["source"].shape == (3, 1, SIDE, SIDE)


def test_a_file_that_changed_is_said_and_one_that_is_gone_is_refused(run, refused, picture):
    run(f"sample toy --label 1 -n 1 --given source=cat.png {IMG2IMG} -o a.npz")
    Image.new("L", (SIDE, SIDE)).save("cat.png")
    assert "cat.png is not what it was" in run("sample --plan a.plan.yaml -o b.npz").err
    Path("cat.png").unlink()
    refused("sample --plan a.plan.yaml -o c.npz", "cat.png cannot be read: No such file")


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("cat.png", "write NAME=FILE"),
        ("source=nowhere.png", "nowhere.png cannot be read: No such file"),
        ("source=text.png", "text.png cannot be read as a picture"),
        ("source=points.npy", "where the samples are"),
    ],
)
def test_what_cannot_be_given_is_said_in_one_sentence(toy, refused, given, word):
    Path("text.png").write_text("no picture")
    np.save("points.npy", np.zeros((2, 3), dtype=np.float32))
    refused(f"sample toy --label 1 -n 1 --given {given} {IMG2IMG} -o a.npz", word)


def test_a_picture_is_none_for_a_model_of_points(toy, refused):
    Image.new("L", (2, 2)).save("cat.png")
    refused(
        f"sample points -n 1 --given source=cat.png {IMG2IMG} -o a.npz", "cat.png is none for it; give an .npy file"
    )


def test_resumed_runs_keep_what_they_were_given(toy, run, picture):
    line = f"sample toy --label 1 -n 4 --batch 2 --given source=cat.png {IMG2IMG}"
    run(f"{line} -o b.npz")
    toy.calls, toy.at = 0, {3: interrupt}
    run(f"{line} -o a.npz", code=130)
    toy.at = {}
    run("resume a.state.safetensors")
    assert np.array_equal(np.load("a.npz")["x"], np.load("b.npz")["x"])


@pytest.mark.parametrize("size", [(56, 28), (28, 56)])
def test_fitting_keeps_the_middle(size):
    wide, high = size
    pixels = torch.arange(wide, dtype=torch.uint8).expand(1, 1, high, wide)
    fitted = files.fitted(pixels, (28, 28))
    assert fitted.shape == (1, 1, 28, 28)
    row = fitted[0, 0, 14]
    side = min(size)
    assert abs(int(row[0]) - (wide - side) // 2) <= 1
    assert abs(int(row[-1]) - (wide + side) // 2) <= 1


def test_a_mask_is_true_where_it_is_bright(tmp_path):
    Image.fromarray(np.array([[0, 100], [200, 255]], dtype=np.uint8)).save(tmp_path / "m.png")
    found = files.read(ebb.file(tmp_path / "m.png", mask=True), torch.zeros(3, 2, 2))
    assert found.tolist() == [[[False, False], [True, True]]]


def test_names_of_files_are_plain_data(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    about = ebb.file(tmp_path / "a.png", fit=True)
    assert json.loads(json.dumps(about)) == about
    assert files.named(about)
    assert files.named([about, about])
    assert not files.named([about, 3])
    assert not files.named({"label": torch.zeros(1)})
