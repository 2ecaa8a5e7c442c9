"""Reward-directed sampling: the fitted denoiser against plain regression, and the diagnostics against known laws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ebbtide.core.key import Noise, keys
from ebbtide.systems.theory import overview_optimization as overview


@pytest.fixture(scope="module")
def denoiser() -> overview.LinearDesigns:
    task = overview.task()
    return overview.LinearDesigns(overview.PROCESS, task.x, task.labels())


def noised(t: Tensor) -> Tensor:
    stream = Noise(keys(range(len(t))), torch.zeros(len(t), dtype=torch.int64), 3)
    x = overview.PROCESS.corrupt(overview.task().x[: len(t)], t, stream, {})
    assert isinstance(x, Tensor)
    return x


@pytest.mark.parametrize("time", [0.05, 0.4, 0.9])
def test_the_conditional_denoiser_is_the_regression_of_x0_on_x_t_and_the_label(
    denoiser: overview.LinearDesigns, time: float
):
    """One linear system in all 65 numbers that are seen, with moments of the pairs taken afresh."""
    task = overview.task()
    t = torch.full((6,), time, dtype=torch.float64)
    x, target = noised(t), torch.linspace(-2, 5, 6, dtype=torch.float64)
    pairs = torch.cat([task.x, task.labels()[:, None]], 1)
    centred = pairs - pairs.mean(0)
    cov = centred.T @ centred / (len(pairs) - 1)
    a, c = float(overview.PROCESS.a(t)[0]), float(overview.PROCESS.c(t)[0])
    scale = torch.cat([torch.full((64,), a), torch.ones(1)]).double()
    seen = scale[:, None] * cov * scale + torch.diag(torch.cat([torch.full((64,), c**2), torch.zeros(1)]).double())
    rest = torch.cat([x - a * pairs.mean(0)[:64], target[:, None] - pairs.mean(0)[64]], 1)
    expected = pairs.mean(0)[:64] + rest @ torch.linalg.solve(seen, scale[:, None] * cov[:, :64])
    assert torch.allclose(denoiser(x, t, {"reward": target}).mean, expected, rtol=1e-8, atol=1e-8)


def test_no_target_is_the_denoiser_of_all_designs(denoiser: overview.LinearDesigns):
    t = torch.full((5,), 0.5, dtype=torch.float64)
    x, target = noised(t), torch.zeros(5, dtype=torch.float64)
    null = denoiser.null("reward", target)
    assert null is not None
    assert denoiser.null("label", target) is None
    own = overview.PROCESS.from_x0("score", denoiser(x, t, {"reward": null}).mean, x, t, {})
    assert torch.allclose(own, denoiser.slope(x, t, target, strength=0.0), rtol=1e-9, atol=1e-9)
    mixed = torch.where(torch.arange(5) % 2 == 0, null, target + 1)
    both = [denoiser(x, t, {"reward": v}).mean for v in (null, target + 1, mixed)]
    assert torch.equal(both[2], torch.where((torch.arange(5) % 2 == 0)[:, None], both[0], both[1]))


def test_ridge_was_told_little_across_the_plane_and_believes_it():
    task = overview.task()
    within = task.axes.T @ task.ridge
    assert float((within - task.axes.T @ task.true).norm()) < 0.3
    assert float((task.ridge - task.axes @ within).norm()) > 0.5  # nothing of the true reward is there


def test_off_support_and_ascent_are_what_they_say():
    task = overview.task()
    along = overview.draws(30, 20, overview.LATENT) @ task.axes.T
    assert task.off_support(along) == pytest.approx(0, abs=1e-12)
    across = overview.draws(31, 20, overview.AMBIENT)
    across = across - across @ task.axes @ task.axes.T
    assert task.off_support(across) == pytest.approx(1)
    climbed = [overview.ascent(task, r) for r in (1.0, 2.0, 4.0)]
    assert [task.reward(x) for x in climbed] == pytest.approx([1, 2, 4])
    off = [task.off_support(x) for x in climbed]
    assert off == sorted(off)


def test_slopes_and_proportions_of_known_lines():
    u = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert overview.slope(u, [3 * math.exp(-0.7 * v) for v in u.tolist()]) == pytest.approx(-0.7)
    assert overview.proportion([1, 2, 4], [2.5, 5, 10]) == pytest.approx(1)
    assert overview.proportion([1, 2, 4], [3, 4, 6]) < 0.9  # a line, but not through 0


@pytest.mark.parametrize("d", [0.01, 0.3])
def test_the_injected_error_has_the_size_it_is_told(d: float):
    means = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, -1]], dtype=torch.float64)
    truth = overview.GaussianMixture(overview.LONG, [1, 1], means, 0.3)
    n = 4000
    t = torch.linspace(0.01, 1, n, dtype=torch.float64)
    x = overview.LONG.corrupt(truth.sample(n), t, Noise(keys(range(n)), torch.zeros(n, dtype=torch.int64)), {})
    said = [overview.LONG.from_x0("eps", m(x, t, {}).mean, x, t, {}) for m in (truth, overview.Off(truth, d))]
    assert float((said[0] - said[1]).square().mean().sqrt()) == pytest.approx(d, rel=0.05)


def test_the_law_of_the_steps_belongs_to_the_solver(monkeypatch: pytest.MonkeyPatch):
    """With a solver of order 2 in Euler's place the slope is no longer 1: the diagnostic does see the solver."""
    plain = overview.ends
    monkeypatch.setattr(overview, "ends", lambda d, *a, **k: plain(d, *a, **{**k, "solve": "heun"}))
    assert overview.budget.__wrapped__().steps > 1.6
