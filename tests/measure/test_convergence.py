"""Convergence: the fine solution against a closed form, slopes against declared orders, calls against those that are made."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model, process
from ebbtide.measure import convergence as cv
from ebbtide.measure import survey as sv

MEANS = [[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def mixture(name: str = "vp-cosine") -> Model:
    law = GaussianMixture(process(name), [0.5, 0.3, 0.2], MEANS, 0.2, labels=[0, 1, 2])
    return Model("mixture", law, torch.zeros(2, dtype=torch.float64), labels=3)


def pair(solve: str, grid: str, **more: Any) -> sv.Pair:
    return sv.Pair({"name": solve, **more}, {"name": grid})


@pytest.mark.parametrize("name", ["flow", "vp-linear", "vp-cosine", "edm"])
def test_the_fine_solution_of_a_gaussian_is_its_flow_map(name: str) -> None:
    """A probability flow keeps every point at the same number of deviations from the mean."""
    mean, deviation = torch.tensor([1.0, -2.0], dtype=torch.float64), 0.5
    p: Any = process(name)
    model = Model("one", GaussianMixture(p, [1.0], mean[None], deviation**2), torch.zeros(2, dtype=torch.float64))
    setting = sv.Setting(model, n=32)
    ref = cv.reference(setting, tol=1e-4)
    _, start = ebb.api.begin(model, ebb.Plan(), None, 32, 0)
    one = torch.ones(1, dtype=torch.float64)
    a, c = float(p.a(one)), float(p.c(one))
    true = mean + deviation * (start.x - a * mean) / math.sqrt((a * deviation) ** 2 + c**2)
    assert ref.error <= 1e-4
    # doubling a method of order 2 changes it by three times what is left
    assert ref.error / 6 < cv.distance(ref.x, true) < ref.error


@pytest.mark.parametrize(("solve", "order"), [("euler", 1), ("heun", 2)])
def test_the_slope_is_the_order(solve: str, order: int) -> None:
    """On times that are even in the root of sigma near the data, where the flow of this process is smooth."""
    setting = sv.Setting(mixture("vp-linear"), n=16)
    ref = cv.reference(setting, tol=1e-5, steps=512, most=1024)
    rows = [cv.measure(setting, ref, pair(solve, "quadratic"), budget) for budget in (40, 80, 160)]
    for one, two in itertools.pairwise(rows):
        assert one is not None
        assert two is not None
        slope = math.log(one.error / two.error) / math.log(two.steps / one.steps)
        assert slope == pytest.approx(order, abs=0.15)


def test_rows_are_what_sampling_gives_and_costs() -> None:
    """Every pair with guidance: the samples of its plan, the calls that they made, and one step more would be too much."""
    model = mixture("flow")
    base = ebb.Plan(guide=[{"name": "cfg", "scale": 1.5}])
    setting = sv.Setting(model, base, cond=[0, 1, 2], n=3, seed=5)
    ref = cv.reference(setting, tol=1e-2)
    found = sv.survey(setting)
    assert {"euler", "heun"} <= {p.solve["name"] for p in found.pairs}
    assert {"linear", "log-snr", "karras"} <= {p.grid["name"] for p in found.pairs}
    chosen = [p for p in found.pairs if p.grid["name"] in ("linear", "karras")]
    assert len(chosen) >= 6
    for p in chosen:
        row = cv.measure(setting, ref, p, 13)
        if row is None:
            with pytest.raises(AssertionError, match="too dear"):
                assert setting.count(p.plan(base, 1)) <= 13, "too dear"
            continue
        out = ebb.sample(model, row.plan(base), cond=[0, 1, 2], n=3, seed=5)
        assert out.calls == row.calls * 3
        assert row.calls <= 13
        assert setting.run(p.plan(base, row.steps + 1))[1] > 13
        gap = (out.x - ref.x).square().sum() / ref.x.square().sum()
        assert row.error == (pytest.approx(float(gap.sqrt())) if math.isfinite(row.error) else math.inf)


def test_starts_are_the_same_draws_at_every_first_time() -> None:
    """A grid that begins at noise alone and stands still there: nothing but c z is left of each start."""
    model, z = mixture("flow"), []
    for first in (1.0, 0.8):
        _, state = ebb.api.begin(model, ebb.Plan(grid={"name": "linear", "first": first}), 0, 4, 9)
        z.append(state.x / float(model.process.c(torch.tensor([first], dtype=torch.float64))))  # type: ignore[attr-defined]
    assert torch.allclose(z[0], z[1], rtol=1e-12)


def test_what_draws_noise_and_what_does_not_fit_is_told_apart() -> None:
    found = sv.survey(sv.Setting(mixture("flow")))
    assert "ancestral" in found.drawn
    assert "masked" in found.left["solve confidence"]
    assert "number of steps" in found.left["grid explicit"]
    assert "times of linear" in found.left["grid staggered"]
    assert not {"ancestral", "confidence"} & {p.solve["name"] for p in found.pairs}
    assert not {"explicit", "staggered"} & {p.grid["name"] for p in found.pairs}
    with pytest.raises(EbbError, match="draws noise"):
        sv.survey(sv.Setting(mixture()), [{"name": "ancestral"}])
    with pytest.raises(EbbError, match="number of steps"):
        sv.survey(sv.Setting(mixture()), None, [{"name": "explicit"}])
    with pytest.raises(EbbError, match="masked"):
        sv.survey(sv.Setting(mixture()), [{"name": "confidence"}])


@pytest.mark.parametrize("name", ["masked", "uniform"])
def test_models_of_tokens_are_sent_elsewhere(name: str) -> None:
    denoiser = Denoiser()
    denoiser.process = process(name, vocab=5)
    with pytest.raises(EbbError, match="by their law"):
        sv.Setting(Model("tokens", denoiser, torch.zeros(6, dtype=torch.int64)))


def test_the_best_go_on_with_a_grid_of_each_solver() -> None:
    setting = sv.Setting(mixture(), n=4)
    ref = cv.reference(setting, tol=1e-2)
    pairs = [pair(s, g) for s in ("euler", "heun") for g in ("linear", "cosine", "karras")]
    seen = [(p.name, b, row) for p, b, row in cv.convergence(setting, ref, pairs, (9, 3, 5), keep=1)]
    first = sorted((row for _, b, row in seen if b == 5 and row), key=lambda r: r.error)
    assert [b for _, b, _ in seen[:6]] == [5] * 6
    expected = {first[0].pair.name, next(r for r in first if r.pair.solve != first[0].pair.solve).pair.name}
    for budget in (3, 9):
        assert {name for name, b, _ in seen if b == budget} == expected
    whole = list(cv.convergence(setting, ref, pairs, (9, 3, 5), keep=None))
    assert len(whole) == 18

    known = {(name, b): row for name, b, row in seen}
    steps: list[Any] = []
    again = cv.convergence(setting, ref, pairs, (9, 3, 5), keep=1, known=known, watch=steps.append)
    assert [(p.name, b, row) for p, b, row in again] == seen
    assert not steps


def test_a_pair_too_dear_for_a_budget_has_no_row() -> None:
    setting = sv.Setting(mixture(), ebb.Plan(guide=[{"name": "cfg", "scale": 2.0}]), cond=0, n=2)
    ref = cv.reference(setting, tol=1e-1)
    assert cv.measure(setting, ref, pair("euler", "linear"), 1) is None
    row = cv.measure(setting, ref, pair("euler", "linear"), 3)
    assert row is not None
    assert (row.steps, row.calls) == (1, 2.0)
    with pytest.raises(EbbError, match="at least one"):
        cv.measure(setting, ref, pair("euler", "linear"), 0)


def test_what_is_not_finite_has_an_infinite_error() -> None:
    """NaN at noise levels that the fine solution is asked for and the grid in question is not, and the other way round."""

    class Spoilt(GaussianMixture):
        def __call__(self, x: Any, t: Tensor, cond: dict[str, Any]) -> Pred:
            pred = super().__call__(x, t, cond)
            return Pred(mean=torch.where((t == 0.5)[:, None], torch.nan, pred.mean))

    model = Model("s", Spoilt(process("flow"), [1.0], [[0.0, 1.0]], 0.2), torch.zeros(2, dtype=torch.float64))
    setting = sv.Setting(model, n=3)
    ref = cv.reference(setting, tol=1e-2)
    row = cv.measure(setting, ref, pair("euler", "linear"), 4)
    assert row is not None
    assert row.error == row.typical == math.inf
    good = cv.measure(setting, ref, pair("euler", "linear"), 5)
    assert good is not None
    assert good.error < 1
