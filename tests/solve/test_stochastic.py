"""Solvers that draw noise: consistency steps, DDPM's variances, churn, predictor and corrector."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import worlds
from torch import Tensor

import ebbtide as ebb
from ebbtide.core import key, registry
from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Loop
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred, State
from ebbtide.denoise.exact import Gaussian, GaussianMixture
from ebbtide.solve.ddpm import DDPM
from ebbtide.solve.lcm import renewed

M, S = 0.4, 0.5  # mean and standard deviation of the data, but where said otherwise
PROCESSES = ("vp-linear", "vp-cosine", "flow", "edm", "bridge", "residual", "mean-reverting")


class Jump(Denoiser):
    """The flow of N(M, S^2) from x_t to the data: what a perfect consistency model says."""

    def __init__(self, process: Any) -> None:
        self.process = process

    def __call__(self, x: Any, t: Tensor, cond: Any) -> Pred:
        a, c = self.process.a(t)[:, None], self.process.c(t)[:, None]
        return Pred(mean=M + S * (x - a * M) / (a**2 * S**2 + c**2).sqrt())


class Blunt(Denoiser):
    """The mean of another denoiser alone."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process = inner, inner.process

    def __call__(self, x: Any, t: Tensor, cond: Any) -> Pred:
        return Pred(mean=self.inner(x, t, cond).mean)


def data(process: str | dict[str, Any] = "flow", std: float = S) -> Gaussian:
    spec = {"name": process} if isinstance(process, str) else process
    return Gaussian(registry.make("process", spec), [M], std**2)


def bound(denoiser: Denoiser, rows: int, times: list[float], solve: dict[str, Any]) -> tuple[Loop, State]:
    model = ebb.load(denoiser, like=torch.zeros(1, dtype=torch.float64))
    cond = {"y": torch.full((rows, 1), -0.3, dtype=torch.float64)} if "end" in denoiser.process.gives else {}
    loop = model.loop(ebb.Plan(solve=solve, grid={"name": "explicit", "times": times}), cond)
    return loop, loop.begin(torch.zeros(rows, 1, dtype=torch.float64), cond, range(rows))


def end(loop: Loop, state: State) -> State:
    for step in loop.run(state):
        state = step.state
    return state


@pytest.fixture
def law(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[float, float]]:
    """Mean and standard deviation of a run's end, exactly, for solvers that are affine in their draws."""

    def of(denoiser: Denoiser, times: list[float], solve: dict[str, Any], mean: float = 0.0, std: float = 0.0) -> Any:
        def run(rows: int) -> tuple[Tensor, int]:
            units = worlds.Units()
            with monkeypatch.context() as patched:
                patched.setattr(key, "normal", units)
                loop, state = bound(denoiser, rows, times, solve)
                units.known.clear()
                x = torch.full((rows, 1), mean, dtype=torch.float64)
                x[1] += std
                return end(loop, replace(state, x=x)).x[:, 0], units.draws

        x = run(2 + run(2)[1])[0]
        return float(x[0]), float((x[1:] - x[0]).square().sum().sqrt())

    return of


def moments(denoiser: Any, t: float, std: float = S) -> tuple[float, float]:
    at = torch.tensor([t], dtype=torch.float64)
    a, c, b = denoiser.process.a(at), denoiser.process.c(at), denoiser.process.b(at)
    return float(a * M + (0 if b is None else b * -0.3)), float((a**2 * std**2 + c**2).sqrt())


# ---------------------------------------------------------------- consistency steps


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_renewed_step_keeps_the_marginals(name: str, share: float):
    """Given x0, whatever share of the noise is drawn afresh, x_s is a_s x0 + b_s y + c_s times a unit normal."""
    p = registry.make("process", {"name": name})
    t = torch.tensor([1.0, 1.0, 0.9, 0.5, 0.2, 0.4], dtype=torch.float64)
    s = torch.tensor([0.7, 0.0, 0.3, 0.4, 0.0, 0.4], dtype=torch.float64)
    w = renewed(p, t, s, share)
    torch.testing.assert_close(w.x * p.a(t) + w.x0, p.a(s))
    torch.testing.assert_close((w.x * p.c(t)) ** 2 + w.noise**2, p.c(s) ** 2)
    if p.ended:
        torch.testing.assert_close(w.x * p.b(t) + w.y, p.b(s))
    inside = (p.c(t) > 0) & (s < t) & (s > 0)
    torch.testing.assert_close((w.noise / p.c(s))[inside], torch.full_like(t, share)[inside])


