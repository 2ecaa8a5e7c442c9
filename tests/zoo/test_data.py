"""Pictures from every form that a user may have them in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ebbtide.core.errors import EbbError
from ebbtide.zoo.data import Pictures, load_pictures


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)


LABELS = np.array([0, 1, 2, 0, 1, 2])


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path / "d.npz", **arrays)
    return path / "d.npz"


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images", "labels"),
        ("x_train", "y_train"),
        ("train_images", "train_labels"),
        ("X", "y"),
        ("data", "targets"),
        ("arr_0", "arr_1"),
    ],
)
def test_spellings(tmp_path: Path, array: np.ndarray, images: str, labels: str) -> None:
    got = load_pictures(npz(tmp_path, **{images: array, labels: LABELS}))
    assert got.pixels.dtype == torch.uint8
    assert torch.equal(got.pixels[:, 0], torch.from_numpy(array))
    assert got.labels is not None
    assert got.labels.tolist() == LABELS.tolist()
    assert got.digest == Pictures(torch.from_numpy(array)[:, None], torch.from_numpy(LABELS)).digest


def test_splits(tmp_path: Path, array: np.ndarray) -> None:
    path = npz(tmp_path, x_train=array[:4], y_train=LABELS[:4], x_test=array[4:], y_test=LABELS[4:])
    train, test = load_pictures(path), load_pictures(path, split="test")
    assert (len(train), len(test)) == (4, 2)
    assert torch.equal(torch.cat([train.pixels, test.pixels])[:, 0], torch.from_numpy(array))
    beside = npz(tmp_path, images=array[:1], x_train=array[:4], x_test=array[4:])
    assert [len(load_pictures(beside, split=s)) for s in ("train", "test")] == [4, 2]
    path = npz(tmp_path, x_train=array[:4])
    with pytest.raises(EbbError, match="x_train"):
        load_pictures(path, split="valid")


def test_range_of_pixels_is_that_of_bytes(tmp_path: Path, array: np.ndarray) -> None:
    array[0, 0, 0], array[0, 0, 1] = 0, 255
    x = load_pictures(npz(tmp_path, images=array)).x
    assert (x.min(), x.max()) == (-1, 1)
    unit = array / np.float32(255)
    for form in (unit, unit * 2 - 1, unit * 255, array.astype(np.int64)):
        assert torch.allclose(load_pictures(npz(tmp_path, images=form)).x, x, atol=1e-6)
    on = load_pictures(npz(tmp_path, images=array > 100)).x
    assert torch.equal(on[:, 0] > 0, torch.from_numpy(array > 100))


def test_channels_first_or_last(tmp_path: Path) -> None:
    colour = np.random.default_rng(1).integers(0, 256, (5, 3, 8, 10), dtype=np.uint8)
    first = load_pictures(npz(tmp_path, images=colour))
    last = load_pictures(npz(tmp_path, images=np.moveaxis(colour, 1, 3)))
    assert torch.equal(first.pixels, last.pixels)
    assert first.digest == last.digest


def test_rows_are_rows(tmp_path: Path, array: np.ndarray) -> None:
    got = load_pictures(npz(tmp_path, images=array, labels=LABELS))
    x, labels = got.rows(torch.tensor([5, 0]))
    assert torch.equal(x, got.x[[5, 0]])
    assert labels is not None
    assert labels.tolist() == [2, 0]


def test_digest_tells_data_apart(array: np.ndarray) -> None:
    pixels, labels = torch.from_numpy(array)[:, None], torch.from_numpy(LABELS)
    digests = {Pictures(pixels, labels).digest, Pictures(pixels, None).digest, Pictures(pixels, labels.flip(0)).digest}
    digests |= {Pictures(pixels.flip(0), labels).digest, Pictures(pixels.reshape(6, 1, 4, 16), labels).digest}
    assert len(digests) == 5


def test_smaller_pictures_keep_their_mean_and_their_centre(tmp_path: Path) -> None:
    wide = np.zeros((2, 8, 16), dtype=np.uint8)
    wide[:, :, 4:12] = 200  # the central square
    got = load_pictures(npz(tmp_path, images=wide), size=4)
    assert got.pixels.shape == (2, 1, 4, 4)
    assert (got.pixels == 200).all()


def folder(path: Path, array: np.ndarray, classes: bool) -> Path:
    for k, picture in enumerate(array):
        where = path / ("cat", "dog")[k % 2] if classes else path
        where.mkdir(exist_ok=True, parents=True)
        Image.fromarray(picture).save(where / f"{k}.png")
    return path


def test_folder_with_classes(tmp_path: Path, array: np.ndarray) -> None:
    got = load_pictures(folder(tmp_path / "d", array, classes=True))
    assert got.names == ("cat", "dog")
    assert got.labels is not None
    assert got.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(got.pixels[:, 0], torch.from_numpy(array[[0, 2, 4, 1, 3, 5]]))


def test_folder_without_classes(tmp_path: Path, array: np.ndarray) -> None:
    got = load_pictures(folder(tmp_path / "d", array, classes=False))
    assert got.labels is None
    assert torch.equal(got.pixels[:, 0], torch.from_numpy(array))


def test_folder_in_colour(tmp_path: Path, array: np.ndarray) -> None:
    folder(tmp_path / "d", array, classes=False)
    Image.new("RGB", (8, 8), (255, 0, 10)).save(tmp_path / "d" / "z.png")
    got = load_pictures(tmp_path / "d")
    assert got.pixels.shape == (7, 3, 8, 8)
    assert got.pixels[-1, :, 0, 0].tolist() == [255, 0, 10]
    assert torch.equal(got.pixels[0, 0], got.pixels[0, 2])


def test_folder_of_many_sizes_wants_one(tmp_path: Path, array: np.ndarray) -> None:
    folder(tmp_path / "d", array, classes=False)
    Image.new("L", (20, 12), 7).save(tmp_path / "d" / "z.png")
    with pytest.raises(EbbError, match="size="):
        load_pictures(tmp_path / "d")
    assert load_pictures(tmp_path / "d", size=8).pixels.shape == (7, 1, 8, 8)


def test_a_broken_picture_is_named_and_left_out(tmp_path: Path, array: np.ndarray) -> None:
    folder(tmp_path / "d", array, classes=False)
    (tmp_path / "d" / "broken.png").write_text("no picture")
    with pytest.warns(UserWarning, match=r"broken\.png"):
        assert len(load_pictures(tmp_path / "d")) == 6


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.npz", None, "there is no"),
        ("text.txt", b"hello", "no .npz"),
        ("broken.npz", b"hello", "cannot be read"),
        ("empty", "folder", "no readable picture"),
    ],
)
def test_bad_sources_say_so(tmp_path: Path, name: str, content: bytes | str | None, words: str) -> None:
    if content == "folder":
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("hello")
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EbbError, match=words):
        load_pictures(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures_of_me": np.zeros((2, 8, 8), np.uint8)}, "pictures_of_me"),
        ({"images": np.zeros((2, 8), np.uint8)}, "shape"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, "no picture"),
        ({"images": np.full((2, 8, 8), 300)}, "300"),
        ({"images": np.full((2, 8, 8), -7.0)}, "-7"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "3 labels"),
        ({"images": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
    ],
)
def test_bad_arrays_say_so(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(EbbError, match=words):
        load_pictures(npz(tmp_path, **arrays))


def test_hub_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(EbbError, match="pip install datasets"):
        load_pictures("hub:mnist")
