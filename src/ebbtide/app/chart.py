"""Charts: lines on two logarithmic axes, as an SVG that stands alone, and what other pictures are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

# Okabe and Ito's colours, told apart by readers who see fewer of them, the yellow darkened for a white ground.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d00", "#333333")
DASHES = ("", "6 3", "2 3")
PLOT, HEIGHT = 520, 470
LEFT, TOP, BOTTOM = 76, 48, 56
INK, PALE, FONT = "#222222", "#e3e3e3", "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
_ROW = 22


class Line(NamedTuple):
    """A name for the legend, and points (x, y); those that a logarithm cannot show are left out."""

    name: str
    points: Sequence[tuple[float, float]]


class Axis(NamedTuple):
    """A logarithmic axis from `low` at pixel `start` to `high` at pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        along = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + along * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times the powers of ten between the ends, powers alone where that would be crowded."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if math.log10(self.high / self.low) < 2.5 else (1,)
        found = [m * 10.0**d for d in decades for m in steps]
        return [v for v in found if self.low * 0.999 <= v <= self.high * 1.001]


def chart(
    lines: Sequence[Line],
    title: str,
    x: str,
    y: str,
    *,
    marks: Sequence[float] = (),
    floor: float | None = None,
    floor_name: str = "",
) -> str:
    """The chart as the text of an SVG file.

    x, y    what the axes show
    marks   the values of x that are marked; by default round ones
    floor   a level drawn as a dashed line, with its name, where it lies within the chart

    Raises ValueError where no line has a point that can be shown.
    """
    shown = [Line(one.name, [p for p in one.points if all(math.isfinite(v) and v > 0 for v in p)]) for one in lines]
    shown = [one for one in shown if one.points]
    if not shown:
        raise ValueError("no line has a point above zero")
    xs = [*marks, *(p[0] for one in shown for p in one.points)]
    ys = [p[1] for one in shown for p in one.points]
    height = max(HEIGHT, TOP + BOTTOM + _ROW * len(shown))
    end = LEFT + PLOT
    width = round(end + 64 + 7.4 * max(len(one.name) for one in shown))
    across = Axis(*ends(xs, 1.06), LEFT, end)
    up = Axis(*ends(ys, 1.25), height - BOTTOM, TOP)
    marks = marks or across.ticks()
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="{FONT}" font-size="13" fill="{INK}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="16" font-weight="600">{escape(title)}</text>',
        *(rule(across(v), TOP, across(v), height - BOTTOM) for v in marks),
        *(rule(LEFT, up(v), end, up(v)) for v in up.ticks()),
        *(text(across(v), height - BOTTOM + 20, f"{v:g}", "middle") for v in marks),
        *(text(LEFT - 8, up(v) + 4, f"{v:g}", "end") for v in up.ticks()),
        text((LEFT + end) / 2, height - 12, x, "middle"),
        f'<text transform="translate(18 {(TOP + height - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{escape(y)}</text>',
        f'<path d="M{LEFT} {TOP}V{height - BOTTOM}H{end}" fill="none" stroke="{INK}"/>',
    ]
    if floor is not None and up.low < floor < up.high:
        body += [
            rule(LEFT, up(floor), end, up(floor), "#888888", "3 3"),
            f'<g fill="#666666" font-size="11">{text(LEFT + 6, up(floor) - 5, floor_name)}</g>',
        ]
    for place, one in enumerate(shown):
        body += _line(place, one, across, up)
    return "\n".join([*body, "</svg>"]) + "\n"


def ends(values: Sequence[float], room: float) -> tuple[float, float]:
    """The least and the greatest value with some room around them; a lone value lies in the middle."""
    low, high = min(values), max(values)
    room = room if high > low * 1.001 else 2.0
    return low / room, high * room


def _line(place: int, one: Line, across: Axis, up: Axis) -> list[str]:
    """A curve with its marks, and its entry of the legend."""
    colour, dash = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
    style = f'stroke="{colour}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")
    at = [(across(x), up(y)) for x, y in sorted(one.points)]
    y, left = TOP + 8 + _ROW * place, LEFT + PLOT + 18
    return [
        f'<g><title>{escape(one.name)}</title><polyline fill="none" stroke-linejoin="round" {style} '
        f'points="{" ".join(f"{a:g},{b:g}" for a, b in at)}"/>',
        *(f'<circle cx="{a:g}" cy="{b:g}" r="3.2" fill="{colour}"/>' for a, b in at),
        f'<line x1="{left}" y1="{y}" x2="{left + 26}" y2="{y}" {style}/>',
        f'<circle cx="{left + 13}" cy="{y}" r="3.2" fill="{colour}"/>',
        f"{text(left + 34, y + 4, one.name)}</g>",
    ]


def rule(x1: float, y1: float, x2: float, y2: float, colour: str = PALE, dash: str = "") -> str:
    """A straight line."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}"{dashed}/>'


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    """Words at a place."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'