@pytest.mark.parametrize("name", ["vp-cosine", "flow", "edm"])
@pytest.mark.parametrize("times", [[0.9, 0.0], [0.9, 0.2, 0.0], [0.9, 0.8, 0.5, 0.45]])
def test_consistency_steps_of_a_flow_map_are_exact_on_any_grid(name: str, times: list[float]):
    """A step throws away all of x_t but its data, so the law at the end is that of the last two times alone."""
    jump = Jump(registry.make("process", {"name": name}))
    mean, std = moments(jump, times[-1])
    n = 20000
    loop, state = bound(jump, n, times, {"name": "lcm"})
    first = moments(jump, times[0])
    z = key.normal(state.key, state.i, state.x, salt=99)
    x = end(loop, replace(state, x=first[0] + first[1] * z)).x
    assert abs(float(x.mean()) - mean) < 4 * std / math.sqrt(n)
    assert abs(float(x.std()) / std - 1) < 4 / math.sqrt(2 * n)


def test_posterior_means_lose_half_the_variance_where_noise_is_renewed(law: Callable[..., Any]):
    """v' = g^2 (v + sigma^2) with g = S^2 / (S^2 + sigma^2) has the fixed point S^2 / 2 at low noise."""
    times = [0.9 * (1 - k / 300) for k in range(301)]
    start = moments(data(), 0.9)
    assert law(data(), times, {"name": "lcm"}, *start)[1] == pytest.approx(S / math.sqrt(2), rel=0.02)
    assert law(data(), times, {"name": "euler"}, *start)[1] == pytest.approx(S, rel=0.02)


def test_the_last_consistency_step_returns_the_data_itself():
    loop, state = bound(Jump(registry.make("process", {"name": "vp-linear"})), 3, [0.8, 0.4, 0.0], {"name": "lcm"})
    steps = list(loop.run(state))
    assert torch.equal(steps[-1].state.x, steps[-1].pred.mean)


# ---------------------------------------------------------------- DDPM


def test_the_small_variance_is_ancestral_sampling():
    for name in PROCESSES:
        runs = [end(*bound(data(name), 3, [1.0, 0.6, 0.2, 0.0], {"name": solve})) for solve in ("ddpm", "ancestral")]
        assert torch.equal(runs[0].x, runs[1].x)


