"""The picture of `ebb eval`: quality against calls and against seconds, side by side, the front of each drawn through.

A plan is on a front when none is at least as good and as cheap and better in one of them. Points on it are filled, the
others hollow; whiskers are intervals, and numbers lead to the names below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple
from xml.sax.saxutils import escape

from ebbtide.app.chart import COLOURS, FONT, INK, Axis, ends, rule, text

PANEL, HEIGHT = 360, 380
LEFT, TOP, BETWEEN, UNDER = 76, 64, 34, 58
_ROW, _WIDE = 20, 8.0  # above this ratio of the values an axis is logarithmic


class Spot(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float


class Point(NamedTuple):
    """A plan: its name, what it costs (one for each panel), and how good it is."""

    name: str
    costs: Sequence[Spot]
    quality: Spot


class Even(NamedTuple):
    """An even axis from `low` at pixel `start` to `high` at pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        """Four to nine round values between the ends."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [k * step for k in range(first, last + 1)]


def undominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of the points (cost, badness) no other one is better than: as low in both, and lower in one.

    Those that are not finite are never on the front.
    """

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    good = [all(map(math.isfinite, p)) for p in points]
    return [
        fine and not any(beats(q, p) for q, sound in zip(points, good, strict=True) if sound)
        for p, fine in zip(points, good, strict=True)
    ]


def picture(points: Sequence[Point], fronts: Sequence[Sequence[bool]], title: str, y: str, xs: Sequence[str]) -> str:
    """The text of an SVG file with a panel for each cost.

    fronts  of each panel, which points are on its front
    y, xs   what the axes show

    Raises ValueError where no point can be shown.
    """
    shown = [k for k, p in enumerate(points) if math.isfinite(p.quality.value)]
    if not shown:
        raise ValueError("no plan has a finite figure")
    bottom = TOP + HEIGHT
    up = _axis([points[k].quality for k in shown], bottom, TOP)
    width = LEFT + len(xs) * (PANEL + BETWEEN) + 10
    height = bottom + UNDER + _ROW * len(shown) + 12
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="{FONT}" font-size="13" fill="{INK}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="16" font-weight="600">{escape(title)}</text>',
        f'<g fill="#666666" font-size="12">{text(LEFT, 46, "filled: on the front; whiskers: 95% intervals")}</g>',
        f'<text transform="translate(18 {TOP + HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y)}</text>',
    ]
    for panel, x in enumerate(xs):
        left = LEFT + panel * (PANEL + BETWEEN)
        across = _axis([points[k].costs[panel] for k in shown], left, left + PANEL)
        body += _frame(across, up, left, bottom, x, panel == 0)
        body += _front([points[k] for k in shown if fronts[panel][k]], panel, across, up)
        for place, k in enumerate(shown):
            body += _point(place, points[k], panel, fronts[panel][k], across, up)
    for place, k in enumerate(shown):
        high = bottom + UNDER + _ROW * place
        colour = COLOURS[place % len(COLOURS)]
        body.append(f'<circle cx="{LEFT + 6}" cy="{high - 4}" r="4" fill="{colour}"/>')
        body.append(text(LEFT + 18, high, f"{place + 1}  {points[k].name}"))
    return "\n".join([*body, "</svg>"]) + "\n"


def _axis(spots: Sequence[Spot], start: float, end: float) -> Axis | Even:
    """An axis on which all of these lie, logarithmic where they are far apart."""
    values = [s.value for s in spots]
    if min(values) > 0 and max(values) / min(values) > _WIDE:
        # an interval that reaches down to zero is cut off, not shown as endless
        least = min(max(s.low, s.value / 3) for s in spots)
        return Axis(*ends([least, *(s.high for s in spots)], 1.15), start, end)
    low, high = min(s.low for s in spots), max(s.high for s in spots)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Even(low - room, high + room, start, end)


def _frame(across: Axis | Even, up: Axis | Even, left: float, bottom: float, x: str, told: bool) -> list[str]:
    marks = across.ticks()
    return [
        *(rule(across(v), TOP, across(v), bottom) for v in marks),
        *(rule(left, up(v), left + PANEL, up(v)) for v in up.ticks()),
        *(text(across(v), bottom + 18, f"{v:.6g}", "middle") for v in marks),
        *(text(left - 8, up(v) + 4, f"{v:.6g}", "end") for v in up.ticks() if told),
        text(left + PANEL / 2, bottom + 36, x, "middle"),
        f'<path d="M{left} {TOP}V{bottom}H{left + PANEL}" fill="none" stroke="{INK}"/>',
    ]


def _front(on: list[Point], panel: int, across: Axis | Even, up: Axis | Even) -> list[str]:
    """The steps from the cheapest plan of the front to the best."""
    at = sorted((across(p.costs[panel].value), up(p.quality.value)) for p in on)
    path = "".join(f"H{b[0]:g}V{b[1]:g}" for _, b in pairwise(at))
    steps = f'<path class="front" d="M{at[0][0]:g} {at[0][1]:g}{path}" ' if at else ""
    return [f'{steps}fill="none" stroke="#888888" stroke-dasharray="4 3"/>'] if path else []


def _point(place: int, point: Point, panel: int, front: bool, across: Axis | Even, up: Axis | Even) -> list[str]:
    colour, cost = COLOURS[place % len(COLOURS)], point.costs[panel]
    x, y = across(cost.value), up(point.quality.value)
    high, low = (up(min(max(v, up.low), up.high)) for v in (point.quality.high, point.quality.low))
    left, right = (across(min(max(v, across.low), across.high)) for v in (cost.low, cost.high))
    fill = colour if front else "#ffffff"
    return [
        f'<g class="{"on" if front else "off"}"><title>{escape(point.name)}: {point.quality.value:.4g}</title>',
        rule(x, high, x, low, colour),
        rule(left, y, right, y, colour),
        f'<circle cx="{x:g}" cy="{y:g}" r="4.2" fill="{fill}" stroke="{colour}" stroke-width="1.6"/>',
        f'<g font-size="11">{text(x + 7, y - 6, str(place + 1))}</g></g>',
    ]
