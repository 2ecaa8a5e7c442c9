"""Solvers that work on several coming steps at once: Picard iteration ends where Euler does, drafts keep the chain's law."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import ebbtide as ebb
from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Loop
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred, State, Step
from ebbtide.denoise.exact import Gaussian, GaussianMixture

PROCESSES = ("vp-linear", "flow", "bridge")


class Watched(Denoiser):
    """A denoiser seen through: the rows of every call."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process = inner, inner.process
        self.rows: list[int] = []

    def __call__(self, x: Any, t: Tensor, cond: Any) -> Pred:
        self.rows.append(len(t))
        return self.inner(x, t, cond)


def modes(name: str, shape: tuple[int, ...] = (3,)) -> GaussianMixture:
    process = registry.make("process", {"name": name})
    means = torch.stack([torch.full(shape, -1.0), torch.full(shape, 1.2)])
    return GaussianMixture(process, [0.4, 0.6], means, [0.1, 0.3])


def bound(
    denoiser: Denoiser, n: int, solve: dict[str, Any], grid: dict[str, Any], units: tuple[int, ...] = ()
) -> tuple[Loop, State]:
    event = getattr(denoiser, "inner", denoiser).event
    like = torch.zeros(event, dtype=torch.float64)
    cond = {"y": torch.full((n, *event), 0.3, dtype=torch.float64)} if "end" in denoiser.process.gives else {}
    loop = ebb.load(denoiser, like=like).loop(ebb.Plan(solve=solve, grid=grid), cond)
    return loop, loop.begin(like.expand(n, *event), cond, range(n), units)


def run(loop: Loop, state: State) -> list[Step]:
    return list(loop.run(state))


def linear(steps: int) -> dict[str, Any]:
    return {"name": "linear", "steps": steps}


# ---------------------------------------------------------------- Picard


@pytest.mark.parametrize("window", [2, 5, 40])
@pytest.mark.parametrize("name", PROCESSES)
def test_without_tolerance_the_end_is_euler_to_the_last_bit(name: str, window: int):
    plain = run(*bound(modes(name), 4, {"name": "euler"}, linear(12)))
    steps = run(*bound(modes(name), 4, {"name": "picard", "window": window, "tol": 0.0}, linear(12)))
    assert torch.equal(steps[-1].state.x, plain[-1].state.x)
    assert len(steps) <= len(plain)


def test_frames_that_wait_for_each_other_end_where_euler_takes_them():
    grid = {"name": "staggered", "steps": 6, "delay": 2}
    ends = [
        run(*bound(modes("flow", (3, 2)), 2, solve, grid, (3,)))[-1].state
        for solve in ({"name": "euler"}, {"name": "picard", "tol": 0.0})
    ]
    assert torch.equal(ends[0].x, ends[1].x)
    assert torch.equal(ends[0].i, ends[1].i)


@pytest.mark.parametrize("name", PROCESSES)
def test_fewer_sweeps_than_steps_within_the_tolerance(name: str):
    tol, n = 1e-3, 100
    plain = run(*bound(modes(name), 8, {"name": "euler"}, linear(n)))[-1].state.x
    steps = run(*bound(modes(name), 8, {"name": "picard", "window": 16, "tol": tol}, linear(n)))
    assert len(steps) < n / 3
    assert float((steps[-1].state.x - plain).abs().max()) < 20 * tol


def test_a_sweep_is_one_call_of_the_network_for_the_points_that_are_open():
    watched = Watched(modes("flow"))
    loop, state = bound(watched, 4, {"name": "picard", "window": 6, "tol": 1e-3}, linear(20))
    watched.rows.clear()
    steps = run(loop, state)
    assert watched.rows == [step.calls for step in steps]
    assert watched.rows[0] == 4  # nothing to guess by yet
    assert watched.rows[1] == 24
    assert max(watched.rows) == 24


def test_where_every_guess_is_good_enough_each_sweep_takes_the_whole_window():
    loop, state = bound(modes("flow"), 3, {"name": "picard", "window": 5, "tol": 1e9}, linear(22))
    steps = run(loop, state)
    assert [int(step.state.i[0]) for step in steps] == [1, 6, 11, 16, 21, 22]
    assert all(torch.equal(step.state.t, loop.grid.at(step.state.memory["grid"], step.state.i)) for step in steps)


def test_a_looser_tolerance_takes_fewer_sweeps_and_a_larger_error():
    plain = run(*bound(modes("vp-linear"), 16, {"name": "euler"}, linear(60)))[-1].state.x
    sweeps, errors = [], []
    for tol in (1e-6, 1e-4, 1e-2):
        steps = run(*bound(modes("vp-linear"), 16, {"name": "picard", "window": 12, "tol": tol}, linear(60)))
        sweeps.append(len(steps))
        errors.append(float((steps[-1].state.x - plain).square().mean().sqrt()))
    assert sweeps[0] > sweeps[1] > sweeps[2]
    assert errors[0] < errors[1] < errors[2]


def test_each_element_goes_as_far_as_it_may():
    """Starts in the middle of a mode converge at once, those between the modes later."""
    loop, state = bound(modes("flow"), 64, {"name": "picard", "window": 10, "tol": 1e-3}, linear(30))
    for _ in range(4):
        state = loop.step(state).state
    assert len(state.i.unique()) > 1


# ---------------------------------------------------------------- drafts


def chain(name: str, solve: dict[str, Any], n: int, steps: int) -> tuple[Tensor, int]:
    ran = run(*bound(modes(name, (2,)), n, solve, linear(steps)))
    return ran[-1].state.x, len(ran)


