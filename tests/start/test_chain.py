"""The chain over (x, sigma): its law of sigma against the closed form, what it leaves invariant, where runs begin."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.core.registry import make
from ebbtide.core.state import Pred
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model, process
from ebbtide.measure.metrics import energy_test
from ebbtide.start import chain

MEANS = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]], dtype=torch.float64)
GRID = {"name": "karras", "steps": 4, "sigma_min": 0.02, "sigma_max": 20.0}


def mixture(name: str = "edm", **parameters: Any) -> GaussianMixture:
    return GaussianMixture(process(name, **parameters), [1, 1, 2], MEANS, 0.09)


def model(g: GaussianMixture) -> Model:
    return ebb.load(g, like=torch.zeros(2, dtype=torch.float64))


def plan(**parameters: Any) -> ebb.Plan:
    return ebb.Plan(start={"name": "chain", **parameters}, grid=GRID)


def noised(g: GaussianMixture, sigma: Tensor) -> Tensor:
    """Data with noise of its own level each."""
    z = torch.randn(len(sigma), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return g.sample(len(sigma), seed=40_000) + sigma[:, None] * z


@pytest.mark.parametrize("told", [True, False], ids=["with Var", "Var taken for 0"])
def test_levels_are_drawn_by_the_exact_law(told: bool, monkeypatch: pytest.MonkeyPatch):
    """q(sigma | u) ~ p_sigma(u), the density the mixture knows; without Var it is another law, and this test sees it."""
    g = mixture()
    seen: list[Tensor] = []

    class Silent(GaussianMixture):
        def __call__(self, x: Any, t: Tensor, cond: Any) -> Pred:
            return super().__call__(x, t, cond)._replace(var=None)

    asked = g if told else Silent(g.process, [1, 1, 2], MEANS, 0.09)
    part = make("start", {"name": "chain", "rule": "sample", "levels": 200, "sigma_min": 0.1, "sigma_max": 10.0})
    loop, state = begin(model(asked), ebb.Plan(grid=GRID), n=12)
    u = noised(g, torch.linspace(0.2, 4.0, 12, dtype=torch.float64))
    monkeypatch.setattr(Noise, "categorical", lambda self, logits: seen.append(logits) or logits.argmax(1))
    part._level(loop.ask(state, "start"), u, torch.ones(12, dtype=torch.float64), u, 0.1, 10.0, 0)
    levels = torch.linspace(math.log(0.1), math.log(10.0), 200, dtype=torch.float64).exp()
    t = g.process.time(-levels.log())
    exact = torch.stack([g.log_prob(u, time.expand(12)) for time in t], 1).softmax(1)
    gap = float((seen[0].softmax(1) - exact).abs().sum(1).max() / 2)
    assert gap < 0.01 if told else gap > 0.1


def test_a_move_leaves_the_joint_law_of_data_and_noise_as_it_was():
    """(u, sigma) from p(sigma) p_sigma(u): after moves with short Langevin steps and exact sigma the law is the same."""
    g, n = mixture(), 500
    part = make(
        "start",
        {"name": "chain", "rule": "sample", "levels": 24, "sigma_min": 0.2, "sigma_max": 8.0, "eta": 0.1, "moves": 3},
    )
    levels = torch.linspace(math.log(0.2), math.log(8.0), 24, dtype=torch.float64).exp()
    sigma = levels[torch.arange(n) % 24]
    u = noised(g, sigma)
    before = torch.cat([u / (1 + sigma[:, None]), sigma.log()[:, None]], 1)
    loop, state = begin(model(g), ebb.Plan(grid=GRID), n=n)
    ask = loop.ask(state, "start")
    x, s = u, sigma
    for j in range(3):
        mean, _ = chain._look(ask, x, s, x)
        x = chain._stir(ask, x + part.eta / 2 * (mean - x), s, part.eta**0.5, j + 1)
        s = part._level(ask, x, s, x, 0.2, 8.0, j)
    after = torch.cat([x / (1 + s[:, None]), s.log()[:, None]], 1)
    order = torch.arange(n)
    # other draws than those the chain began with
    fresh = noised(g, levels[(order + 7) % 24])
    wanted = levels[(order + 7) % 24]
    other = torch.cat([fresh / (1 + wanted[:, None]), wanted.log()[:, None]], 1)
    assert float((after[:, 2] - before[:, 2]).abs().mean()) > 0.1, "sigma moves"
    assert energy_test(after, other).p > 0.01
    still = torch.cat([x / (1 + sigma[:, None]), sigma.log().roll(11)[:, None]], 1)
    assert energy_test(still, other).p < 0.01, "sigma that knows nothing of x is another law"


def test_the_argmax_climbs_the_likelihood_of_sigma():
    """A step of expectation maximisation never lowers p_sigma(u), and many of them end where its slope is nil."""
    g = mixture()
    u = noised(g, torch.linspace(0.3, 6.0, 9, dtype=torch.float64))
    loop, state = begin(model(g), ebb.Plan(grid=GRID), n=9)
    part, ask = make("start", {"name": "chain"}), loop.ask(state, "start")
    density = lambda s: g.log_prob(u, g.process.time(-s.log()))  # noqa: E731
    sigma = torch.full((9,), 5.0, dtype=torch.float64)
    for _ in range(60):
        new = part._level(ask, u, sigma, u, 0.01, 19.0, 0)
        assert bool((density(new) >= density(sigma) - 1e-9).all())
        sigma = new
    inside = (sigma > 0.02) & (sigma < 18)
    flat = (density(sigma * 1.001) - density(sigma / 1.001)).abs() / 0.002
    assert bool(inside.any())
    assert bool((flat[inside] < 0.05).all())


@pytest.mark.parametrize("name", ["edm", "vp-linear", "flow"])
def test_runs_begin_at_their_own_time_and_end_at_the_data(name: str):
    """Every element walks as many steps as the grid has, from its own time, and x there has the noise of that time."""
    g, n = mixture(name), 400
    _, state = begin(model(g), plan(first=2.0, moves=2), cond={"previous": g.sample(n)}, n=n)
    points = state.memory["grid"]["points"]
    assert torch.equal(points[:, 0], state.t)
    assert bool((points.diff(dim=1) < 0).all())
    assert not bool(points[:, -1].any())
    assert len(state.t.unique()) > n / 2
    steps = list(ebb.run(model(g), plan(first=2.0, moves=2), cond={"previous": g.sample(n)}, n=n))
    assert len(steps) == 4
    assert float(torch.cdist(steps[-1].state.x, MEANS).amin(1).median()) < 0.5
    _, still = begin(model(g), plan(first=2.0, moves=0), cond={"previous": g.sample(n)}, n=n)
    sigma = (-g.process.lam(still.t)).exp()
    assert torch.allclose(sigma, torch.full_like(sigma, 2.0))
    u = still.x / g.process.a(still.t)[:, None]
    assert energy_test(u, noised(g, sigma)).p > 0.01


def test_the_squeezed_grid_lies_on_the_grid_itself():
    """From the grid's own k-th time with n steps: every second point of twice n - k steps, read off the same curve."""
    g = mixture()
    loop, state = begin(model(g), ebb.Plan(grid={"name": "linear", "steps": 8}), n=3)
    u, sigma = torch.zeros(3, 2, dtype=torch.float64), 20.0 * torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)
    placed = chain._placed(state, loop.ask(state, "start"), u, g_sigma(g, sigma / 20), u)
    wanted = torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)[:, None] * (1 - torch.arange(9) / 8)
    assert torch.allclose(placed.memory["grid"]["points"], wanted)


