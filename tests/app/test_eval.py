"""`ebb eval`: its figures are those of the library for the same seeds, its front is the front, and a stop costs nothing."""

from __future__ import annotations

import itertools
import json
import math
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
from torch import Tensor

import ebbtide as ebb
from conftest import interrupt
from ebbtide import zoo
from ebbtide.app.contenders import Contender
from ebbtide.app.fronts import Fronts, Row
from ebbtide.app.pareto import Point, Spot, picture, undominated
from ebbtide.measure import metrics as m
from ebbtide.measure.convergence import distance, fine

SVG = "{http://www.w3.org/2000/svg}"
SMALL = "eval toy -n 6 --seed 4 --batch 2 --reference 8 --plan euler --plan 'heun on karras:rho=5' --steps 2,4"
PLANS = {
    f"{name}, {k} steps": ebb.Plan(solve=solve, grid={"name": grid, "steps": k, **more})
    for name, solve, grid, more in (
        ("euler", "euler", "linear", {}),
        ("heun on karras:rho=5", "heun", "karras", {"rho": 5}),
    )
    for k in (2, 4)
}
LABELS = [0, 1, 2, 0, 1, 2]


def drawn(model: Any, plan: ebb.Plan, n: int, batch: int | None = None, cond: Any = None, seed: int = 4) -> Any:
    return ebb.sample(model, plan, cond=cond, n=n, seed=seed, batch=batch)


def six(interval: Any) -> list[float]:
    """As the file says it."""
    return [float(f"{v:.6g}") for v in interval]


# -------------------------------------------------------------------- figures


def test_the_error_is_that_of_the_library_for_the_same_seeds(toy: Any, run: Callable[..., Any]) -> None:
    told = json.loads(run(f"{SMALL} --json").out)
    assert [r["plan"] for r in told["rows"]] == list(PLANS)
    model = zoo.load("toy")
    ref = drawn(model, ebb.Plan(**fine(model.process, 8)), 6, 2, LABELS).x
    half = drawn(model, ebb.Plan(**fine(model.process, 4)), 6, 2, LABELS).x
    for row, plan in zip(told["rows"], PLANS.values(), strict=True):
        made = drawn(model, plan, 6, 2, LABELS)
        want = m.bootstrap(distance, made.x.double(), ref.double(), paired=True)
        assert row["error"] == six(want)
        assert row["calls"][0] == made.calls / 6
        assert row["seconds"][0] > 0
    own = distance(half.double(), ref.double())
    assert f"itself good to {own:.1g}" in told["against"]
    assert ("--reference 32" in told["against"]) == (min(r["error"][0] for r in told["rows"]) < own)


def test_the_table_shows_the_figures_of_the_file(toy: Any, run: Callable[..., Any]) -> None:
    told = run(f"{SMALL} -o f.svg")
    held = json.loads(Path("f.json").read_text())
    for row in held["rows"]:
        line = next(text for text in told.out.splitlines() if text.startswith(row["plan"]))
        value, low, high = row["error"]
        shown, half = map(float, re.findall(r"([\d.]+) ± ([\d.]+)", line)[-1])
        assert shown == pytest.approx(value, abs=0.06 * (high - low))
        assert half == pytest.approx((high - low) / 2, rel=0.06)
        assert row["slots"] == PLANS[row["plan"]].to_dict()
    best = min(held["rows"], key=lambda r: r["error"][0])
    assert held["best"] == best["plan"]
    assert f"Best error: {best['plan']}" in told.out
    assert best["command"] in told.out
    run(f"{shlex.join(shlex.split(best['command'])[1:])} -n 6 --seed 4 --batch 2 -o again.npz")
    made = drawn(zoo.load("toy"), PLANS[best["plan"]], 6, 2, LABELS).x
    assert np.array_equal(np.load("again.npz")["x"], made.numpy())


