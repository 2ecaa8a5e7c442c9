"""`ebb solvers` and `ebb grid`: the best is the best, its command repeats it, and a stopped run goes on."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from conftest import interrupt
from ebbtide import zoo
from ebbtide.app import screen, surveying
from ebbtide.core.parts import Denoiser
from ebbtide.core.plan import Plan
from ebbtide.denoise.model import Model, process

SMALL = "solvers toy -n 3 --seed 4 --fine 16 --calls 3,6 --solver euler,heun --grid linear,karras:rho=5"
PAIRS = {f"{s} on {g}" for s in ("euler", "heun") for g in ("linear", "karras:rho=5")}
# the fine solution on 8 and on 16 steps, then the rows; Heun lands on the data with one call
FINE = 15 + 31


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def name(row: dict[str, Any]) -> str:
    words = [
        ":".join([s["name"], *(f"{k}={v}" for k, v in s.items() if k != "name")]) for s in (row["solve"], row["grid"])
    ]
    return " on ".join(words)


def test_the_best_has_the_least_error_and_its_command_gives_those_samples(toy: Any, run: Callable[..., Any]) -> None:
    told = json.loads(run(f"{SMALL} --label 1 --guidance 2 --json").out)
    assert {name(r) for r in told["rows"]} == PAIRS
    assert {(r["budget"], r["calls"] <= r["budget"]) for r in told["rows"]} == {(3, True), (6, True)}
    assert [b["calls"] for b in told["best"]] == [2, 6]  # guided steps take two calls
    for best in told["best"]:
        mine = [r["error"] for r in told["rows"] if r["budget"] == best["budget"]]
        assert best["error"] == min(mine)
        assert re.fullmatch(
            r"ebb sample toy --guidance 2 --solver \w+ --grid \w+ --steps \d( --set grid.rho=5)?", best["command"]
        )
    line = shlex.split(told["best"][1]["command"])[1:]
    run(f"{shlex.join(line)} --label 1 -n 3 --seed 4 -o a.npz")
    run("sample toy --label 1 --guidance 2 -n 3 --seed 4 --solver heun --steps 400 --grid log-snr -o fine.npz")
    a, fine = (np.load(f)["x"] for f in ("a.npz", "fine.npz"))
    found = np.sqrt(np.square(a - fine).sum() / np.square(fine).sum())
    assert found == pytest.approx(told["best"][1]["error"], rel=0.1, abs=2 * told["reference"]["error"])
    assert Plan.load("a.plan.yaml").grid == Plan.from_dict(told["best"][1]["plan"]).grid


def test_the_table_the_chart_and_the_saved_plan(toy: Any, run: Callable[..., Any]) -> None:
    told = run(f"{SMALL} -o c.svg --save best.yaml")
    data = json.loads(Path("c.json").read_text())
    assert {name(r) for r in data["rows"]} == PAIRS
    for row in data["rows"]:
        assert f"{row['error']:.3g}" in told.out
    least = min((r for r in data["rows"] if r["budget"] == 6), key=lambda r: r["error"])
    assert f"Best at 6 calls: {name(least)}, error {least['error']:.3g}" in told.out
    saved = yaml.safe_load(Path("best.yaml").read_text())
    assert saved["grid"] == {**least["grid"], "steps": least["steps"]}
    assert saved["run"]["seed"] == 4
    run("sample --plan best.yaml -o again.npz")
    lines = ET.parse("c.svg").getroot().iter("{http://www.w3.org/2000/svg}polyline")
    assert len(list(lines)) == 2  # one a solver, on its best grid
    assert "3 and 6" not in told.err
    assert sorted(p.name for p in Path().iterdir()) == ["again.npz", "again.plan.yaml", "best.yaml", "c.json", "c.svg"]


@pytest.mark.parametrize("call", [2, FINE + 1, FINE + 20])
def test_a_stopped_run_goes_on_where_it_was(
    toy: Any, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    run(f"{SMALL} -o whole.svg")
    calls, toy.calls = toy.calls, 0
    toy.at = {call: interrupt}
    monkeypatch.setattr(sys, "argv", ["ebb", *shlex.split(f"{SMALL} -o part.svg --overwrite")])
    told = run(f"{SMALL} -o part.svg --overwrite", code=130)
    rows = json.loads(Path("part.json").read_text())["rows"] if Path("part.json").exists() else []
    if call > FINE + 6:
        assert rows
        again = re.search(r"Go on with: ebb (.*)", told.err)
        assert again is not None
        assert again[1] == f"{SMALL} -o part.svg"
    toy.at, before = {}, toy.calls
    run(f"{SMALL} -o part.svg")
    assert toy.calls - before == calls - sum(int(r["calls"]) for r in rows)
    figures = [
        {(name(r), r["budget"]): (r["steps"], r["error"]) for r in json.loads(Path(f).read_text())["rows"]}
        for f in ("whole.json", "part.json")
    ]
    assert figures[0] == figures[1]
    assert Path("part.svg").read_text() == Path("whole.svg").read_text()


def test_more_can_be_asked_of_a_finished_file_but_not_something_else(toy: Any, run: Callable[..., Any]) -> None:
    run(f"{SMALL} -o c.svg")
    before = toy.calls
    run(f"{SMALL.replace('3,6', '3,4,6')} -o c.svg")
    assert toy.calls - before < FINE + 4 * 4 + 1
    assert {r["budget"] for r in json.loads(Path("c.json").read_text())["rows"]} == {3, 4, 6}
    assert "something else" in run(f"{SMALL} -o c.svg --label 2", code=2).err
    run(f"{SMALL} -o c.svg --label 2 --overwrite")


def test_all_that_is_registered_is_tried_and_the_rest_is_named(toy: Any, run: Callable[..., Any]) -> None:
    told = run("solvers points -n 2 --fine 8 --calls 2,4")
    assert "ancestral" in told.out
    assert "--all" in told.out
    data = json.loads(run("solvers points -n 2 --fine 8 --calls 4 --json").out)
    assert {"euler", "heun", "dpmpp-2m"} <= {r["solve"]["name"] for r in data["rows"]}
    assert "ancestral" in data["drawn"]
    assert "solve confidence" in data["left"]


BAD = {
    "solvers": "name a model",
    "solvers tey": "did you mean toy",
    "solvers toy --solver hein": "did you mean heun",
    "solvers toy --grid karas": "did you mean karras",
    "solvers toy --solver heun:ordre=2": "no parameter 'ordre'",
    "solvers toy --solver heun:space": "PART:param=value",
    "solvers toy --solver ancestral": "draws noise",
    "solvers toy --solver confidence": "masked",
    "solvers toy --grid explicit": "number of steps",
    "solvers toy --grid karras:steps=4": "--calls",
    "solvers toy --calls 0": "at least one",
    "solvers toy --calls 5,-1": "at least one",
    "solvers toy --calls five": "--calls",
    "solvers toy --fine 1": "--fine",
    "solvers toy -n 0": "at least 1",
    "solvers toy --label 3": "labels 0 to 2",
    "solvers points --guidance 2": "null",
    "solvers toy -o c.png": "c.svg",
    "solvers toy -o file.svg": "file.svg exists",
    "solvers toy --save file.svg": "file.svg exists",
    "solvers toy -o file.svg/c.svg": "file.svg",
    "solvers tokens": "by their law",
    "grid toy --steps 0 -o g.yaml": "--steps",
    "grid toy --solver hein -o g.yaml": "did you mean heun",
    "grid toy --solver ancestral -o g.yaml": "noise",
    "grid toy -o g.png": "g.yaml",
    "grid toy -o file.yaml": "file.yaml exists",
    "grid tokens --solver euler -o g.yaml": "Gaussian process",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_sentence_and_code_2(
    toy: Any, refused: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    for file in ("file.svg", "file.yaml"):
        Path(file).write_text("in the way")
    if "tokens" in line:
        denoiser = Denoiser()
        denoiser.process = process("masked", vocab=5)
        tokens = Model("tokens", denoiser, torch.zeros(6, dtype=torch.int64))
        monkeypatch.setattr(zoo, "names", lambda: ["tokens"])
        monkeypatch.setattr(zoo, "load", lambda name, **_: tokens)
    refused(line, BAD[line])
    assert {p.name for p in Path().iterdir()} == {"file.svg", "file.yaml"}
    assert toy.calls == 0


@pytest.mark.parametrize("line", [SMALL, f"{SMALL} --guidance 2", "solvers toy -n 3 --fine 32 --calls 4,8"])
def test_the_work_is_known_from_the_first_call_on(
    toy: Any, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    seen: list[tuple[float, float]] = []
    monkeypatch.setattr(surveying.Show, "due", lambda self: True)
    monkeypatch.setattr(surveying.Show, "tell", lambda self, done, total, **_: seen.append((done, total)))
    run(line)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert seen[-1][0] == pytest.approx(seen[-1][1], rel=0.03)
    assert seen[0][1] == pytest.approx(seen[-1][0], rel=0.03)
    run(f"{line} -o c.svg")
    whole = seen[-1][1]
    run(f"{line} -o c.svg")
    assert seen[-1][0] == seen[-1][1] < whole  # what was known takes no time, and is not waited for


def test_a_terminal_gets_a_bar_with_the_time_left(
    toy: Any, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=100, height=30, highlight=False)
    monkeypatch.setattr(screen, "stderr", lambda: console)
    monkeypatch.setattr(screen, "_EVERY", 0.0)
    run(SMALL)
    assert "8 rows" in file.getvalue()
    assert re.search(r"\d:\d\d left", file.getvalue())
    file.truncate(0)
    run("grid toy --steps 3 -n 2 -o g.yaml")
    assert re.search(r"\d/\d+ calls .*\d:\d\d left", file.getvalue())
    file.truncate(0)
    run(f"{SMALL} --quiet")
    run("grid toy --steps 3 -n 2 -o h.yaml --quiet")
    assert file.getvalue().strip("\0") == ""


# -------------------------------------------------------------------- ebb grid


def test_a_grid_found_for_a_model_beats_even_times_on_other_starts(toy: Any, run: Callable[..., Any]) -> None:
    run("grid toy --steps 4 -n 8 -o g.yaml")
    plan = yaml.safe_load(Path("g.yaml").read_text())
    assert plan["solve"]["name"] == "dpmpp-2m"
    assert len(plan["grid"]["times"]) == 5
    run("sample --plan g.yaml --seed 77 -n 8 -o own.npz")
    run("sample toy --solver dpmpp-2m --steps 4 --seed 77 -n 8 -o even.npz")
    run("sample toy --solver heun --steps 200 --seed 77 -n 8 -o fine.npz")
    own, even, fine = (np.load(f"{f}.npz")["x"] for f in ("own", "even", "fine"))
    assert np.square(own - fine).sum() < np.square(even - fine).sum()


def test_a_search_for_a_grid_can_be_stopped(toy: Any, run: Callable[..., Any]) -> None:
    toy.at = {30: interrupt}
    told = run("grid toy --steps 4 -n 2 -o g.yaml", code=130)
    assert "stopped" in told.err
    assert toy.calls < 40
    assert not Path("g.yaml").exists()
