"""Charts are well-formed, and their points lie where the numbers say."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET

import pytest

from ebbtide.app.chart import BOTTOM, HEIGHT, LEFT, PLOT, TOP, Axis, Line, chart

SVG = "{http://www.w3.org/2000/svg}"


def points(text: str) -> list[list[tuple[float, float]]]:
    root = ET.fromstring(text)
    found = [line.attrib["points"].split() for line in root.iter(f"{SVG}polyline")]
    return [[tuple(map(float, p.split(","))) for p in one] for one in found]  # type: ignore[misc]


def words(text: str) -> list[str]:
    return [e.text or "" for e in ET.fromstring(text).iter(f"{SVG}text")]


def test_powers_are_straight_and_their_slopes_are_the_powers() -> None:
    xs = (5, 8, 10, 20)
    text = chart([Line("one", [(x, 3 / x) for x in xs]), Line("two", [(x, 9 / x**2) for x in xs])], "t", "x", "y")
    slopes = []
    for line in points(text):
        runs = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(line)]
        assert runs == pytest.approx([runs[0]] * 3, rel=5e-3)
        slopes.append(runs[0])
    assert slopes[1] / slopes[0] == pytest.approx(2, rel=5e-3)
    assert slopes[0] > 0  # pixels go down as errors do


def test_ticks_stand_where_their_values_are() -> None:
    text = chart([Line("a", [(4, 0.1), (16, 0.4)])], "t", "x", "y", marks=(4, 8, 16))
    (low, high), root = points(text)[0], ET.fromstring(text)
    at = {e.text: e.attrib for e in root.iter(f"{SVG}text")}
    assert float(at["4"]["x"]) == low[0]
    assert float(at["16"]["x"]) == high[0]
    assert float(at["8"]["x"]) == pytest.approx((low[0] + high[0]) / 2, abs=0.02)
    assert float(at["0.1"]["y"]) - 4 == pytest.approx(low[1], abs=0.02)
    assert float(at["0.2"]["y"]) - 4 == pytest.approx((low[1] + high[1]) / 2, abs=0.02)


def test_everything_lies_on_the_paper() -> None:
    lines = [Line(f"solver:order={k} on some-long-name", [(k + 1, 10.0**-k), (9 * k + 2, 1.0)]) for k in range(30)]
    text = chart(lines, "t", "x", "y")
    root = ET.fromstring(text)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert len(points(text)) == 30
    for x, y in (p for line in points(text) for p in line):
        assert LEFT <= x <= width
        assert TOP <= y <= height - BOTTOM
    for e in root.iter(f"{SVG}text"):
        if "y" in e.attrib:
            assert 0 < float(e.attrib["y"]) < height
            end = float(e.attrib["x"]) + (6.5 * len(e.text or "") if e.attrib.get("text-anchor") == "start" else 0)
            assert end <= width


def test_what_a_logarithm_cannot_show_is_left_out() -> None:
    lines = [Line("a", [(1, 0.1), (2, math.inf), (3, 0.0), (4, 0.2)]), Line("none", [(1, math.nan)])]
    text = chart(lines, "t", "x", "y")
    assert [len(line) for line in points(text)] == [2]
    assert "none" not in words(text)
    with pytest.raises(ValueError, match="no line"):
        chart([Line("none", [(1, math.nan)])], "t", "x", "y")


def test_names_cannot_break_the_file_and_a_floor_is_drawn_within_it() -> None:
    text = chart([Line("a<b & c", [(1, 0.1), (2, 1.0)])], "x < y", "x", "y", floor=0.3, floor_name="here")
    assert {"a<b & c", "x < y", "here"} <= set(words(text))
    assert "here" not in words(chart([Line("a", [(1, 0.1), (2, 1.0)])], "t", "x", "y", floor=9.0, floor_name="here"))


def test_a_lone_point_lies_in_the_middle() -> None:
    at = points(chart([Line("a", [(10, 0.1)])], "t", "x", "y"))
    assert at == [[(LEFT + PLOT / 2, (TOP + HEIGHT - BOTTOM) / 2)]]


def test_wide_axes_are_marked_by_powers_of_ten() -> None:
    assert Axis(0.9e-6, 2.0, 0, 1).ticks() == pytest.approx([10.0**k for k in range(-6, 1)])
    assert Axis(0.9, 60.0, 0, 1).ticks() == pytest.approx([1, 2, 5, 10, 20, 50])
