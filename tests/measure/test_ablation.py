"""Ablation: swaps of one slot, on mixtures whose classes are known, so that gains and null swaps are known too."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model, process
from ebbtide.measure import ablation as ab

MEANS = torch.tensor([[1.5, 0.0], [-1.0, 1.5], [-1.0, -1.5]], dtype=torch.float64)
LABELS = [k % 3 for k in range(60)]  # of each repeat
GRID = {"name": "linear", "steps": 12}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def law(spread: float = 0.2, name: str = "vp-cosine") -> GaussianMixture:
    return GaussianMixture(process(name), [1 / 3] * 3, MEANS, spread, labels=[0, 1, 2])


def model(spread: float = 0.2, name: str = "vp-cosine") -> Model:
    return Model(f"of {spread:g}", law(spread, name), torch.zeros(2, dtype=torch.float64), labels=3)


@functools.cache
def judge() -> ab.Judge:
    """Features are the points, and the classifier is Bayes' rule."""
    data = law().sample(4000, seed=90_000)
    return ab.Judge(lambda x: x.double(), lambda x: -(torch.cdist(x.double(), MEANS) ** 2) / 0.4, ab.m.moments(data))


def trial(**more: Any) -> ab.Trial:
    return ab.Trial(judge(), LABELS, **{"repeats": 2, "draws": 60, **more})


def run(x: Tensor, labels: Tensor, calls: float = 1.0, each: int = 60) -> ab.Run:
    return ab.Run(judge().features(x), judge().logits(x), labels, calls, each)


def test_a_swap_that_changes_nothing_is_called_no_difference() -> None:
    """Ancestral sampling without its noise is Euler's method, bit for bit."""
    plan = ebb.Plan(grid=GRID)
    rows = ab.ablate(trial(), model(), plan, {"solve": [{"name": "ancestral", "eta": 0.0}], "model": [model()]})
    assert [(r.slot, r.name) for r in rows] == [("solve", "ancestral:eta=0.0"), ("model", "of 0.2")]
    for change in (c for row in rows for c in row.changes.values()):
        assert change.ratio == (1, 1, 1)
        assert change.repeats == (1, 1)
        assert change.verdict == ab.SAME


def test_two_draws_of_one_law_stray_as_seldom_as_the_level_says() -> None:
    labels = torch.tensor(LABELS * 2)
    spread = 0.2**0.5 * torch.randn(60, len(labels), 2, generator=torch.Generator().manual_seed(0)).double()
    runs = [run(MEANS[labels] + e, labels) for e in spread]
    t = trial(draws=30)
    found = [t.contrast(a, b) for a, b in zip(runs[::2], runs[1::2], strict=True)]
    for name in ab.Figures._fields:
        strays = sum(f[name].verdict != ab.SAME for f in found)
        assert strays <= 6, name  # of 30, where 1.5 are expected: P(more) < 0.001


def test_planted_gains_and_losses_are_found() -> None:
    narrow = ebb.Plan(solve="heun", grid={"name": "log-snr", "steps": 16})
    coarse = {"name": "linear", "steps": 1}
    rows = ab.ablate(trial(), model(), narrow, {"grid": [coarse], "model": [model(1.2)]})
    grid, wide = (row.changes for row in rows)
    assert grid["calls"].verdict == "better"
    assert grid["diversity"].verdict == "worse"  # one step lands on the mean of the class
    assert [wide[k].verdict for k in ab.Figures._fields] == ["worse", "worse", "worse", "better"]
    assert wide["calls"].verdict == ab.SAME
    rows = ab.ablate(trial(), model(1.2), narrow, {"model": [model()], "guide": ["cfg"]})
    back, guided = (row.changes for row in rows)
    assert [guided[k].verdict for k in ("calls", "accuracy", "diversity")] == ["worse", "better", "worse"]
    assert [back[k].verdict for k in ab.Figures._fields] == ["better", "better", "better", "worse"]
    for name, change in back.items():
        assert change.ratio.value == pytest.approx(1 / wide[name].ratio.value), name


