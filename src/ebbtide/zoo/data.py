"""Pictures to learn from or to compare with: an npz file, a folder, or a data set of the hub when asked for by name.

Pixels stay in the bytes they came in; float pictures in [-1, 1] are made row by row, when wanted.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.denoise.files import fitted, planes

IMAGES = ("images", "image", "x", "data", "pixels", "arr_0")
LABELS = ("labels", "label", "y", "targets", "target", "classes", "arr_1")
HUB = {"mnist": "ylecun/mnist", "fashion": "zalando-datasets/fashion_mnist"}
ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Pictures:
    """A set of pictures.

    pixels  (N, C, H, W) uint8, or float32 in [-1, 1]
    labels  (N,) int64, or None
    names   of the classes, where the source names them
    digest  sha256 of pixels and labels: the name of this data in checkpoints and recipes
    """

    pixels: Tensor
    labels: Tensor | None
    names: tuple[str, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.digest:
            h = hashlib.sha256(repr((tuple(self.pixels.shape), str(self.pixels.dtype))).encode())
            for v in (self.pixels, self.labels):
                if v is not None:
                    h.update(v.contiguous().numpy().data)
            object.__setattr__(self, "digest", h.hexdigest())

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def x(self) -> Tensor:
        """All pictures, (N, C, H, W) float32 in [-1, 1]: made anew at each call, four times the bytes."""
        return self._float(self.pixels)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The pictures `index` (n,), float32 in [-1, 1], and their labels."""
        return self._float(self.pixels[index]), None if self.labels is None else self.labels[index]

    @staticmethod
    def _float(v: Tensor) -> Tensor:
        return v.float().div_(127.5).sub_(1) if v.dtype == torch.uint8 else v


def load_pictures(path: str | Path, size: int | None = None, split: str = "train") -> Pictures:
    """Read pictures from an .npz or .npy file, a folder, or "hub:NAME".

    path    .npz with images under one of `IMAGES` and labels under one of `LABELS` (also `x_train`, `train_labels`...);
            a folder of pictures, or of one subfolder a class; "hub:mnist" or "hub:owner/name" with the extra `datasets`
    size    make every picture size x size: the largest central square, resampled; None keeps them as they are
    split   which part of a source that has several: "train" or "test"

    Raises EbbError when there is nothing there, no readable picture, or pictures of several sizes without `size`.
    """
    if str(path).startswith("hub:"):
        return _from_hub(str(path).removeprefix("hub:"), size, split)
    path = Path(path)
    if path.is_dir():
        return _from_folder(path, size)
    if not path.is_file():
        raise EbbError(f"there is no {path}: give an .npz file, a folder of pictures, or hub:NAME.")
    if path.suffix not in (".npz", ".npy"):
        raise EbbError(f"{path} is no .npz, .npy or folder of pictures; put pictures into a folder.")
    return _from_arrays(path, size, split)


def _from_arrays(path: Path, size: int | None, split: str) -> Pictures:
    try:
        file: Any = np.load(path, allow_pickle=False)
        held = {"images": file} if isinstance(file, np.ndarray) else file
        image, label = (_key(list(held), known, split) for known in (IMAGES, LABELS))
        if image is None:
            raise EbbError(
                f"{path} holds {', '.join(held)}, but no pictures: name the array one of {', '.join(IMAGES)}."
            )
        array, labels = held[image], None if label is None else np.asarray(held[label]).reshape(-1)
    except (OSError, ValueError) as error:
        if isinstance(error, EbbError):
            raise
        raise EbbError(f"{path} cannot be read: {error}.") from error
    pixels = _sized(_bytes(_planes(array, path), path), size)
    if labels is not None and len(labels) != len(pixels):
        raise EbbError(f"{path} holds {len(pixels)} pictures and {len(labels)} labels.")
    return Pictures(pixels, None if labels is None else torch.from_numpy(labels.astype(np.int64)))


def _key(held: list[str], known: tuple[str, ...], split: str) -> str | None:
    """The first spelling that is there, one with the split's name before one without."""
    lower = {k.lower(): k for k in held}
    for form in ("{0}_{1}", "{1}_{0}", "{1}{0}", "{0}{1}", "{0}"):
        for name in known:
            if form.format(name, split) in lower:
                return lower[form.format(name, split)]
    return None


