"""Conditions from files: a picture to edit, a mask, a measurement, named in plain data so that a plan holds them.

    cond = {"label": 8, "source": ebb.file("three.png", fit=True), "mask": ebb.file("hole.png", mask=True)}

`ebb.file` says which file and what it held: {"file": "three.png", "digest": "91c0...", "fit": True}. A model reads it where it
reads its conditions, so `run:` in a plan repeats what was done, and warns where the file has changed since.

    pictures         (C, H, W) in [-1, 1], in as many colours as the model's own
    fit              the largest part of the middle that has the shape of the model's pictures, resampled to their size
    mask             (1, H, W), true where the picture is bright
    .npy             the array as it is, one element of a condition

Source   the crop and resampling are those that pictures for training go through
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.tree import Tree

COLOURS = {1: "L", 3: "RGB", 4: "RGBA"}


def file(path: str | os.PathLike[str], *, fit: bool = False, mask: bool = False) -> dict[str, Any]:
    """What a condition says of a file; see above. Raises EbbError where there is none or it cannot be read."""
    about: dict[str, Any] = {"file": str(path), "digest": _digest(Path(path))}
    about |= {"fit": True} if fit else {}
    return about | ({"mask": True} if mask else {})


def named(value: Any) -> bool:
    """Whether a leaf of a condition names a file, or a list of files."""
    if isinstance(value, list):
        return bool(value) and all(map(named, value))
    return isinstance(value, Mapping) and isinstance(value.get("file"), str)


def read(about: Mapping[str, Any], like: Tree) -> Tensor:
    """What the file holds, for a model whose elements are like `like`.

    Raises EbbError where it is gone or is no picture; warns where it changed since it was named.
    """
    path = Path(about["file"])
    if about.get("digest") not in (None, _digest(path)):
        warnings.warn(
            f"{path} is not what it was when the plan was written, so neither will the samples be", stacklevel=2
        )
    if path.suffix.lower() == ".npy":
        return _array(path)
    shape = (*like.shape,) if isinstance(like, Tensor) else ()
    if len(shape) != 3 or shape[0] not in COLOURS:
        raise EbbError(
            f"this model makes no pictures of 1, 3 or 4 channels, so {path} is none for it; give an .npy file."
        )
    pixels = planes(path, "L" if about.get("mask") else COLOURS[shape[0]])
    if about.get("fit"):
        pixels = fitted(pixels[None], shape[-2:])[0]
    return pixels > 127 if about.get("mask") else pixels.float() / 127.5 - 1


def planes(path: Path, mode: str) -> Tensor:
    """A picture as bytes (C, H, W), in this mode of Pillow. Raises EbbError for a file that is none."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as picture:
            array = np.array(picture.convert(mode))
    except OSError as error:
        raise EbbError(
            f"{path} cannot be read as a picture: {error.strerror or 'it is none that is known'}."
        ) from error
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, 2, 0)))


def fitted(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """The largest part of the middle in the shape of `size`, resampled with antialiasing, a few hundred at a time."""
    (high, wide), (h, w) = pixels.shape[-2:], size
    if (high, wide) == (h, w):
        return pixels
    tall, broad = min(high, wide * h // w), min(wide, high * w // h)
    top, left = (high - tall) // 2, (wide - broad) // 2
    out = pixels.new_empty((*pixels.shape[:2], h, w))
    for part, to in zip(pixels[..., top : top + tall, left : left + broad].split(256), out.split(256), strict=True):
        x = torch.nn.functional.interpolate(part.float(), (h, w), mode="bilinear", antialias=True)
        to.copy_(x.round().clamp(0, 255) if pixels.dtype == torch.uint8 else x)
    return out


def _array(path: Path) -> Tensor:
    import numpy as np

    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, TypeError) as error:
        raise EbbError(f"{path} cannot be read as an array: {error}.") from error


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise EbbError(f"{path} cannot be read: {error.strerror}.") from error