def pictures(name: str = "d.npz", n: int = 40, side: int = 8) -> Tensor:
    """Pictures in a file, and what is read of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side), dtype=np.uint8)
    np.savez(name, images=pixels)
    return torch.from_numpy(pixels).float()[:, None] / 127.5 - 1


def test_against_pictures_in_their_pixels(toy: Any, run: Callable[..., Any]) -> None:
    """An 8 x 8 picture of one channel is its own features."""
    rows = pictures().flatten(1).double()
    line = "eval toy -n 12 --seed 4 --batch 12 --plan euler --steps 3 --data d.npz"
    told = json.loads(run(f"{line} --metric frechet,kernel,precision,coverage --json").out)["rows"][0]
    labels = LABELS * 2
    x = drawn(zoo.load("toy"), ebb.Plan(grid={"name": "linear", "steps": 3}), 12, cond=labels).x.double().flatten(1)
    assert told["frechet"][0] == pytest.approx(m.frechet_distance(x, rows), rel=1e-5)
    own = rows[torch.arange(12) * 40 // 12]
    assert told["kernel"][0] == pytest.approx(m.kernel_distance(x, own), rel=1e-5)
    found = m.manifold(x, own)
    assert [told[k][0] for k in ("precision", "coverage")] == pytest.approx([found.precision, found.coverage], rel=1e-5)
    usual = json.loads(run(f"{line} --json").out)
    assert usual["figures"] == ["frechet", "kernel", "precision", "recall"]


def test_digits_are_held_to_the_statistics_that_ship(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ebbtide.zoo import classifier, reference

    monkeypatch.chdir(tmp_path)
    told = json.loads(run("eval digits -n 12 --batch 12 --plan dpmpp-2m --steps 2 --guidance 2 --json -q").out)
    plan = ebb.Plan(solve="dpmpp-2m", grid={"name": "linear", "steps": 2}, guide={"name": "cfg", "scale": 2.0})
    labels = [k % 10 for k in range(12)]
    x = drawn("digits", plan, 12, cond=labels, seed=0).x
    held = reference.load()
    want = m.frechet(*m.moments(reference.features(x)), held["test.mean"], held["test.cov"])
    row = told["rows"][0]
    assert told["figures"] == ["frechet", "agreement"]
    assert row["frechet"][0] == pytest.approx(want, rel=1e-5)
    right = (classifier.load()(x).argmax(1) == torch.tensor(labels)).double().mean()
    assert row["agreement"][0] == pytest.approx(float(right), rel=1e-5)
    assert row["calls"][0] == 4


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A masked model of four letters with weights that mean nothing, and a judge of the same kind in the folder `judge`."""
    from ebbtide.core.key import Noise, keys
    from ebbtide.zoo.language import CausalLM, MaskedLM
    from ebbtide.zoo.models import model_of

    monkeypatch.chdir(tmp_path)
    small: dict[str, Any] = {"alphabet": "ab c", "length": 12, "layers": 1, "heads": 2, "width": 16, "hidden": 16}
    noise = Noise(keys([3]), torch.zeros(1, dtype=torch.int64))
    about = {"medium": "text", "shape": [12], "alphabet": "ab c", "process": {"name": "masked", "vocab": 5, "mask": 4}}
    model = model_of(MaskedLM(**small).build(noise), about, "letters")
    folder = tmp_path / "judge"
    folder.mkdir()
    CausalLM(**small).write(CausalLM(**small).build(noise), folder)
    told = {"medium": "text", "predicts": "next-token", "start": 4, "alphabet": "ab c", "shape": [12]}
    (folder / "recipe.json").write_text(json.dumps(told))
    monkeypatch.setattr(zoo, "names", lambda: ["letters"])
    monkeypatch.setattr(zoo, "load", lambda name, **_: model)
    return model


def test_text_is_judged_by_a_causal_model_or_by_itself(letters: Any, run: Callable[..., Any]) -> None:
    from ebbtide.zoo.language import judge
    from ebbtide.zoo.text import encode

    line = "eval letters -n 8 --batch 8 --plan ancestral --steps 4"
    told = json.loads(run(f"{line} --judge judge --json").out)
    x = drawn(letters, ebb.Plan(solve="ancestral", grid={"name": "linear", "steps": 4}), 8, seed=0).x
    lm = judge("judge")
    row = told["rows"][0]
    alone = [m.nll(lm, encode(letters.decode(one), "ab c")[None], start=4) for one in x]  # no row is filled
    total, count = (torch.cat(v) for v in zip(*alone, strict=True))
    assert row["perplexity"] == six(m.bootstrap(m.perplexity, total, count, paired=True))
    assert len(count.unique()) > 1
    assert row["distinct"][0] == pytest.approx(m.distinct(x), rel=1e-5)
    assert row["entropy"][0] == pytest.approx(m.entropy(x), rel=1e-5)
    assert json.loads(run(f"{line} --json").out)["figures"] == ["distinct", "entropy"]


