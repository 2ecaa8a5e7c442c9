"""Heat maps: a square for each row and column, as an SVG that stands alone and as lines of a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

from ebbtide.app.chart import FONT, INK, text

if TYPE_CHECKING:
    from rich.text import Text

# From pale to dark along one path of lightness, so that it reads in grey too (after the ends of matplotlib's YlGnBu).
SCALE = ((255, 255, 217), (199, 233, 180), (65, 182, 196), (34, 94, 168), (8, 29, 88))
SHADES = "·░▒▓█"
CELL, HIGH, TOP, LETTER = 22, 18, 76, 7.3


class Row(NamedTuple):
    """A row: its name, what is told at its end, and its values; NaN is left blank."""

    name: str
    end: str
    values: Sequence[float]


def colour(share: float) -> tuple[int, int, int]:
    """The colour of a share of the scale, 0 to 1."""
    at = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    k = min(int(at), len(SCALE) - 2)
    low, high, part = SCALE[k], SCALE[k + 1], at - k
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(low, high, strict=True))
    return red, green, blue


def fill(share: float) -> str:
    """The colour of a share as an attribute of SVG."""
    return 'fill="#{:02x}{:02x}{:02x}"'.format(*colour(share))


def heat(rows: Sequence[Row], title: str, about: str, x: str, first: int, top: float) -> str:
    """The map as the text of an SVG file; `x` says what columns are, the first of which is number `first`.

    top   the value of the darkest colour
    """
    left = 24 + LETTER * max(len(row.name) for row in rows)
    columns = max(len(row.values) for row in rows)
    right = left + CELL * columns
    width = right + 24 + LETTER * max(len(row.end) for row in rows)
    height = TOP + HIGH * len(rows) + 78
    every = math.ceil(columns / 16)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}" height="{height}" '
        f'font-family="{FONT}" font-size="13" fill="{INK}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width:g}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="16" font-weight="600">{escape(title)}</text>',
        f'<g fill="#666666" font-size="12">{text(16, 46, about)}</g>',
        *(text(left + CELL * (k + 0.5), TOP - 8, str(first + k), "middle") for k in range(0, columns, every)),
    ]
    for number, row in enumerate(rows):
        y = TOP + HIGH * number
        body.append(text(left - 8, y + 13, row.name, "end"))
        body.append(text(right + 8, y + 13, row.end))
        for k, value in enumerate(row.values):
            if value == value:
                told = f"<title>{escape(row.name)}, {x} {first + k}: {value:.3g}</title>"
                place = f'x="{left + CELL * k:g}" y="{y}" width="{CELL - 1}" height="{HIGH - 1}"'
                body.append(f"<rect {place} {fill(value / top)}>{told}</rect>")
    return "\n".join([*body, *_legend(left, TOP + HIGH * len(rows) + 30, x, top), "</svg>"]) + "\n"


def _legend(left: float, y: float, x: str, top: float) -> list[str]:
    """What columns are, and the scale of colours."""
    cells = []
    for k in range(11):
        cells.append(f'<rect x="{left + 14 * k:g}" y="{y + 10}" width="14" height="12" {fill(k / 10)}/>')
    ends = [text(left, y + 38, "0%", "middle"), text(left + 154, y + 38, f"{top:.0%}", "middle")]
    return [text(left, y - 6, f"{x}, counted from the first"), *cells, *ends]


def line(values: Sequence[float], top: float, wide: int) -> Text:
    """A row as blocks, at most `wide` of them, coloured and the fuller the higher; neighbours are averaged to fit."""
    from rich.style import Style
    from rich.text import Text

    out = Text(no_wrap=True)
    each = math.ceil(len(values) / wide)
    for k in range(0, len(values), each):
        some = values[k : k + each]
        share = sum(some) / len(some) / top
        red, green, blue = colour(share)
        block = SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)]
        out.append(block if len(values) > wide / 2 else 2 * block, Style(color=f"rgb({red},{green},{blue})"))
    return out
