"""`ebb compare`: what it says of two plans is what their samples say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import ebbtide as ebb
from ebbtide import zoo
from ebbtide.app.comparing import distance

PAIR = "compare euler heun --model toy --steps 4 -n 3 --label 0,1,2"


def test_distances_are_those_of_the_samples(toy, run):
    told = json.loads(run(f"{PAIR} --json").out)
    plans = [ebb.Plan(grid={"name": "linear", "steps": 4}, solve=s) for s in ("euler", "heun")]
    a, b = (ebb.sample(zoo.load("toy"), plan, n=3, cond=[0, 1, 2]) for plan in plans)
    noise = (a.x - b.x).double().square().flatten(1).mean(1)
    assert told["rows"][1]["apart"] == pytest.approx((10 * (4 / noise).log10()).tolist(), rel=1e-9)
    assert told["rows"][0]["apart"] == [None] * 3  # the same
    assert [r["calls"] for r in told["rows"]] == [4, 7]


def test_a_plan_file_says_for_what_both_are_run(toy, run):
    run("sample toy -n 5 --seed 7 --label 1 --steps 3 -o a.png")
    told = json.loads(run("compare a.plan.yaml heun --json").out)
    assert (told["model"], told["n"]) == ("toy", 5)
    assert told["rows"][0]["slots"]["solve"]["name"] == "euler"


def test_the_picture_has_a_column_for_each_plan_and_one_for_what_differs(toy, run):
    run(f"{PAIR} -o two.png")
    run("compare euler heun deis --model toy --steps 4 -n 3 -o three.png")
    two, three = (Image.open(f"{name}.png") for name in ("two", "three"))
    assert two.size == three.size  # A, B and B - A; A, B and C


def test_the_table_says_what_differs_in_the_plans(toy, run):
    told = run("compare euler 'heun on karras' --model toy --steps 4 -n 2").out
    assert "B differs in grid linear(steps=4) -> karras(steps=4); solve euler -> heun" in told


def test_texts_are_shown_with_what_differs():
    x = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    name, apart = distance(x, torch.tensor([[1, 2, 3, 4], [1, 0, 3, 0]]), "text")
    assert name == "tokens that differ"
    assert apart.tolist() == [0.0, 0.5]


def test_points_are_compared_by_their_relative_distance():
    name, apart = distance(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 4.0]]), "points")
    assert name == "relative distance"
    assert apart.tolist() == [0.75]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("compare euler --model toy", "nothing to compare it with"),
        ("compare euler euler --model toy", "there is nothing to compare"),
        ("compare euler heun", "name a model"),
        ("compare euler nothing --model toy", "neither a file, a preset nor a solver"),
        (f"{PAIR} -o a.svg", "a comparison is a picture"),
        ("compare euler heun --model points -o a.png", "points makes no pictures"),
        ("compare euler confidence --model toy", "confidence"),
    ],
)
def test_bad_input(toy, refused, line, word):
    refused(line, word)


def test_files_that_exist_are_kept(toy, run, refused):
    Path("a.png").write_text("mine")
    refused(f"{PAIR} -o a.png", "exists")
    assert Path("a.png").read_text() == "mine"
    run(f"{PAIR} -o a.png --overwrite")
    assert Image.open("a.png").size[0] > 100