# -------------------------------------------------------------------- the front


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_beats(seed: int) -> None:
    """By definition, one pair at a time, on few values so that many are equal."""
    draw = np.random.default_rng(seed).integers(0, 5, (12, 2)).astype(float)
    points = [(float(a), float(b)) for a, b in draw]
    found = undominated(points)
    for k, (cost, bad) in enumerate(points):
        better = [p for p in points if p[0] <= cost and p[1] <= bad and (p[0] < cost or p[1] < bad)]
        assert found[k] == (not better)


def test_what_is_not_finite_is_not_on_the_front_and_keeps_nobody_off() -> None:
    assert undominated([(1.0, math.nan), (2.0, 3.0), (-math.inf, -math.inf)]) == [False, True, False]


def test_marks_of_the_table_and_the_picture_are_the_front(toy: Any, run: Callable[..., Any]) -> None:
    told = run(f"{SMALL} -o f.svg")
    held = json.loads(Path("f.json").read_text())["rows"]
    for place, cost in enumerate(("calls", "seconds")):
        want = undominated([(r[cost][0], r["error"][0]) for r in held])
        assert [cost in r["front"] for r in held] == want
        for row, on in zip(held, want, strict=True):
            line = next(text for text in told.out.splitlines() if text.startswith(row["plan"]))
            cells = [c for c in re.split(r"\s{2,}", line) if c]
            assert cells[1 + place].endswith("*") == on
    groups = [g.attrib["class"] for g in ET.parse("f.svg").getroot().iter(f"{SVG}g") if "class" in g.attrib]
    assert groups == ["on" if cost in r["front"] else "off" for cost in ("calls", "seconds") for r in held]


def test_where_more_is_better_the_front_turns_round() -> None:
    def rows(name: str) -> Fronts:
        spots = [(2.0, 0.5), (4.0, 0.9), (8.0, 0.7)]
        made = [
            Row(
                Contender(f"p{k}", ebb.Plan(), ()),
                m.Interval(c, c, c),
                m.Interval(c, c, c),
                {name: m.Interval(q, q, q)},
            )
            for k, (c, q) in enumerate(spots)
        ]
        return Fronts("toy", 4, (name,), made)

    assert rows("agreement").front("calls") == [True, True, False]
    assert rows("error").front("calls") == [True, False, False]
    for name, best in (("agreement", "p1"), ("error", "p0")):
        found = rows(name).best
        assert found is not None
        assert found.contender.name == best


def test_the_cheapest_within_the_interval_of_the_best_is_named(toy: Any, run: Callable[..., Any]) -> None:
    """Four plans that land on the same pictures, as near as rows can tell: the cheapest is the one of fewest calls."""
    pictures()
    held = json.loads(run(f"{SMALL} --data d.npz --metric frechet --json").out)
    best = next(r for r in held["rows"] if r["plan"] == held["best"])
    within = [r for r in held["rows"] if best["frechet"][1] <= r["frechet"][0] <= best["frechet"][2]]
    fewest = min(r["calls"][0] for r in within)
    assert next(r for r in held["rows"] if r["plan"] == held["cheapest"])["calls"][0] == fewest


def test_points_of_the_picture_lie_where_the_numbers_say() -> None:
    """Twice the calls is the same way to the right everywhere on an axis of powers, and lower is lower."""
    spots = [(5.0, 1.0), (10.0, 0.1), (20.0, 0.01), (80.0, 0.001)]
    points = [Point(f"p{k}", [Spot(c, c, c)], Spot(q, q, q)) for k, (c, q) in enumerate(spots)]
    root = ET.fromstring(picture(points, [[True] * 4], "t", "y", ["x"]))
    at = [
        (float(c.attrib["cx"]), float(c.attrib["cy"]))
        for g in root.iter(f"{SVG}g") if "class" in g.attrib
        for c in g.iter(f"{SVG}circle")
    ]  # fmt: skip
    right = [b[0] - a[0] for a, b in itertools.pairwise(at)]
    down = [b[1] - a[1] for a, b in itertools.pairwise(at)]
    assert right[1] == pytest.approx(right[0], abs=0.05)
    assert right[2] == pytest.approx(2 * right[0], abs=0.05)
    assert down == pytest.approx([down[0]] * 3, abs=0.05)
    assert down[0] > 0


