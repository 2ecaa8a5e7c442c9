"""What is shown while a run goes: pictures in half characters, the bar's figures."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import ebbtide as ebb
from ebbtide import api, zoo
from ebbtide.app import screen
from ebbtide.app.preview import layout, picture
from ebbtide.app.progress import Pace, clock
from ebbtide.core.errors import EbbError
from ebbtide.samples import sheet, to_images


def drawn(renderable: Any, width: int) -> np.ndarray:
    """The pixels that a terminal would show, (H, W, 3), read back from the colours of its characters."""
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="truecolor", width=width).print(renderable)
    code = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀")
    rows = [[[int(v) for v in m.groups()] for m in code.finditer(line)] for line in file.getvalue().splitlines()]
    cells = np.array([row for row in rows if row])
    return np.stack([cells[..., :3], cells[..., 3:]], 1).reshape(-1, cells.shape[1], 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_is_half_a_character(channels: int) -> None:
    x = torch.linspace(-1, 1, 4 * channels * 9 * 7).reshape(4, channels, 9, 7)
    seen = drawn(picture(x, 60, 40), 60)
    want = np.asarray(sheet(to_images(x), columns=4, margin=1).convert("RGB"))
    assert np.array_equal(seen[: len(want)], want)


@pytest.mark.parametrize("size", [(80, 24), (20, 8), (200, 60)])
@pytest.mark.parametrize("n", [1, 5, 64, 1000])
@pytest.mark.parametrize("side", [8, 28, 200])
def test_a_preview_fits_its_terminal(size: tuple[int, int], n: int, side: int) -> None:
    columns, rows = size
    across, down, scale = layout(n, side, side, columns, 2 * rows)
    wide, high = (int(side * scale) + 1 for _ in range(2))
    assert across * wide + 1 <= columns
    assert down * high + 1 <= 2 * rows
    assert scale <= 1
    assert across * down >= n or int(side * scale) <= 14  # some are left out only when all would be too small
    assert n > across * (down - 1)


def test_other_things_than_pictures_are_refused() -> None:
    with pytest.raises(EbbError, match="pictures"):
        picture(torch.zeros(3, 2), 80, 24)
    with pytest.raises(EbbError, match="pictures"):
        picture({"a": torch.zeros(1, 1, 8, 8)}, 80, 24)


@pytest.mark.parametrize("plan", [{"solve": "heun"}, {"solve": "heun", "grid": "adaptive"}, {"grid": "staggered"}, {}])
def test_the_pace_ends_at_all_of_it(toy: Any, plan: dict[str, Any]) -> None:
    if plan.get("grid") == "staggered":
        plan = {"grid": {"name": "staggered", "delay": 0}}
    seen = []
    pace = Pace(5)
    assert (pace.total, pace.left) == (None, None)

    def watch(step: Any, places: list[int]) -> None:
        pace.add(step, places)
        seen.append((pace.done, pace.calls, pace.total))

    out = ebb.sample(zoo.load("toy"), ebb.Plan(**plan), cond=1, n=5, batch=2, watch=watch)
    done = [d for d, _, _ in seen]
    assert done == sorted(done)
    assert seen[-1] == (1.0, out.calls, out.calls)
    assert pace.left == pytest.approx(0, abs=1e-9)


def test_a_resumed_pace_counts_its_own_time_only() -> None:
    pace = Pace(10, finished=5, calls=100)
    assert pace.done == 0.5
    assert pace.rate == 0
    assert pace.left is None


def test_clock() -> None:
    assert [clock(v) for v in (None, 7, 59.7, 754, 3723)] == ["-:--", "0:07", "1:00", "12:34", "1:02:03"]


def test_a_terminal_gets_a_bar_and_a_preview(
    toy: Any, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=100, height=30)
    monkeypatch.setattr(screen, "stderr", lambda: console)
    monkeypatch.setattr(screen, "_EVERY", 0.0)
    run("sample toy -n 4 --steps 6 --guidance 2 --preview -o a.png")
    text = file.getvalue()
    assert "▀" in text
    assert "48/48 calls" in text
    assert "0:00 left" in text
    file.truncate(0)
    run("sample toy -n 4 --steps 6 --preview --quiet -o b.png")
    assert file.getvalue().strip("\0") == ""


def test_without_a_terminal_there_is_one_line(toy: Any, run: Callable[..., Any]) -> None:
    told = run("sample toy -n 4 --steps 6 --label 1 --preview -o a.png")
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert "24 network calls" in told.err


def test_the_preview_shows_data_not_noise(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first step the state is noise; what is shown is the mean of all data, smooth and within [-1, 1]."""
    shown = []
    monkeypatch.setattr(screen, "_EVERY", 0.0)
    view = screen.Screen("toy", Pace(1), preview=True)
    view.live = type("Live", (), {"update": lambda self, what: None})()
    monkeypatch.setattr(view, "picture", shown.append)
    model = zoo.load("toy")
    loop, state = api.begin(model, ebb.Plan(), {"label": torch.tensor([-1])}, 1)
    view.update(next(iter(loop.run(state))))
    assert torch.allclose(shown[0][0], model.denoiser.law.means.mean(0).reshape(1, 8, 8).float(), atol=1e-4)