@pytest.mark.parametrize(
    ("name", "eta", "window"), [("flow", 1.0, 2), ("flow", 0.5, 4), ("vp-linear", 1.0, 6), ("bridge", 1.0, 3)]
)
def test_drafts_end_in_the_law_of_the_chain_itself(name: str, eta: float, window: int):
    """Few steps, so that the chain's law is far from the data's and close to nothing else."""
    n = 5000
    solve = {"name": "speculative", "eta": eta, "window": window}
    drafted, _ = chain(name, solve, n, 5)
    loop, _ = bound(modes(name, (2,)), n, {"name": "euler", "eta": eta}, linear(5))
    cond = {"y": torch.full((n, 2), 0.3, dtype=torch.float64)} if name == "bridge" else {}
    plain = run(loop, loop.begin(torch.zeros(n, 2, dtype=torch.float64), cond, range(n, 2 * n)))[-1].state.x
    for f in (lambda x: x[:, 0], lambda x: x[:, 0] - x[:, 1], lambda x: x.square().sum(1), lambda x: x.prod(1)):
        assert stats.ks_2samp(f(drafted).numpy(), f(plain).numpy()).pvalue > 1e-3


def test_every_time_of_a_drafted_run_has_the_law_of_the_chain():
    """On a Gaussian the ancestral chain is affine, so its mean and variance follow from those of one step."""
    process = registry.make("process", {"name": "vp-linear"})
    exact = Gaussian(process, [0.7], 0.09)
    times = [1.0, 0.8, 0.6, 0.4, 0.2]
    loop, state = bound(exact, 8000, {"name": "speculative", "window": 3}, {"name": "explicit", "times": times})
    x = run(loop, state)[-1].state.x[:, 0]
    mean, var = 0.0, float(process.c(torch.ones(1, dtype=torch.float64))) ** 2
    for t, s in itertools.pairwise(times):
        w = process.weights(*(torch.tensor([v], dtype=torch.float64) for v in (t, s)), 1.0)
        at = torch.tensor([t], dtype=torch.float64)
        low, high = (float(exact(torch.full((1, 1), v, dtype=torch.float64), at, {}).mean) for v in (0.0, 1.0))
        mean, var = w.x * mean + w.x0 * (low + (high - low) * mean), var * (w.x + w.x0 * (high - low)) ** 2 + w.noise**2
    assert stats.kstest(x.numpy(), "norm", (mean, math.sqrt(var))).pvalue > 1e-3


def test_drafts_by_a_wrong_prediction_cost_steps_but_not_the_law():
    n, ends, lengths = 5000, [], []
    for wrong in (0.0, 2.0):
        loop, state = bound(modes("flow", (2,)), n, {"name": "speculative", "window": 4}, linear(6))
        length = 0
        while not loop.done(state):
            state = loop.step(state).state
            length += int((state.t > 0).sum())
            slot = state.memory.get("solve", {})
            if slot:
                state = state.remember("solve", {**slot, "x0": slot["x0"] + wrong})
        ends.append(state.x)
        lengths.append(length)
    assert lengths[1] > 1.1 * lengths[0]
    assert stats.ks_2samp(ends[0][:, 0].numpy(), ends[1][:, 0].numpy()).pvalue > 1e-3
    other, _ = chain("flow", {"name": "ancestral"}, n, 6)
    assert stats.ks_2samp(other.square().sum(1).numpy(), ends[1].square().sum(1).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("off", [0.1, 0.5, 1.5])
def test_drafts_are_kept_as_often_as_two_normals_can_agree(off: float):
    """2 Phi(-|delta| / 2): no coupling of N(0, 1) and N(delta, 1) agrees more often."""
    n, d = 40000, 2
    process = registry.make("process", {"name": "flow"})
    exact = Gaussian(process, [0.7] * d, 0.09)
    grid = {"name": "explicit", "times": [0.8, 0.6, 0.4, 0.2]}
    loop, state = bound(exact, n, {"name": "speculative", "window": 2}, grid)
    x0 = exact(state.x, state.t, {}).mean
    w = process.weights(state.t, torch.full_like(state.t, 0.6), 1.0)
    wrong = off * w.noise / w.x0 / math.sqrt(d)
    state = state.remember("solve", {"x0": x0 + wrong, "known": torch.ones_like(state.t)})
    kept = float((loop.step(state).state.i == 2).double().mean())
    rate = 2 * stats.norm.cdf(-off / 2)
    assert abs(kept - rate) < 4 * math.sqrt(rate * (1 - rate) / n)


def test_a_drafted_run_takes_fewer_passes():
    watched = Watched(modes("vp-linear", (2,)))
    loop, state = bound(watched, 16, {"name": "speculative", "window": 8}, linear(200))
    watched.rows.clear()
    steps = run(loop, state)
    assert len(watched.rows) == len(steps) < 110
    assert watched.rows == [step.calls for step in steps]
    assert int(steps[-1].state.i.min()) == int(steps[-1].state.i.max()) == 200


def test_frames_that_wait_for_each_other_keep_their_law():
    grid = {"name": "staggered", "steps": 4, "delay": 1}
    n = 4000
    ends = []
    for solve, first in (({"name": "speculative", "window": 4}, 0), ({"name": "ancestral"}, n)):
        loop, _ = bound(modes("flow", (3, 1)), 1, solve, grid, (3,))
        like = torch.zeros(n, 3, 1, dtype=torch.float64)
        ends.append(run(loop, loop.begin(like, {}, range(first, first + n), (3,)))[-1].state.x)
    for f in range(3):
        assert stats.ks_2samp(*(x[:, f, 0].numpy() for x in ends)).pvalue > 1e-3


def test_drafts_without_noise_are_refused():
    with pytest.raises(EbbError, match="noise") as told:
        ebb.Plan(solve={"name": "speculative", "eta": 0.0})
    assert "picard" in str(told.value)
    assert "\n" not in str(told.value)
