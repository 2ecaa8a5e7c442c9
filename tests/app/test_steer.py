"""`ebb steer`: winners and their scores, plans that repeat them, runs that go on, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ebbtide.core.plan import Plan

FK = "steer toy --reward mean --steps 6 --label 1 -n 2"
SEARCH = "steer toy --reward mean --method random --steps 5 --label 1 -n 2 --budget 20"


def x_of(path: str) -> np.ndarray:
    return np.load(path)["x"]


@pytest.mark.parametrize("method", ["fk", "dlbs"])
def test_requests_and_their_winners(method: str, toy: Any, run: Callable[..., Any]) -> None:
    told = json.loads(run(f"{FK} --method {method} --particles 3 -o a.npz --json").out)
    x = x_of("a.npz")
    assert x.shape[0] == 6
    mean = x.reshape(2, 3, -1).mean(-1)
    assert [w["place"] for w in told["winners"]] == [k * 3 + int(mean[k].argmax()) for k in range(2)]
    assert np.allclose([w["score"] for w in told["winners"]], mean.max(1), atol=1e-6)
    assert told["files"] == ["a.npz", "a.plan.yaml", "a.best.png"]
    with Image.open("a.best.png") as picture:
        assert picture.height == 64 + 14 + 4
    run("sample --plan a.plan.yaml -o b.npz")
    assert np.array_equal(x_of("b.npz"), x)
    steer = Plan.load("a.plan.yaml").to_dict()["steer"]
    assert steer == {"name": {"fk": "fk-steering", "dlbs": "dlbs"}[method], "reward": "mean"}


@pytest.mark.parametrize("method", ["random", "zero-order", "paths"])
def test_what_a_search_found_is_repeated_by_its_plan(method: str, toy: Any, run: Callable[..., Any]) -> None:
    told = json.loads(run(f"{SEARCH.replace('random', method)} -o a.npz --json").out)
    assert told["calls"] <= 2 * 20 + 2 * 10
    calls = toy.calls
    run("sample --plan a.plan.yaml -o b.npz")
    assert np.array_equal(x_of("a.npz"), x_of("b.npz"))
    assert toy.calls - calls <= 5
    assert np.allclose([w["score"] for w in told["winners"]], x_of("a.npz").reshape(2, -1).mean(1), atol=1e-6)


def test_more_particles_and_parameters_by_set(toy: Any, run: Callable[..., Any]) -> None:
    run(f"{FK} --particles 2 --set steer.strength=3 --set steer.ess=1.0 --reward '{{name: near, point: 0.5}}' -o a.npz")
    steer = Plan.load("a.plan.yaml").to_dict()["steer"]
    assert steer == {"name": "fk-steering", "reward": {"name": "near", "point": 0.5}, "strength": 3, "ess": 1.0}
    plan = yaml.safe_load(Path("a.plan.yaml").read_text())
    assert plan["run"]["group"] == 2
    assert plan["solve"] == {"name": "ancestral"}


@pytest.mark.parametrize("method", ["fk", "random", "paths"])
def test_a_run_that_was_stopped_ends_in_the_same_files(method: str, toy: Any, run: Callable[..., Any]) -> None:
    line = FK if method == "fk" else SEARCH.replace("random", method)
    run(f"{line} -o whole.npz")
    from conftest import interrupt

    toy.at = {toy.calls + 4: interrupt}
    told = run(f"{line} -o part.npz", code=130)
    assert "stopped" in told.err
    assert not Path("part.npz").exists()
    run("resume part.state.safetensors" if method == "fk" else f"{line} -o part.npz")
    assert np.array_equal(x_of("part.npz"), x_of("whole.npz"))
    assert Path("part.best.png").read_bytes()
    assert not list(Path().glob("*.state.safetensors"))
    assert not list(Path().glob("*.search.safetensors"))


def test_rewards_that_fail_stop_nobody(toy: Any, run: Callable[..., Any]) -> None:
    Path("own.py").write_text(
        "def picky(x):\n    if (x.mean() > -2).any(): raise ValueError('no')\n    return x.mean()\n"
    )
    for method in ("fk", "dlbs", "random"):
        told = run(f"{FK} --method {method} --reward own.py:picky -o {method}.npz")
        assert "the reward 'own.py:picky' raised ValueError: no" in told.err
        assert Path(f"{method}.npz").exists()


def test_bad_input_is_one_sentence(toy: Any, refused: Callable[[str, str], None]) -> None:
    Path("own.py").write_text("def sharp(x): return x.flatten(1).std(1)\n")
    refused("steer toy --reward meen", "did you mean mean")
    refused("steer toy --reward own.py:sharq", "did you mean sharp")
    refused("steer toy --reward none.py:sharp", "there is no file none.py")
    refused("steer toy --reward own.py", "names no function")
    refused("steer toy --reward '{name: [}'", "cannot be read")
    refused("steer toy --reward vowels", "makes no text")
    refused("steer toy --reward vowels --method random", "makes no text")
    refused("steer toy --reward mean --method beam", "there is no method 'beam'")
    refused("steer toy --reward mean --particles 1", "group=4")
    refused("steer toy --reward mean --batch 6", "do not divide batch = 6")
    refused("steer toy --reward mean --budget 20", "--budget is not for the method fk")
    refused("steer toy --reward mean --method random --particles 2", "--particles is not for")
    refused("steer toy --reward mean --solver euler", "stochastic")
    refused("steer toy --reward mean --method paths --solver ancestral", "draws nothing")
    assert {p.name for p in Path().iterdir()} == {"own.py"}


def test_help_shows_how(run: Callable[..., Any]) -> None:
    said = run("steer --help").out
    assert "ebb steer digits --reward digit" in said
    assert "FILE.py:FUNCTION" in said
