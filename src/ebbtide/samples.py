"""What `ebb.sample` gives back: the samples, how they were made, and their forms for people."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.core.tree import Tree, leaves

if TYPE_CHECKING:
    from PIL.Image import Image

    from ebbtide.denoise.model import Model


class Failure(NamedTuple):
    """An element that became infinite or not a number: its place, its seed, and the step at which it did."""

    place: int
    seed: int
    step: int

    def __str__(self) -> str:
        return f"sample {self.place} (seed {self.seed}) is not finite from step {self.step} on"


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of one model, best read through `images()`, `text()` and `save(path)`.

    x        the samples (n, ...), a tensor or a dict of fields; rows of `failed` elements are not finite
    plan     the plan, with `run:` filled in, so that it alone repeats the samples
    seeds    one an element
    calls    network evaluations, summed over elements
    seconds  wall time of the run
    failed   elements that did not stay finite
    remarks  what parts of the plan have to say of the run, one sentence each: a reward that could not be read, say
    trace    x after every step, on the CPU, where a trace was asked for
    """

    x: Tree
    model: Model
    plan: Plan
    seeds: list[int]
    calls: int = 0
    seconds: float = 0.0
    failed: list[Failure] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    trace: list[Tree] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.seeds)

    @functools.cached_property
    def pixels(self) -> Tree:
        """The samples as pixels in [-1, 1]: `x` itself, or what its latents stand for."""
        return self.model.pixels(self.x)

    def images(self) -> list[Image]:
        """The samples as pictures. Raises EbbError where the model makes none."""
        return to_images(self.pixels, self.model.medium)

    def text(self) -> list[str]:
        """The samples as text. Raises EbbError where the model makes none."""
        return self.model.text(self.x)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> list[Path]:
        """Write the samples and, beside them, their plan; gives the files written.

        A picture suffix makes one contact sheet with the plan embedded, .npz arrays, .txt text, and a folder
        (no suffix) one picture or text file for each sample.

        Raises EbbError for an unknown suffix, and for a file that exists unless `overwrite`.
        """
        from ebbtide.app.output import write

        return write(self, Path(path), overwrite)


def to_images(x: Tree, medium: str = "image") -> list[Image]:
    """Pixels in [-1, 1], (n, C, H, W) with 1, 3 or 4 channels, as pictures; clips (n, F, C, H, W) as strips of frames.

    Raises EbbError for any other shape.
    """
    from PIL import Image

    if medium == "video" and isinstance(x, Tensor) and x.ndim == 5:
        medium, x = "image", x.movedim(1, -2).flatten(-2)
    if medium != "image" or not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] not in (1, 3, 4):
        raise EbbError("these samples are no pictures; save them as .npz instead.")
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[x.shape[1]]
    pixels = to_pixels(x).numpy()
    return [Image.fromarray(p[..., 0] if mode == "L" else p, mode) for p in pixels]


def to_pixels(x: Tensor) -> Tensor:
    """Pixels in [-1, 1], (n, C, H, W), as bytes (n, H, W, C) on the CPU; what is not finite is black."""
    scaled = ((x.detach().float().nan_to_num(-1.0, 1.0, -1.0) + 1) * 127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).movedim(1, -1).cpu()


def sheet(images: Sequence[Image], columns: int | None = None, margin: int = 2, scale: int = 1) -> Image:
    """Pictures of one size side by side, row by row, as square a whole as they come to."""
    from PIL import Image

    wide, high = images[0].size
    columns = columns or min(len(images), math.ceil(math.sqrt(len(images) * high / wide)))
    rows = math.ceil(len(images) / columns)
    width, height = (side * scale + margin for side in images[0].size)
    paper = Image.new(images[0].mode, (columns * width + margin, rows * height + margin), _grey(images[0].mode))
    for k, image in enumerate(images):
        big = image if scale == 1 else image.resize((width - margin, height - margin), Image.Resampling.NEAREST)
        paper.paste(big, (margin + k % columns * width, margin + k // columns * height))
    return paper


def _grey(mode: str) -> int | tuple[int, ...]:
    return 64 if mode == "L" else (64, 64, 64, 255)[: len(mode)]


def finite_rows(x: Tree) -> Tensor:
    """Which elements hold finite numbers only, (n,) on the CPU; token ids always do."""
    rows: Tensor | None = None
    for leaf in leaves(x).values():
        good = leaf.flatten(1).isfinite().all(1).cpu() if leaf.is_floating_point() else torch.ones(len(leaf)) > 0
        rows = good if rows is None else rows & good
    assert rows is not None
    return rows