def _planes(array: np.ndarray, path: Path) -> np.ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W)."""
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] in (1, 3, 4):
        return array
    if array.ndim == 4 and array.shape[3] in (1, 3, 4):
        return np.moveaxis(array, 3, 1)
    raise EbbError(
        f"{path} holds an array of shape {array.shape}; pictures are (N, H, W), (N, H, W, C) or (N, C, H, W)."
    )


def _bytes(array: np.ndarray, path: Path) -> Tensor:
    """uint8 as it is; whole numbers of 0..255 as uint8; floats of [0, 1], [-1, 1] or [0, 255] as float32 in [-1, 1]."""
    if array.size == 0:
        raise EbbError(f"{path} holds no picture.")
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array))
    if array.dtype == np.bool_:
        return torch.from_numpy(np.ascontiguousarray(array)).to(torch.uint8) * 255
    low, high = float(array.min()), float(array.max())
    if low < -1 or high > 255 or (low < 0 and high > 1):
        raise EbbError(f"{path} holds pixels from {low:g} to {high:g}; bring them into 0..255, [0, 1] or [-1, 1].")
    if np.issubdtype(array.dtype, np.integer):
        if low < 0:
            raise EbbError(f"{path} holds whole numbers from {low:g} to {high:g}; bring them into 0..255.")
        return torch.from_numpy(array.astype(np.uint8))
    x = torch.from_numpy(array.astype(np.float32))
    return x if low < 0 else x * (2 / (1 if high <= 1 else 255)) - 1


def _sized(pixels: Tensor, size: int | None) -> Tensor:
    """Squares of this size, or all as they are."""
    return pixels if size is None else fitted(pixels, (size, size))


def _from_folder(path: Path, size: int | None) -> Pictures:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    sizes, colour, good, bad = set[tuple[int, int]](), False, list[Path](), list[Path]()
    for file in files:
        try:
            with Image.open(file) as picture:
                sizes.add(picture.size)
                colour |= picture.mode not in ("1", "L", "I;16", "LA")
                good.append(file)
        except OSError:
            bad.append(file)
    if not good:
        why = (
            f"{len(bad)} files, none of which can be opened"
            if bad
            else f"no file ending in {', '.join(sorted(ENDINGS))}"
        )
        raise EbbError(f"{path} holds no readable picture: {why}.")
    if bad:
        warnings.warn(
            f"{len(bad)} pictures of {path} cannot be opened and are left out, first {bad[0].name}", stacklevel=3
        )
    if size is None and len(sizes) > 1:
        raise EbbError(f"{path} holds pictures of {len(sizes)} sizes; give size= to make them one.")
    wide, high = (size, size) if size is not None else next(iter(sizes))
    pixels = torch.empty((len(good), 3 if colour else 1, high, wide), dtype=torch.uint8)
    for row, file in zip(pixels, good, strict=True):
        row.copy_(_sized(planes(file, "RGB" if colour else "L")[None], size)[0])
    inside = [file.relative_to(path).parts for file in good]
    if any(len(parts) == 1 for parts in inside):
        return Pictures(pixels, None)
    names = tuple(sorted({parts[0] for parts in inside}))
    return Pictures(pixels, torch.tensor([names.index(parts[0]) for parts in inside]), names)


def _from_hub(name: str, size: int | None, split: str) -> Pictures:
    try:
        import datasets
    except ImportError:
        raise EbbError(f"reading {name} from the hub needs `pip install datasets`; or give a file or folder.") from None
    try:
        table = datasets.load_dataset(HUB.get(name, name), split=split)
    except Exception as error:  # the library raises many kinds: offline, unknown, gated
        raise EbbError(f"{name} cannot be had from the hub ({type(error).__name__}: {error}).") from error
    image, label = (_key(table.column_names, known, split) for known in (("img", *IMAGES), LABELS))
    if image is None:
        raise EbbError(f"{name} has columns {', '.join(table.column_names)}, but none of pictures.")
    rows = [np.asarray(picture) for picture in table[image]]
    if size is None and len({r.shape for r in rows}) > 1:
        raise EbbError(f"{name} holds pictures of several sizes; give size= to make them one.")
    pixels = torch.cat([_sized(_bytes(_planes(r[None], Path(name)), Path(name)), size) for r in rows])
    return Pictures(pixels, None if label is None else torch.tensor(table[label]))
