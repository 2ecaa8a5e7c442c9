"""Pictures in the terminal, two pixels a character: the upper half block in the colour of one before that of the other.

Text as it forms, too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ebbtide.core.errors import EbbError
from ebbtide.core.tree import Tree

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.style import Style
    from rich.text import Text

_SMALLEST = 14


class Blocks:
    """A picture as rich draws it, each pixel half a character high."""

    def __init__(self, image: Image) -> None:
        self.image = image.convert("RGB")

    def lines(self) -> Iterator[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
        """Row by row, the colours (above, below) of every character; a last odd row stands over black."""
        import numpy as np

        pixels = np.asarray(self.image)
        if len(pixels) % 2:
            pixels = np.concatenate([pixels, np.zeros_like(pixels[:1])])
        for above, below in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
            yield [(tuple(a), tuple(b)) for a, b in zip(above, below, strict=True)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        for line in self.lines():
            for above, below in line:
                yield Segment("▀", _style(above, below))
            yield Segment.line()


@functools.lru_cache(maxsize=1 << 16)
def _style(above: tuple[int, ...], below: tuple[int, ...]) -> Style:
    from rich.color import Color
    from rich.style import Style

    return Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))


def layout(n: int, width: int, height: int, columns: int, rows: int) -> tuple[int, int, float]:
    """How `n` pictures of width x height go into columns x rows pixels: (pictures a row, rows of them, their scale).

    As large as they come, not above their own size; when even 14 pixels are too many, only the first ones that fit.
    """

    def fit(across: int) -> float:
        down = math.ceil(n / across)
        return min((columns - across - 1) / (across * width), (rows - down - 1) / (down * height), 1.0)

    across = max(range(1, n + 1), key=lambda k: (fit(k), k))
    scale, down = fit(across), math.ceil(n / across)
    floor = min(1.0, _SMALLEST / min(width, height))
    if scale < floor:
        scale = floor
        across = max(1, int((columns - 1) / (width * scale + 1)))
        down = min(math.ceil(n / across), max(1, int((rows - 1) / (height * scale + 1))))
    else:
        across = math.ceil(n / down)
    return across, down, scale


def picture(x: Tree, columns: int, rows: int, medium: str = "image") -> Blocks:
    """The first samples of x, as many as fit into columns x rows characters; of clips the frames in the middle.

    Raises EbbError where the samples are no pictures.
    """
    from PIL import Image

    from ebbtide.core.tree import leaves
    from ebbtide.samples import sheet, to_images

    first = next(iter(leaves(x).values()))
    if medium == "video" and first is x and x.ndim == 5:
        medium, x = "image", x[:, x.shape[1] // 2]
        first = x
    if medium != "image" or first is not x or x.ndim != 4:
        raise EbbError("a preview shows pictures, and this model makes none; leave --preview out.")
    across, down, scale = layout(len(x), x.shape[3], x.shape[2], columns, 2 * rows)
    images = to_images(x[: across * down], medium)
    if scale < 1.0:
        side = (max(1, int(images[0].width * scale)), max(1, int(images[0].height * scale)))
        images = [image.resize(side, Image.Resampling.BOX) for image in images]
    return Blocks(sheet(images, columns=min(across, len(images)), margin=1))


def letters(texts: list[str], before: list[str], rows: int) -> Text:
    """As many texts as fit into rows of characters; what is hidden is faint, and what was not there before is bold."""
    from rich.text import Text

    out, left = Text(), rows
    for j, text in enumerate(texts):
        left -= text.count("\n") + 1
        if left < 0 and j:
            break
        last = before[j] if j < len(before) and len(before[j]) == len(text) else text
        for new, old in zip(text, last, strict=True):
            out.append(new, "dim" if new == "_" else "bold green" if new != old else "")
        out.append("\n")
    return out
