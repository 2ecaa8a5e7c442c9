"""Contact sheets: samples side by side on one picture, clips in motion, and the GIF of how samples came to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebbtide.core.tree import Tree
from ebbtide.samples import finite_rows, sheet, to_images

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_CELL = 64
_FRAMES = 100


def contact(x: Tree, medium: str = "image", columns: int | None = None, cell: int = _CELL) -> Image:
    """One sheet of all samples, small pictures enlarged by a whole factor; those that are not finite are crossed out.

    columns   of the sheet; by default such that it is about square
    cell      how many pixels across a sample is made, at most, unless it is larger

    Raises EbbError where the samples are no pictures.
    """
    images = to_images(x, medium)
    good = finite_rows(x).tolist()
    marked = [image if fine else crossed(image) for image, fine in zip(images, good, strict=True)]
    return sheet(marked, columns, scale=max(1, cell // min(images[0].size)))


def motion(x: Tensor, columns: int | None = None) -> list[tuple[Image, int]]:
    """A sheet for each frame of clips (n, F, C, H, W), and for how many milliseconds it is shown."""
    return [(contact(x[:, k], columns=columns), 120) for k in range(x.shape[1])]


def crossed(image: Image) -> Image:
    """An empty cell of the same size and mode, with a cross."""
    from PIL import Image, ImageDraw

    cell = Image.new("RGB", image.size, (40, 40, 40))
    right, bottom = image.width - 1, image.height - 1
    draw = ImageDraw.Draw(cell)
    draw.line((0, 0, right, bottom), fill=(200, 60, 60))
    draw.line((0, bottom, right, 0), fill=(200, 60, 60))
    return cell.convert(image.mode)


def trajectory(trace: list[Tree], medium: str = "image", columns: int | None = None) -> list[tuple[Image, int]]:
    """A sheet for each step, at most a hundred of them, and for how many milliseconds it is shown; the last one stays."""
    count = len(trace)
    kept = sorted({round(k * (count - 1) / max(1, min(count, _FRAMES) - 1)) for k in range(min(count, _FRAMES))})
    each = max(40, min(120, 3000 // max(1, len(kept))))
    shown = [contact(trace[k], medium, columns) for k in kept]
    side = shown[-1].size  # a step of another size is shown as large as the last
    shown = [image if image.size == side else image.resize(side) for image in shown]
    return [(image, 2000 if k == count - 1 else each) for image, k in zip(shown, kept, strict=True)]