def test_a_page_and_a_file_of_rows(toy: Any, run: Callable[..., Any]) -> None:
    run(f"{SMALL} -o f.html")
    text = Path("f.html").read_text()
    assert text.count("<tr>") == 5
    assert "<svg" in text
    run(f"{SMALL} -o g.json")
    assert sorted(p.name for p in Path().iterdir()) == ["f.html", "f.json", "f.samples", "g.json", "g.samples"]


# -------------------------------------------------------------------- files


def values(file: str) -> dict[str, Any]:
    return {r["plan"]: (r["error"], r["calls"]) for r in json.loads(Path(file).read_text())["rows"]}


# the call that is not timed, then three batches each: the fine run on 4 and 8 steps, Euler on 2 and 4, Heun on 2 and 4
@pytest.mark.parametrize(
    ("call", "done"), [(2, 0), (9, 3), (1 + 3 * (7 + 15) + 3, 7), (1 + 3 * (7 + 15 + 2 + 4) + 8, 14)]
)
def test_a_stopped_run_goes_on_and_a_finished_one_asks_nothing(
    toy: Any, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, call: int, done: int
) -> None:
    run(f"{SMALL} -o whole.svg")
    calls, toy.calls = toy.calls, 0
    toy.at = {call: interrupt}
    monkeypatch.setattr(sys, "argv", ["ebb", *shlex.split(f"{SMALL} -o part.svg --overwrite")])
    told = run(f"{SMALL} -o part.svg --overwrite", code=130)
    again = re.search(r"Go on with: ebb (.*)", told.err)
    assert again is not None
    assert again[1] == f"{SMALL} -o part.svg"
    toy.at, made = {}, toy.calls
    kept = sum(kept_calls("part.samples"))
    assert made - kept <= 1 + 7  # at most the batch that was under way is lost, and the call that is not timed
    run(f"{SMALL} -o part.svg")
    assert toy.calls - made == calls - kept
    assert values("part.json") == values("whole.json")
    before = toy.calls
    run(f"{SMALL} -o part.svg")
    run(f"{SMALL.replace('2,4', '4')} -o part.svg")
    pictures()
    run(f"{SMALL} --data d.npz --metric frechet,error -o part.svg")
    assert toy.calls == before  # neither again, nor for fewer, nor for other figures


def kept_calls(folder: str) -> list[int]:
    """The calls of the network that made each batch in a folder: those of its samples, over their number."""
    from safetensors.torch import load_file

    held = [load_file(f) for f in Path(folder).glob("*.safetensors")]
    return [round(c / r) for f in held for c, r in zip(f["calls"].tolist(), f["rows"].tolist(), strict=True)]


def test_more_plans_may_come_but_not_another_model_or_seed(toy: Any, run: Callable[..., Any]) -> None:
    run(f"{SMALL} -o f.svg")
    before = toy.calls
    run(f"{SMALL} --plan unipc -o f.svg")
    assert len(values("f.json")) == 6
    assert toy.calls - before < 1 + 3 * (2 + 4) * 2
    assert "something else" in run(f"{SMALL.replace('--seed 4', '--seed 5')} -o f.svg", code=2).err
    run(f"{SMALL.replace('--seed 4', '--seed 5')} -o f.svg --overwrite")


def test_the_model_may_be_that_of_the_first_plan(toy: Any, run: Callable[..., Any]) -> None:
    run("sample toy --solver heun --steps 3 --guidance 2 -o a.png")
    told = json.loads(run("eval --plan a.plan.yaml --plan a.png --plan euler -n 3 --reference 4 --json").out)
    assert told["model"] == "toy"
    assert [r["plan"] for r in told["rows"]] == ["a", "euler"]  # the picture holds the same plan
    assert told["rows"][0]["slots"]["guide"] == [{"name": "cfg", "scale": 2.0}]


def test_a_plan_whose_samples_are_not_finite_is_told(toy: Any, run: Callable[..., Any]) -> None:
    toy.spoilt = 1
    pictures()
    told = run("eval toy -n 3 --plan euler --steps 4 --data d.npz --metric frechet -o f.svg", code=1)
    assert "samples of euler are not finite" in told.err
    assert "not finite" in told.out
    row = json.loads(Path("f.json").read_text())["rows"][0]
    assert (row["frechet"], row["front"]) == (None, [])


