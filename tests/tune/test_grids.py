"""Optimised grids: nearer the model's own trajectories than Karras and uniform log-SNR, on starts they never saw."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.denoise.exact import Gaussian, GaussianMixture
from ebbtide.denoise.model import Model, process
from ebbtide.tune.grids import _Costs, optimise_grid

RIVALS: tuple[dict[str, Any], ...] = (
    {"name": "karras"},
    {"name": "karras", "sigma_min": 0.03},
    {"name": "log-snr"},
    {"name": "log-snr", "last": 0.02},
)


def mixture(over: str, dims: int = 6) -> Model:
    """Five Gaussians in so many dimensions."""
    place = torch.arange(5 * dims, dtype=torch.float64).reshape(5, dims)
    p: Any = process(over)
    g = GaussianMixture(p, [1, 2, 3, 2, 1], 1.2 * (1.7 * place + 0.3 * place**2).sin(), 0.2)
    return ebb.load(g, like=torch.zeros(dims, dtype=torch.float64))


def far(model: Model, plan: ebb.Plan, fine: Tensor, seed: int, **more: Any) -> float:
    """The mean distance of ends from those of fine runs."""
    x = ebb.sample(model, plan, n=len(fine), seed=seed, **more).x
    return float((x - fine).flatten(1).square().mean(1).sqrt().mean())


@pytest.mark.parametrize("over", ["vp-linear", "flow"])
@pytest.mark.parametrize("solve", ["dpmpp-2m", "euler"])
def test_eight_steps_beat_karras_and_uniform_log_snr_on_fresh_seeds(over: str, solve: str):
    model, plan = mixture(over), ebb.Plan(solve=solve)
    found = optimise_grid(model, plan, 8, n=32, candidates=50, trials=60)
    assert len(found.grid["times"]) == 9
    assert ebb.Plan.from_dict(found.to_dict()) == found
    assert found.solve == plan.solve
    fine = ebb.sample(model, ebb.Plan(solve="heun", grid={"name": "log-snr", "steps": 150}), n=200, seed=9000).x
    mine = far(model, found, fine, 9000)
    theirs = [far(model, plan.replace(grid={**grid, "steps": 8}), fine, 9000) for grid in RIVALS]
    assert mine < 0.9 * min(theirs), (mine, theirs)


def test_digits_too():
    model, plan, labels = ebb.load("digits"), ebb.Plan(solve="dpmpp-2m"), list(range(10)) * 2
    found = optimise_grid(model, plan, 8, cond=labels[:16], n=16, candidates=24, trials=20)
    reference = ebb.Plan(solve="dpmpp-2m", grid={"name": "log-snr", "steps": 60})
    fine = ebb.sample(model, reference, cond=labels, n=20, seed=500).x
    mine = far(model, found, fine, 500, cond=labels)
    for grid in ({"name": "karras"}, {"name": "log-snr"}):
        assert mine < 0.95 * far(model, plan.replace(grid={**grid, "steps": 8}), fine, 500, cond=labels)


def test_the_programme_finds_the_best_of_all_paths():
    """Against every path there is, tried one by one; its errors are those of real steps of the two-step solver."""
    p: Any = process("vp-linear")
    torch.manual_seed(0)
    t = p.time(torch.linspace(-4, 3, 9, dtype=torch.float64))
    x0 = torch.randn(10, 12, dtype=torch.float64).cumsum(0)
    for order, power in itertools.product((1, 2), (1, 2)):
        costs = _Costs(p, t, x0, order)
        price = {}
        for inner in itertools.combinations(range(1, 9), 4):
            path = (0, *inner)
            last = zip((0, *path), path, path[1:], strict=False)
            steps = [float(costs.cost[h, i, j]) ** power for h, i, j in last]
            price[path] = sum(steps) + float(costs.land[path[-1]]) ** power
        assert tuple(costs.best(5, power)) == min(price, key=lambda k: price[k])


@pytest.mark.parametrize("order", [1, 2])
def test_local_errors_are_those_of_real_steps(order: int):
    """The solver's own step against the step done finely, carried to the end."""
    p: Any = process("flow")
    lam = torch.linspace(-3, 2, 161, dtype=torch.float64)
    slope = torch.tensor([1.0, -2.0], dtype=torch.float64)
    fine = (lam**2)[:, None] * slope
    x0 = torch.cat([fine, fine[-1:] + torch.tensor([1.0, 2.0])])
    h, i, j = 10, 50, 120
    picked = [h, i, *range(i + 1, j), j]
    t = p.time(lam[picked])
    costs = _Costs(p, t, x0[[*picked, -1]], order)
    a, c = p.a(t), p.c(t)
    weights = p.weights(t[1:2], t[-1:])
    r = (lam[j] - lam[i]) / (2 * (lam[i] - lam[h])) if order == 2 else 0.0
    step = weights.x0 * (fine[i] + r * (fine[i] - fine[h]))
    x = torch.zeros(2, dtype=torch.float64)
    for k in range(1, len(t) - 1):
        w = p.weights(t[k : k + 1], t[k + 1 : k + 2])
        x = w.x * x + w.x0 * (fine[picked[k]] + fine[picked[k + 1]]) / 2
    spread = (x0[-1] - x0[-1].mean()).square().mean()
    carry = (spread / (a[-1] ** 2 * spread + c[-1] ** 2)).sqrt()
    history = 0 if order == 2 else 1
    assert float(costs.cost[history, 1, -1]) == pytest.approx(float((step - x).norm() * carry), rel=1e-2)


def test_progress_is_told_and_one_step_is_a_grid(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[float, float]] = []
    model, rows = mixture("flow"), 0
    answer = type(model.denoiser).__call__

    def counted(self: Any, x: Any, *more: Any) -> Any:
        nonlocal rows
        rows += len(x)
        return answer(self, x, *more)

    monkeypatch.setattr(type(model.denoiser), "__call__", counted)
    found = optimise_grid(model, ebb.Plan(), 3, n=4, candidates=12, trials=20, watch=lambda d, n: seen.append((d, n)))
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert seen[-1] == (rows / 4, rows / 4)
    assert seen[0][1] == pytest.approx(rows / 4, rel=0.4)  # known from the first step on, about
    assert len(found.grid["times"]) == 4
    assert optimise_grid(model, ebb.Plan(), 1, n=2, candidates=5).grid["times"] == [1.0, 0.0]


def test_what_cannot_be_optimised_is_said():
    model = mixture("flow")
    with pytest.raises(EbbError, match="eta 0"):
        optimise_grid(model, ebb.Plan(solve={"name": "euler", "eta": 1.0}), 4)
    with pytest.raises(EbbError, match="too few"):
        optimise_grid(model, ebb.Plan(), 8, candidates=9)
    bridge = ebb.load(Gaussian(process("bridge"), torch.zeros(6), torch.eye(6)), like=torch.zeros(6))
    with pytest.raises(EbbError, match="Gaussian process"):
        optimise_grid(bridge, ebb.Plan(), 4, cond={"y": torch.zeros(32, 6, dtype=torch.float64)})
