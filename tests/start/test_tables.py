"""Starts that read a table: the mean of classes at zero signal, and the optimal map onto stored latents."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model, process
from ebbtide.start.one_more_step import class_means
from ebbtide.start.transport import cells, fit

MEANS = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]], dtype=torch.float64)


def model(**parameters: Any) -> Model:
    g = GaussianMixture(process("vp-linear", **parameters), [1, 1, 2], MEANS, 0.04, labels=[0, 1, 2])
    return ebb.load(g, like=torch.zeros(2, dtype=torch.float64), labels=3)


def normal(n: int, seed: int = 0) -> Tensor:
    return Noise(keys([seed]), torch.zeros(1, dtype=torch.int64)).normal(torch.zeros(1, n, 2, dtype=torch.float64))[0]


# ---------------------------------------------------------------- one more step

START: dict[str, Any] = {"name": "one-more-step", "table": {"mean": MEANS.tolist(), "weight": [1.0, 1.0, 2.0]}}


def test_the_table_is_what_the_model_answers_where_nothing_is_left_to_see():
    """psi is E[x0 | c]: the exact model asked at zero signal, for each class and for none."""
    clean = model(zero_terminal=True)
    one = torch.ones(4, dtype=torch.float64)
    told = clean.denoiser(normal(4), one, {"label": torch.tensor([0, 1, 2, -1])}).mean
    a = model(beta_max=4.0).process.a(one[:1])
    cond = {"label": torch.tensor([0, 1, 2, -1])}
    with_it, without = (begin(model(beta_max=4.0), ebb.Plan(start=s), cond=cond, n=4)[1].x for s in (START, "prior"))
    assert torch.allclose(with_it - without, a * told)


def test_scale_moves_away_from_the_mean_of_all_and_a_prompt_of_its_own_is_heard():
    m, label = model(beta_max=4.0), {"label": torch.tensor([0, 1])}
    at = lambda scale, cond: begin(m, ebb.Plan(start={**START, "scale": scale}), cond=cond, n=2)[1].x  # noqa: E731
    none, once, twice = (at(s, label) for s in (0.0, 1.0, 2.0))
    assert torch.allclose(twice - once, once - none)
    assert torch.equal(none, at(1.0, {"label": torch.tensor([-1, -1])}))
    own = {**label, "oms": torch.tensor([1, 0])}
    assert torch.allclose(at(1.0, own) - none, (once - none).flip(0))
    state = begin(m, ebb.Plan(start=START), cond=own, n=2)[1]
    assert sorted(state.cond) == ["label"]


def test_without_signal_at_the_start_it_is_the_prior_to_the_bit():
    m = model(zero_terminal=True)
    x, y = (ebb.sample(m, ebb.Plan(start=s), cond=[0, 1, 2], n=3).x for s in (START, "prior"))
    assert torch.equal(x, y)


def test_class_means_are_those_of_each_class():
    x, label = normal(60), torch.arange(60) % 3
    found = class_means(x, label)
    for k in range(3):
        assert torch.allclose(found["mean"][k], x[label == k].mean(0))
    assert found["weight"].tolist() == [20, 20, 20]


def test_a_label_without_a_row_is_told():
    with pytest.raises(EbbError, match="labels 0 to 2, not for 9"):
        begin(model(), ebb.Plan(start=START), cond={"label": torch.tensor([0]), "oms": torch.tensor([9])}, n=1)


# ---------------------------------------------------------------- transport


def brute(z: Tensor, y: Tensor) -> float:
    """The least sum of squared distances of all ways to pair z with y."""
    cost = torch.cdist(z, y) ** 2
    return min(float(cost[range(len(z)), list(p)].sum()) for p in itertools.permutations(range(len(y))))


def test_the_map_pairs_noise_and_latents_at_the_least_cost():
    """For z in cells of their own, no other pairing costs less, whatever the heights: a potential's gradient is optimal."""
    y, h = 2 * normal(6, 3), torch.tensor([0.3, -0.2, 0.1, 0.0, -0.4, 0.2], dtype=torch.float64)
    z = normal(4000, 4)
    cell = cells(z, y, h)
    first = torch.stack([(cell == k).nonzero()[0, 0] for k in cell.unique()])
    assert len(first) > 4
    mine = float((z[first] - y[cell[first]]).square().sum())
    assert mine == pytest.approx(brute(z[first], y[cell[first]]))


def test_heights_make_cells_of_equal_mass():
    y = torch.cat([normal(20, 5), 6 + normal(10, 6)])
    mass = lambda h: torch.bincount(cells(normal(100_000, 8), y, h), minlength=30) / 100_000 * 30  # noqa: E731
    assert float(mass(torch.zeros(30, dtype=torch.float64)).max()) > 3
    good = mass(fit(y, steps=400, lr=0.05)["heights"])
    assert float((good - 1).abs().max()) < 0.2


def test_two_latents_are_cut_at_the_quantile_of_the_noise():
    """Mass w of the upper cell is P(z1 > -h / 2): with equal masses the heights are equal, however far the latents lie."""
    found = fit(torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64), steps=300, lr=0.02)
    assert abs(float(found["heights"][0] - found["heights"][1])) < 0.05
    shifted = fit(torch.tensor([[3.0, 0.0], [1.0, 0.0]], dtype=torch.float64), steps=300, lr=0.02)
    assert abs(float(shifted["heights"][0] - shifted["heights"][1])) < 0.05


def test_a_run_starts_in_the_cell_of_its_own_noise_and_noise_stirs_it():
    y, h = 2 * normal(5, 3), torch.zeros(5, dtype=torch.float64)
    table = {"latents": y.tolist(), "heights": h.tolist()}
    grid = {"name": "linear", "steps": 3, "first": 0.2}
    state = begin(model(), ebb.Plan(start={"name": "transport", "table": table}, grid=grid), n=50)[1]
    z = begin(ebb.load(model(zero_terminal=True).denoiser, like=torch.zeros(2).double()), ebb.Plan(), n=50)[1].x
    assert torch.equal(state.x, y[cells(z, y, h)])
    assert bool((state.t == 0.2).all())
    start = {"name": "transport", "table": table, "noise": 0.1}
    stirred = begin(model(), ebb.Plan(start=start, grid=grid), n=2000)[1].x
    gap = stirred - begin(model(), ebb.Plan(start={**start, "noise": 0.0}, grid=grid), n=2000)[1].x
    assert float(gap.std()) == pytest.approx(0.1, rel=0.06)


def test_latents_without_heights_are_told():
    table = {"latents": [[0.0, 1.0]], "heights": [0.0, 1.0]}
    with pytest.raises(EbbError, match="1 latents and heights"):
        begin(model(), ebb.Plan(start={"name": "transport", "table": table}), n=1)
