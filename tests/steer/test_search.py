"""Search over whole runs: the plain sample first, plans that repeat winners, a journal that goes on, verifiers that fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.measure.rewards import reward
from ebbtide.process.gaussian import VPLinear

POINT = [1.0, -0.5]
MIX = GaussianMixture(VPLinear(), [0.3, 0.7], [[1.0, 0.0], [-1.0, 0.5]], 0.2, labels=[0, 1])
MODEL = ebb.load(MIX, like=torch.zeros(2, dtype=torch.float64), labels=2)
PLAN = ebb.Plan(grid={"name": "linear", "steps": 10})
NEAR = {"name": "near", "point": POINT}


def near(x: torch.Tensor) -> torch.Tensor:
    return -(x - torch.tensor(POINT)).square().sum(-1) / 2


@pytest.mark.parametrize("method", ["random", "zero-order", "paths"])
def test_winners_repeat_without_the_search_and_score_what_is_said(method: str, tmp_path: Path):
    found = ebb.search(
        MODEL, PLAN, NEAR, 200, method, n=5, seed=3, cond=[0, 1, 0, 1, 0], noise=tmp_path / "n.safetensors"
    )
    out = found.samples
    assert out.calls <= 5 * 200
    assert torch.allclose(found.scores, near(out.x))
    assert torch.equal(found.scores, found.tried.amax(0))
    read = ebb.Plan.from_dict(ebb.Plan.from_dict(out.plan.to_dict()).to_dict())  # as from a file
    again = ebb.sample(MODEL, read, cond=read.run["cond"], n=5, seed=read.run["seed"])
    assert torch.equal(again.x, out.x)
    assert again.calls <= 5 * 10


@pytest.mark.parametrize("method", ["random", "zero-order"])
def test_one_run_is_the_plain_sample(method: str):
    found = ebb.search(MODEL, PLAN, NEAR, 10, method, n=4, seed=7)
    plain = ebb.sample(MODEL, PLAN, n=4, seed=7)
    assert torch.equal(found.samples.x, plain.x)
    assert found.samples.calls == plain.calls
    over = ebb.search(MODEL, PLAN, NEAR, 3, method, n=4, seed=7)
    assert torch.equal(over.samples.x, plain.x)
    assert "over the budget of 3" in over.samples.remarks[0]


def test_random_search_is_the_best_of_its_seeds():
    found = ebb.search(MODEL, PLAN, NEAR, 60, n=3, seed=5)
    score = near(ebb.sample(MODEL, PLAN, n=18, seed=5).x).reshape(6, 3)
    assert torch.equal(found.tried, score)
    assert found.samples.seeds == [5 + j + 3 * int(score[:, j].argmax()) for j in range(3)]


def test_zero_order_stays_near_its_pivot_and_keeps_the_law_of_noise():
    """With keep near 1 candidates hardly move; with keep = 0 they are the random ones: noise alone."""
    plain = ebb.sample(MODEL, PLAN, n=64).x
    far = [
        float((ebb.search(MODEL, PLAN, NEAR, 100, "zero-order", n=64, keep=k).samples.x - plain).norm(dim=1).mean())
        for k in (0.99, 0.0)
    ]
    assert far[0] < 0.5 * far[1]
    loose = ebb.search(MODEL, PLAN, NEAR, 60, "zero-order", n=3, seed=5, keep=0.0)
    assert torch.allclose(loose.tried, ebb.search(MODEL, PLAN, NEAR, 60, n=3, seed=5).tried, atol=1e-9)


def test_paths_without_lifts_are_random_search():
    """One step back, and down past the end: no round fits, so the best of the paths is the best of their seeds."""
    none = ebb.search(MODEL, PLAN, NEAR, 40, "paths", n=2, level=1.0, back=1, down=9)
    assert torch.allclose(none.scores, ebb.search(MODEL, PLAN, NEAR, 40, n=2).scores)


@pytest.mark.parametrize("method", ["random", "zero-order", "paths"])
def test_a_search_that_was_stopped_goes_on(method: str, tmp_path: Path):
    asked = {"n": 3, "seed": 2, "width": 2}
    whole = ebb.search(MODEL, PLAN, NEAR, 160, method, **asked)
    file, seen = tmp_path / "s.safetensors", []

    def stop(calls: float, total: float) -> None:
        seen.append(calls)
        if len(seen) == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ebb.search(MODEL, PLAN, NEAR, 160, method, journal=file, watch=stop, **asked)
    count = len(seen)
    again = ebb.search(MODEL, PLAN, NEAR, 160, method, journal=file, watch=lambda *_: seen.append(0), **asked)
    assert torch.equal(again.samples.x, whole.samples.x)
    assert torch.equal(again.tried, whole.tried)
    assert again.samples.calls == whole.samples.calls
    assert 0 < len(seen) - count < whole.samples.calls
    with pytest.raises(EbbError, match="another search"):
        ebb.search(MODEL, PLAN, NEAR, 160, method, journal=file, n=3, seed=4, width=2)
    if method != "paths":
        more = ebb.search(MODEL, PLAN, NEAR, 300, method, journal=file, **asked)
        assert len(more.tried) > len(whole.tried)
        assert torch.equal(more.tried[: len(whole.tried)], whole.tried)


@reward("test-search-half")
def half(x: torch.Tensor, below: float = 0.0) -> torch.Tensor:
    if bool((x[:, 0] < below).any()):
        raise ZeroDivisionError("no such x")
    return x[:, 0]


@pytest.mark.parametrize("method", ["random", "zero-order", "paths"])
def test_candidates_without_a_score_give_way(method: str):
    found = ebb.search(MODEL, PLAN, "test-search-half", 120, method, n=6)
    plain = ebb.sample(MODEL, PLAN, n=6).x
    assert bool((plain[:, 0] < 0).any())
    assert int((found.samples.x[:, 0] < 0).sum()) < int((plain[:, 0] < 0).sum())
    assert "ZeroDivisionError: no such x" in found.samples.remarks[0]


def test_where_nothing_can_be_judged_the_plain_samples_come_back():
    found = ebb.search(MODEL, PLAN, {"name": "test-search-half", "below": 1e9}, 50, n=2)
    assert torch.equal(found.samples.x, ebb.sample(MODEL, PLAN, n=2).x)
    assert "no candidate could be judged" in found.samples.remarks[-1]


def test_what_cannot_be_searched_is_refused():
    def refused(match: str, plan: ebb.Plan = PLAN, verifier: object = NEAR, budget: int = 50, **more: object) -> None:
        with pytest.raises(EbbError, match=match) as told:
            ebb.search(MODEL, plan, verifier, budget, **more)  # type: ignore[arg-type]
        assert "\n" not in str(told.value)

    refused("no search 'randm'; did you mean random", method="randm")
    refused("no reward 'neer'; did you mean near", verifier="neer")
    refused("at least 1", budget=0)
    refused("keep in", keep=1.0)
    refused("fewer steps back", back=3, down=3)
    refused("draws nothing", plan=PLAN.replace(solve="ancestral"), method="paths")
    refused("does not begin with any", plan=PLAN.replace(start={"name": "analytic-init"}), method="zero-order")
    refused("steers already", plan=PLAN.replace(solve="ancestral", steer={"name": "dlbs", "reward": "mean"}))


def test_a_saved_start_says_which_seeds_it_holds():
    plan = PLAN.replace(start={"name": "saved", "table": {"x": [[0.1, 0.2], [0.3, 0.4]], "seed": [5, 9]}})
    two = ebb.sample(MODEL, plan, n=2, seed=[9, 5]).x
    given = torch.tensor([[0.3, 0.4], [0.1, 0.2]], dtype=torch.float64)
    assert torch.equal(two, ebb.sample(MODEL, PLAN.replace(start="given"), cond={"start": given, "label": -1}, n=2).x)
    with pytest.raises(EbbError, match="nothing for the seed 6; it has 5, 9"):
        ebb.sample(MODEL, plan, n=2, seed=5)