def test_the_large_variance_is_beta_where_variance_is_preserved(law: Callable[..., Any]):
    for name in ("vp-linear", "vp-cosine", "vp-scaled-linear"):
        p = registry.make("process", {"name": name})
        at = p.a(torch.tensor([0.7, 0.5], dtype=torch.float64))
        std = law(data(name), [0.7, 0.5], {"name": "ddpm", "variance": "fixed-large"})[1]
        assert std**2 == pytest.approx(float(1 - (at[0] / at[1]) ** 2), rel=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_optimal_variance_is_exact_on_a_gaussian_at_any_step(name: str, law: Callable[..., Any]):
    """Ends before the data, as no noise is added to the landing."""
    times = [0.95, 0.5, 0.1]
    mean, std = moments(data(name), times[-1])
    start = moments(data(name), times[0])
    got = law(data(name), times, {"name": "ddpm", "variance": "optimal"}, *start)
    assert got == pytest.approx((mean, std), rel=1e-10)
    assert law(data(name), times, {"name": "ddpm"}, *start)[1] ** 2 < std**2 - 1e-4
    unit = data(name, 1.0)
    large = law(unit, times, {"name": "ddpm", "variance": "fixed-large"}, *moments(unit, times[0], 1.0))
    assert large == pytest.approx(moments(unit, times[-1], 1.0), rel=1e-10)


def test_the_three_variances_are_in_order(law: Callable[..., Any]):
    small, best, large = (
        law(data(std=0.8), [0.7, 0.4], {"name": "ddpm", "variance": v})[1]
        for v in ("fixed-small", "optimal", "fixed-large")
    )
    assert small < best < large


def test_the_optimal_variance_of_a_mixture_is_that_of_what_stood_there():
    """Var[x_s | x_t] of exact pairs (x_s, x_t) of the chain near one x_t, against one step from there."""
    process = registry.make("process", {"name": "vp-cosine"})
    exact = GaussianMixture(process, [0.4, 0.6], [[-1.0], [1.2]], [0.1, 0.3])
    n, t, s = 400_000, 0.6, 0.45
    at = torch.full((n,), t, dtype=torch.float64), torch.full((n,), s, dtype=torch.float64)
    noise = key.Noise(key.keys(range(n)), torch.zeros(n, dtype=torch.int64))
    low = process.corrupt(exact.sample(n, seed=n), at[1], noise, {})
    high = process.move(low, None, at[1], at[0], 1.0, noise.fold(1), {})
    near = low[(high[:, 0] - 0.1).abs() < 0.02]
    loop, state = bound(exact, 20000, [t, s], {"name": "ddpm", "variance": "optimal"})
    got = end(loop, replace(state, x=torch.full_like(state.x, 0.1))).x
    assert float(got.std() / near.std()) == pytest.approx(1.0, abs=0.05)
    assert float(got.mean() - near.mean()) == pytest.approx(0.0, abs=0.05 * float(near.std()))


def test_a_model_without_a_variance_is_refused_the_optimal_one():
    loop, state = bound(Blunt(data()), 2, [0.8, 0.4, 0.0], {"name": "ddpm", "variance": "optimal"})
    with pytest.raises(EbbError, match="fixed-small") as told:
        loop.step(state)
    assert "\n" not in str(told.value)
    assert DDPM().stochastic


# ---------------------------------------------------------------- churn


def test_churn_is_the_published_algorithm(monkeypatch: pytest.MonkeyPatch):
    """Algorithm 2 in the coordinates of the paper, x = x0 + sigma eps, on two modes."""
    sigmas = [40.0, 9.0, 2.5, 0.7, 0.2, 0.05, 0.0]
    churn, low, high, strength = 2.1, 0.1, 20.0, 1.007
    process = registry.make("process", {"name": "edm", "sigma_max": 50.0})
    exact = GaussianMixture(process, [0.4, 0.6], [[-1.0], [1.2]], [0.1, 0.3])
    wave = lambda key, i, like, salt=0: torch.sin(1.7 * (i[:, None] + 1.0) + torch.arange(len(like))[:, None])  # noqa: E731
    monkeypatch.setattr(key, "normal", lambda *a, **k: wave(*a, **k).double())

    model = ebb.load(exact, like=torch.zeros(1, dtype=torch.float64))
    solve = {"name": "edm-stochastic", "churn": churn, "s_min": low, "s_max": high, "s_noise": strength}
    loop = model.loop(ebb.Plan(solve=solve, grid={"name": "explicit", "sigmas": sigmas}), {})
    state = loop.begin(torch.zeros(5, 1, dtype=torch.float64), {}, range(5))
    x = state.x

    def slope(x: Tensor, sigma: float) -> Tensor:
        t = torch.full((5,), sigma / 50.0, dtype=torch.float64)
        return (x - exact(x, t, {}).mean) / sigma

    for i, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        gamma = min(churn / 6, 2**0.5 - 1) if low <= sigma <= high else 0.0
        up = sigma + gamma * sigma
        noise = strength * wave(None, torch.full((5,), i), x).double()
        x = x + (up**2 - sigma**2) ** 0.5 * noise
        d = slope(x, up)
        moved = x + (after - up) * d
        x = moved if after == 0 else x + (after - up) * (d + slope(moved, after)) / 2
    torch.testing.assert_close(end(loop, state).x, x, rtol=1e-9, atol=1e-9)


def test_raising_the_noise_keeps_the_law_in_every_process():
    for name in PROCESSES:
        p = registry.make("process", {"name": name})
        t = torch.tensor([0.8, 0.5, 0.1], dtype=torch.float64)
        for churn, gamma in ((2.0, 0.2), (1000.0, 2**0.5 - 1)):
            part = registry.make("solve", {"name": "edm-stochastic", "churn": churn})
            up = part._raise(p, t, t / 2, torch.full_like(t, 10.0))
            inside = p.lam(t) - p.lam(torch.ones_like(t)) > math.log(1.5)
            torch.testing.assert_close(up.x * p.a(t), p.a(up.t))
            torch.testing.assert_close((up.x * p.c(t)) ** 2 + up.noise**2, p.c(up.t) ** 2)
            level = (p.c(up.t) / p.a(up.t)) / (p.c(t) / p.a(t))
            torch.testing.assert_close(level[inside], torch.full_like(t, 1 + gamma)[inside])
            still = part._raise(p, t, t, torch.full_like(t, 10.0))
            assert torch.equal(still.t, t)
            assert not bool(still.noise.any())


def test_churn_counts_the_steps_of_the_whole_run():
    loop, state = bound(data("vp-cosine"), 2, [0.9, 0.7, 0.5, 0.3], {"name": "edm-stochastic"})
    assert state.memory["solve"]["steps"].tolist() == [3.0, 3.0]
    later = loop.step(state).state
    assert loop._void(later, torch.tensor([True, False])).memory["solve"]["steps"].tolist() == [3.0, 3.0]


def test_a_prediction_at_hand_is_not_taken_for_the_raised_point():
    """What a steering paid for is the prediction at x_t, and a churned step does not start there."""
    loop, state = bound(data("vp-cosine"), 2, [0.9, 0.7, 0.5], {"name": "edm-stochastic"})
    given = Pred(mean=torch.full_like(state.x, 100.0))
    assert torch.equal(loop.advance(state, given).state.x, loop.advance(state).state.x)


def test_churn_mends_what_went_wrong_before(law: Callable[..., Any]):
    """From a start of three times the spread it should have; the flow alone carries that to the end."""
    times = [0.9 * (1 - k / 40) for k in range(41)]
    mean, std = moments(data(), 0.9)
    plain = law(data(), times, {"name": "edm-stochastic", "churn": 0.0}, mean, 3 * std)[1]
    churned = law(data(), times, {"name": "edm-stochastic", "churn": 16.0}, mean, 3 * std)[1]
    assert plain > 2.9 * S
    assert abs(churned - S) < 0.1 * (plain - S)


# ---------------------------------------------------------------- predictor and corrector


@pytest.mark.parametrize("name", ["vp-cosine", "flow", "edm", "bridge"])
def test_corrections_lead_to_the_law_of_the_new_time_from_anywhere(name: str, law: Callable[..., Any]):
    mean, std = moments(data(name), 0.4)
    solve = {"name": "langevin", "snr": 0.2, "eta": 0.0}
    wrong = law(data(name), [0.5, 0.4], {**solve, "corrections": 0}, 5.0, 3.0)
    right = law(data(name), [0.5, 0.4], {**solve, "corrections": 150}, 5.0, 3.0)
    assert abs(wrong[0] - mean) > 1
    assert abs(right[0] - mean) < 0.02 * std
    assert abs(right[1] / std - 1) < 0.05


def test_the_bias_of_corrections_falls_with_their_length(law: Callable[..., Any]):
    """Of order k = 2 snr^2: a quarter for half the snr."""
    mean, std = moments(data(), 0.4)
    biases = []
    for snr, corrections in ((0.3, 100), (0.15, 400)):
        solve = {"name": "langevin", "snr": snr, "eta": 0.0, "corrections": corrections}
        biases.append(law(data(), [0.41, 0.4], solve, mean, std)[1] / std - 1)
    assert biases[0] / biases[1] == pytest.approx(4.0, abs=0.4)


def test_where_the_data_is_known_corrections_of_any_length_leave_the_law(law: Callable[..., Any]):
    point = data(std=1e-9)
    for snr in (0.1, 0.5, 0.7):
        got = law(point, [0.6, 0.5], {"name": "langevin", "snr": snr, "corrections": 3}, *moments(point, 0.6, 1e-9))
        assert got == pytest.approx(moments(point, 0.5, 1e-9), rel=1e-7)


@pytest.mark.parametrize("corrections", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 0.7, 1.0, 1.2])
def test_noise_of_another_scale_leads_to_a_law_of_that_scale(law: Callable[..., Any], scale: float, corrections: int):
    """Where the data is known, a correction keeps (1 - k)^2 of the variance and brings r^2 of the rest of c^2: only r = 1
    leaves it."""
    point, snr = data(std=1e-9), 0.4
    solve = {"name": "langevin", "snr": snr, "corrections": corrections, "scale": scale}
    got = law(point, [0.6, 0.5], solve, *moments(point, 0.6, 1e-9))
    mean, c = moments(point, 0.5, 1e-9)
    left = (1 - 2 * snr**2) ** (2 * corrections)
    assert got == pytest.approx((mean, c * math.sqrt(left + scale**2 * (1 - left))), rel=1e-7)


def test_the_landing_is_not_corrected_and_a_long_correction_is_refused():
    loop, state = bound(data(), 3, [0.8, 0.4, 0.0], {"name": "langevin", "corrections": 2})
    assert [step.calls for step in loop.run(state)] == [9, 3]
    with pytest.raises(EbbError, match="snr"):
        ebb.Plan(solve={"name": "langevin", "snr": 0.8})
