"""`ebb list`, `ebb explain`, `ebb plan`: they say what the registry, the records and the files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ebbtide import systems, zoo
from ebbtide.app.explain import bibtex, parameters
from ebbtide.core import registry
from ebbtide.core.plan import Plan

Run = Callable[..., Any]


def test_list_names_every_system(run: Run) -> None:
    rows = json.loads(run("list --json").out)
    assert [r["id"] for r in rows] == systems.ids()
    shown = run("list").out
    assert all(id in shown for id in systems.ids())
    for family in {r["family"] for r in rows}:
        assert [r["id"] for r in json.loads(run(f"list --family {family} --json").out)] == systems.ids(family)
    assert "known: " in run("list --family x", code=2).err


def test_list_names_every_part(run: Run) -> None:
    rows = json.loads(run("list --parts --json").out)
    assert {(r["slot"], r["name"]) for r in rows} == {(s, n) for s in registry.SLOTS for n in registry.names(s)}
    assert all(r["sentence"] for r in rows)
    heun = next(r for r in json.loads(run("list solve --json").out) if r["name"] == "heun")
    assert (heun["order"], heun["calls"]) == (2, 2)
    assert "heun" in run("list solve").out
    assert "karras" not in run("list --parts solve").out
    assert "did you mean solve" in run("list solver", code=2).err


@pytest.mark.parametrize("slot", registry.SLOTS)
def test_every_part_is_explained(slot: str, run: Run) -> None:
    for name in registry.names(slot):
        told = run(f"explain {slot}/{name}").out
        entry = registry.find(slot, name)
        assert entry.sentence[:40] in told
        for parameter, kind, _ in parameters(entry):
            assert parameter in told
            assert kind
            assert "FieldInfo" not in kind
            assert "typing" not in kind


def test_parameters_say_their_bounds() -> None:
    kinds = {n: (k, d) for n, k, d in parameters(registry.find("grid", "karras"))}
    assert kinds["steps"] == ("int > 0", "default 20")
    kinds = {n: (k, d) for n, k, d in parameters(registry.find("solve", "euler"))}
    assert kinds["eta"] == ("float >= 0, <= 1", "default 0.0")


def test_a_part_as_a_plan_holds_it_is_a_plan(run: Run) -> None:
    for slot in ("solve", "guide"):
        for name in registry.names(slot):
            text = run(f"explain {slot}/{name}").out.split("In a plan")[1]
            value = yaml.safe_load(text)[slot]
            registry.make(slot, value[0] if isinstance(value, list) else value)


def test_a_name_in_two_slots_is_explained_twice_unless_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [s for s in registry.SLOTS if "linear" in registry.names(s)]
    names = registry.names
    monkeypatch.setattr(registry, "names", lambda s: [*names(s), *(["linear"] if s == "guide" else [])])
    find = registry.find
    monkeypatch.setattr(registry, "find", lambda s, n: find("grid" if n == "linear" else s, n))
    assert run("explain linear").out.count("Times uniform in t") == len(both) + 1
    assert run("explain grid/linear").out.count("Times uniform in t") == 1


def test_every_system_is_explained(run: Run) -> None:
    for id in systems.ids():
        record, told = systems.find(id), run(f"explain {id}").out
        flat = " ".join(told.split())
        assert " ".join(record.claim.split()) in flat
        assert f"ebb check {id}" in told
        assert all(name in told for name in record.presets)
        assert "@misc{" in told


def test_models_are_explained(run: Run) -> None:
    for name in zoo.names():
        told = run(f"explain {name}").out
        about = json.loads((zoo.folder(name) / "recipe.json").read_text())
        assert about["command"] in told
        assert ("ebb sample" in told) == ("process" in about)  # others judge or encode


def test_unknown_names_get_the_nearest(run: Run) -> None:
    assert "did you mean dpmpp-2m" in run("explain dpmpp2m", code=2).err
    assert "did you mean digits" in run("explain digit", code=2).err
    assert "error: " in run("explain guide/heun", code=2).err


@pytest.mark.parametrize(
    ("paper", "line"),
    [("2206.00364", "eprint = {2206.00364}"), ("10.1000/182", "doi = {10.1000/182}"), ("", "year = {2020}")],
)
def test_citations(paper: str, line: str) -> None:
    text = bibtex(systems.System(id="a-b", family="f", title="A, B", year=2020, claim="", paper=paper))
    assert text.startswith("@misc{a-b,\n")
    assert "title = {A, B}" in text
    assert line in text
    assert text.count("{") == text.count("}")


def test_plans_are_shown_and_checked(toy: Any, run: Run) -> None:
    run("sample toy -n 2 --steps 3 --solver heun --label 1 -o a.png")
    whole = Plan.load("a.plan.yaml")
    for file in ("a.plan.yaml", "a.png"):
        Path("taken.yaml").write_text(run(f"plan show {file}").out)
        assert Plan.load("taken.yaml") == whole
        assert "solve heun" in run(f"plan check {file}").out
    Path("b.yaml").write_text("solve: heun")
    assert "nothing of a run" in run("plan show b.yaml").err


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("solve: hein", "did you mean heun"),
        ("sovle: heun", "did you mean solve"),
        ("grid: {name: linear, steps: 0}", "greater than 0"),
        ("grid: adaptive", "needs 'err'"),
        ("[1, 2]", "mapping"),
        ("a: [", "cannot be read"),
        ("", "mapping"),
    ],
)
def test_bad_plans_are_refused(toy: Any, run: Run, text: str, word: str) -> None:
    Path("bad.yaml").write_text(text)
    told = run("plan check bad.yaml", code=2)
    assert word in told.err
    assert len(told.err.splitlines()) == 1


def test_a_picture_without_a_plan_is_refused(toy: Any, run: Run) -> None:
    from PIL import Image

    Image.new("L", (2, 2)).save("bare.png")
    assert "holds no plan" in run("plan show bare.png", code=2).err


def test_presets_of_systems_are_plans(toy: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        systems, "presets", lambda: {"quick": {"solve": "heun", "grid": {"name": "linear", "steps": 2}}}
    )
    assert "solve heun" in run("plan check quick").out
    assert json.loads(run("sample toy --plan quick -n 1 --json -o a.png").out)["calls"] == 3
    assert "did you mean quick" in run("plan check quik", code=2).err