def g_sigma(g: GaussianMixture, t: Tensor) -> Tensor:
    """The noise level of a time."""
    return (-g.process.lam(t)).exp()


def test_the_lowest_state_visited_is_the_one_taken():
    g, n = mixture(), 200
    cond = {"previous": g.sample(n)}
    times = [
        begin(model(g), plan(first=1.0, moves=m, rule="sample", begin=b), cond, n)[1].t
        for m, b in ((1, "lowest"), (4, "lowest"), (4, "last"))
    ]
    assert bool((times[1] <= times[0]).all())
    assert bool((times[1] <= times[2]).all())
    assert bool((times[1] < times[2]).any())


def test_what_is_missing_is_told():
    g = mixture()
    with pytest.raises(EbbError, match="needs a result to go on from"):
        ebb.sample(model(g), plan())
    low = replace(plan(sigma_min=0.05), grid={"name": "linear", "steps": 3, "first": 0.001})
    with pytest.raises(EbbError, match=r"this grid begins at 0\.02: lower sigma_min"):
        ebb.sample(model(mixture(sigma_max=20.0)), low, cond={"previous": g.sample(1)})
    with pytest.raises(EbbError, match="sigma_min lies below sigma_max"):
        plan(sigma_min=3.0, sigma_max=2.0)