def test_what_stands_in_the_way_of_a_fair_comparison_is_said(toy: Any, run: Callable[..., Any]) -> None:
    assert "ancestral draws" in run("eval toy -n 2 --reference 4 --plan ancestral --steps 3").err
    run("sample toy --guidance 2 --steps 2 -n 1 -o a.npz")
    assert "guided as a is" in run("eval toy -n 2 --reference 4 --plan a.plan.yaml --plan euler --steps 3").err
    pictures()
    assert "scatter" in run("eval toy -n 2 --plan euler --steps 2 --data d.npz --metric frechet").err


# -------------------------------------------------------------------- bad input

BAD = {
    "eval": "--plan FILE",
    "eval toy": "--plan FILE",
    "eval --plan euler": "name a model",
    "eval tey --plan euler": "did you mean toy",
    "eval toy --plan eulr": "did you mean euler",
    "eval toy --plan 'heun on karas'": "did you mean karras",
    "eval toy --plan heun:ordre=2": "no parameter 'ordre'",
    "eval toy --plan confidence": "--plan confidence",
    "eval toy --plan euler --plan text.yaml": "text.yaml",
    "eval toy --plan euler --steps 0": "at least 1",
    "eval toy --plan euler --steps two": "--steps",
    "eval toy --plan euler --metric frechett": "did you mean frechet",
    "eval toy --plan euler --metric frechet": "--data",
    "eval toy --plan euler --metric agreement": "digits",
    "eval toy --plan euler --metric perplexity": "--judge",
    "eval toy --plan euler --judge x": "--judge is for text",
    "eval points --plan euler --data d.npz": "--data is for pictures",
    "eval toy --plan euler --data no.npz": "no.npz",
    "eval toy --plan euler --data text.yaml": "text.yaml",
    "eval toy --plan euler --data d.npz --features eyes": "features 'eyes'",
    "eval toy --plan euler --features classifier": "reads digits",
    "eval toy --plan euler --reference 1": "--reference",
    "eval toy --plan euler -n 1": "no interval",
    "eval toy --plan euler --batch 0": "--batch",
    "eval toy --plan euler --label 3": "labels 0 to 2",
    "eval toy --plan euler --prompt cat": "--prompt",
    "eval toy --plan euler --size 16": "--size is for",
    "eval points --plan euler --guidance 2": "null",
    "eval toy --plan euler --dtype float12": "did you mean float",
    "eval toy --plan euler -o f.png": "f.svg",
    "eval toy --plan euler -o text.svg": "text.svg exists",
    "eval toy --plan euler -o text.yaml/f.svg": "text.yaml",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_sentence_and_code_2(toy: Any, refused: Callable[[str, str], None], line: str) -> None:
    pictures()
    for name in ("text.yaml", "text.svg"):
        Path(name).write_text("in: the: way")
    refused(line, BAD[line])
    assert toy.calls == 0
    assert sorted(p.name for p in Path().iterdir()) == ["d.npz", "text.svg", "text.yaml"]


def test_models_that_are_asked_in_words_are_compared_over_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Callable[..., Any]
) -> None:
    """Samples are where their prompt is, exactly, so the error is what a plan does to the start alone."""
    from test_prompts import Shade

    from ebbtide.zoo.emoji import PromptModel, Words

    shade = Shade()
    brush = PromptModel("brush", shade, torch.zeros(1, 4, 4), medium="image", read=Words(["grey", "white"], 1))
    monkeypatch.setattr(zoo, "names", lambda: ["brush"])
    monkeypatch.setattr(zoo, "load", lambda name, **_: brush)
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("grey\nwhite\n")
    told = json.loads(run("eval brush --prompt @p.txt --plan euler --steps 1,4 --reference 4 -o f.json --json").out)
    assert told["n"] == 8
    assert [r["error"][0] < 1e-6 for r in told["rows"]] == [True, True]
    assert json.loads(Path("f.json").read_text())["asked"]["cond"] == {"prompt": ["grey", "white"] * 4}
    assert "f.json" in told["files"][0]
    before = shade.calls
    run("eval brush --prompt grey --prompt white --plan euler --steps 1,4 --reference 4 -o f.json")
    assert shade.calls == before
