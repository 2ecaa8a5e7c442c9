"""`ebb profile`: what it draws is what it measured, and what it cannot draw is said before the work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

PROFILE = "profile digits-unet -n 2 --steps 4 --label 3"


@pytest.fixture(autouse=True)
def _empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_picture_holds_a_square_for_each_site_and_step(run):
    told = json.loads(run(f"{PROFILE} -o heat.json --json").out)
    assert told["files"] == ["heat.json"]
    kept = json.loads(Path("heat.json").read_text())
    assert [s["site"] for s in kept["sites"]] == [s["site"] for s in told["sites"]]
    run(f"{PROFILE} -o heat.svg")
    drawn = Path("heat.svg").read_text()
    for site in kept["sites"]:
        squares = re.findall(rf"<title>{re.escape(site['site'])}, step (\d+): ([\d.e-]+)</title>", drawn)
        assert [int(k) for k, _ in squares] == [2, 3, 4]
        assert [float(v) for _, v in squares] == pytest.approx(site["changes"], rel=6e-3)


def test_the_table_names_every_site(run):
    told = run(PROFILE)
    assert "mid_block" in told.out
    assert "changes least" in told.out


def test_a_plan_that_caches_is_looked_into_without_its_cache(run):
    plain, cached = (run(f"{PROFILE} {extra} -o {k}.json") for k, extra in enumerate(("", "--set network=deepcache")))
    assert "without deepcache" in cached.err
    assert "without" not in plain.err
    one, two = (json.loads(Path(f"{k}.json").read_text())["sites"] for k in range(2))
    assert [s["changes"] for s in one] == [s["changes"] for s in two]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("profile digits-unet --steps 1", "a profile needs --steps 2 at least"),
        ("profile digits-unet -o heat.png", "a profile is written as .svg or .json"),
        ("profile nothing", "neither a shipped model nor a path"),
    ],
)
def test_bad_input(refused, line, word):
    refused(line, word)


def test_a_closed_form_has_nothing_to_look_into(toy, refused):
    refused("profile toy", "toy has no network to look into")