def test_a_swap_changes_one_slot_only() -> None:
    plan = ebb.Plan(solve="heun", grid=GRID, guide={"name": "cfg", "scale": 2.0})
    for slot, other in {
        "solve": "euler",
        "grid": {"name": "log-snr", "steps": 5},
        "guide": None,
        "process": "flow",
    }.items():
        one = model()
        same, changed = ab.swapped(one, plan, slot, other)
        assert same is one
        before, after = plan.to_dict(), changed.to_dict()
        assert {k for k in before | after if before.get(k) != after.get(k)} == {slot}
    other_model = model(1.0, "vp-linear")
    assert ab.swapped(model(), plan, "model", other_model) == (other_model, plan)


def test_both_sides_start_from_the_same_seeds_and_labels() -> None:
    """Samples of one model by two solvers on fine grids are pairs: they end in the same place, and repeats do not."""
    t = trial()
    a = t.run(model(), ebb.Plan(solve="heun", grid={"name": "log-snr", "steps": 40}))
    b = t.run(model(), ebb.Plan(solve="dpmpp-2m", grid={"name": "log-snr", "steps": 60}))
    assert a.labels.tolist() == b.labels.tolist() == LABELS * 2
    assert (a.calls, b.calls) == (79, 60)
    assert float((a.features - b.features).abs().max()) < 0.02
    first, second = a.repeats()
    assert torch.equal(first.features, a.features[:60])
    assert float((first.features - second.features).abs().mean()) > 0.2
    direct = ebb.sample(
        model(), ebb.Plan(solve="heun", grid={"name": "log-snr", "steps": 40}), cond=LABELS, n=60, seed=60
    )
    assert torch.equal(second.features, direct.x)


def test_pairs_make_the_interval_narrower_than_separate_draws() -> None:
    """What two sides have in common leaves the ratio: the interval of a shift is that of the shift alone."""
    labels = torch.tensor(LABELS * 2)
    e = 0.2**0.5 * torch.randn(2, len(labels), 2, generator=torch.Generator().manual_seed(1)).double()
    base = run(MEANS[labels] + e[0], labels)
    paired = trial().contrast(base, run(MEANS[labels] + 1.05 * e[0], labels))["diversity"]
    apart = trial().contrast(base, run(MEANS[labels] + 1.05 * e[1], labels))["diversity"]
    assert paired.ratio.value == pytest.approx(1.05)
    assert paired.ratio.high - paired.ratio.low < 1e-6
    assert apart.ratio.high - apart.ratio.low > 0.05


def test_diversity_is_within_classes() -> None:
    x = torch.tensor([[0.0], [2.0], [10.0], [16.0], [99.0]])
    assert ab.diversity(x, torch.tensor([0, 0, 1, 1, 2])) == pytest.approx((2 + 6) / 2)  # a class of one has none
    with pytest.raises(EbbError, match="more of each label"):
        ab.diversity(x, torch.arange(5))


def test_a_figure_of_nothing_has_a_ratio() -> None:
    labels = torch.tensor(LABELS * 2)
    right, wrong = run(MEANS[labels] + 0.01 * torch.rand(120, 2), labels), run(MEANS[(labels + 1) % 3], labels)
    assert trial().contrast(wrong, right)["accuracy"].verdict == "better"
    found = trial().contrast(wrong, wrong)["accuracy"]
    assert (found.base, found.ratio.value, found.verdict) == (0, 1, ab.SAME)


def test_what_cannot_be_swapped_is_told() -> None:
    with pytest.raises(EbbError, match="did you mean solve"):
        ab.ablate(trial(), model(), ebb.Plan(), {"solver": ["heun"]})
    with pytest.raises(EbbError, match="heunn"):
        ab.ablate(trial(), model(), ebb.Plan(), {"solve": ["heunn"]})


def test_the_table_has_a_line_a_swap() -> None:
    rows = ab.ablate(trial(draws=5), model(), ebb.Plan(grid=GRID), {"guide": [None, "cfg"]})
    head, none, guided = ab.table(rows).splitlines()
    assert head.split() == ["slot", "swap", "calls", *ab.Figures._fields]
    assert none.split()[:3] == ["guide", "none", "1"]
    assert none.count(ab.SAME) == 5
    assert guided.split()[:3] == ["guide", "cfg", "2"]
    assert math.isclose(rows[1].changes["calls"].other, 24)
