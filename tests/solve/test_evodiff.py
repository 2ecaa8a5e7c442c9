"""EVODiff: its numbers by hand, what a projection sees, and the order that it has and has not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Loop
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred, State
from ebbtide.denoise.exact import Gaussian


class Says(Denoiser):
    """A denoiser given as a function of (x, t)."""

    def __init__(self, process: Any, says: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.process, self.says = process, says
        self.asked: list[Tensor] = []

    def __call__(self, x: Any, t: Tensor, cond: Any) -> Pred:
        self.asked.append(x)
        return Pred(mean=self.says(x, t))


def start(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    times: list[float],
    n: int = 2,
    units: tuple[int, ...] = (),
    **solve: Any,
) -> tuple[Loop, State]:
    model = ebb.load(denoiser, like=torch.zeros(shape, dtype=torch.float64))
    spec = {"name": "evodiff", **solve}
    loop = model.loop(ebb.Plan(solve=spec, grid={"name": "explicit", "times": times}), {})
    return loop, loop.begin(torch.zeros(n, *shape, dtype=torch.float64), {}, range(n), units)


def end(loop: Loop, state: State) -> Tensor:
    for step in loop.run(state):
        state = step.state
    x: Tensor = state.x
    return x


def edm(sigma_max: float = 4.0) -> Any:
    return registry.make("process", {"name": "edm", "sigma_max": sigma_max})


def logistic(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def test_two_steps_by_hand():
    """Levels 4, 2, 1 with predictions e, 2 e, 2.5 e: q = 1, b = 1, w = 15/32, and everything lies along e."""
    e = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    size = {1.0: 1.0, 0.5: 2.0, 0.25: 2.5}
    script = Says(edm(), lambda x, t: torch.stack([size.get(float(v), 0.0) * e for v in t]))
    loop, state = start(script, (3,), [1.0, 0.5, 0.25, 0.25 * (1 - 1e-10)])
    first = state.x
    state = loop.step(state).state
    assert torch.allclose(state.x, first / 2 + e / 2), "the first step is DDIM"
    ddim = state.x / 2 + e
    state = loop.step(state).state
    r1 = 47 / 32  # 17/32 + 15/32 * 2, which the clip just allows
    r = logistic(r1 / 4)
    assert torch.allclose(state.x, ddim + 17 / 32 / (4 * r) * e, rtol=1e-12)
    state = loop.step(state).state  # so short a step that what is left of it is the final x
    eta = logistic(1.0) / 2  # D2 = D1 / 2, the projection of 3/2 on -1/2 is clipped to -2
    b = 0.5 - 1.5 * eta
    zeta = logistic((1 - b) / (2 * r) - 0.5)
    assert torch.allclose(state.x, ddim + b * 17 / 32 / (4 * zeta) * e, rtol=1e-8)


def test_a_step_twice_as_long_by_hand():
    """Levels 4, 2, 1/2 with predictions 1, 2, 3, without projections: q = 1/2 and r1 = r2 = sqrt(1/2)."""
    size = {1.0: 1.0, 0.5: 2.0, 0.125: 3.0}
    script = Says(
        edm(), lambda x, t: torch.stack([size.get(float(v), 0.0) + 0 * one for v, one in zip(t, x, strict=True)])
    )
    plain = {"mix": 0.0, "low": 1.0, "high": 1.0}
    loop, state = start(script, (3,), [1.0, 0.5, 0.125, 0.125 * (1 - 1e-10)], **plain)
    state = loop.step(state).state
    ddim = state.x / 4 + 1.5
    state = loop.step(state).state
    d1, d2 = 2 - math.sqrt(0.5), 3 - math.sqrt(2)
    assert torch.allclose(state.x, ddim + 0.75 * d1, rtol=1e-12)
    before, after = 2 * d1, d2 / 2
    eta = logistic((before + after) / (before - after) / 2) / 2  # parallel, so a projection is a ratio
    b = (1 - eta) * after - eta * before
    zeta = logistic(abs(1 - b / d1) - 0.5)
    assert torch.allclose(loop.step(state).state.x, ddim + 0.375 * b / zeta, rtol=1e-8)


def test_the_probe_of_plain_differences_is_that_of_dpmpp_2m():
    g = Gaussian(edm(80.0), [0.5, -0.3], 0.09)
    model = ebb.load(g, like=torch.zeros(2, dtype=torch.float64))
    grid = {"name": "exponential", "steps": 7, "sigma_min": 0.02}

    def third(solve: Any) -> Tensor:
        loop, state = begin(model, ebb.Plan(solve=solve, grid=grid), n=8, seed=1)
        for _ in range(2):
            state = loop.step(state).state
        x: Tensor = state.x
        return x

    plain = third("dpmpp-2m")
    bare = {"name": "evodiff", "mix": 0.0, "low": 1.0, "high": 1.0}
    assert (third(bare) - plain).abs().max() < 1e-12
    for change in ({"mix": 0.5}, {"low": 0.25}):
        assert (third({**bare, **change}) - plain).abs().max() > 1e-4


def test_a_prediction_that_stays_is_ddim_where_levels_fall_evenly():
    """Then both projections and the ratio of levels are 1 and nothing is left to add."""
    fixed = Says(edm(), lambda x, t: torch.full_like(x, 0.7))
    times = [2.0**-k for k in range(8)] + [0.0]
    for steps in (3, 8):
        loop, state = start(fixed, (2, 3), times[: steps + 1])
        level, before = 4 * times[steps], state.x
        assert torch.allclose(end(loop, state), 0.7 + (before - 0.7) * level / 4, atol=1e-12)


def test_scaling_the_problem_scales_the_answer():
    """Projections have no units."""
    g = Gaussian(registry.make("process", {"name": "vp-cosine"}), torch.zeros(3, 4), 0.04)
    loop, state = start(g, (3, 4), [0.9, 0.7, 0.5, 0.3, 0.1, 0.0])
    far = State(**{**vars(state), "x": state.x * 37.0})
    assert torch.allclose(end(loop, far), 37.0 * end(loop, state), rtol=1e-9)


@pytest.mark.parametrize(
    ("shape", "units", "within", "beyond"),
    [
        ((2, 3, 3), (), (0, 1, 2), (1, 1, 2)),  # channels of an element
        ((4,), (), (3,), None),
        ((3, 2, 2), (3,), (0, 0, 1), (0, 1, 1)),  # channels of a frame
        ((3, 4), (3,), (0, 3), (1, 3)),
        ((5,), (5,), None, (3,)),  # tokens
        ((2, 3, 3), (1, 3, 3), (1, 0, 0), (0, 0, 1)),  # pixels hold all their channels
    ],
)
def test_who_shares_a_projection(
    shape: tuple[int, ...], units: tuple[int, ...], within: tuple[int, ...] | None, beyond: tuple[int, ...] | None
):
    """The first number of the first element feels a change `within` its unit and channel, and none `beyond`."""
    bend = Says(registry.make("process", {"name": "flow"}), lambda x, t: (2 * x).tanh() * 0.8 + 0.1)
    loop, state = start(bend, shape, [0.9, 0.8, 0.6, 0.5, 0.3, 0.2], units=units)
    first = (0,) * (1 + len(shape))

    def felt(place: tuple[int, ...]) -> bool:
        x = state.x.clone()
        x[place] += 0.5
        return bool(end(loop, State(**{**vars(state), "x": x}))[first] != end(loop, state)[first])

    assert not felt((1, *first[1:])), "another element"
    assert within is None or felt((0, *within))
    assert beyond is None or not felt((0, *beyond))


def test_history_begins_where_there_is_data():
    """At t = 1 of a flow a = 0: the step from there is no measure of the next, which is DDIM too."""
    bend = Says(registry.make("process", {"name": "flow"}), lambda x, t: (2 * x).tanh())
    loop, state = start(bend, (4,), [1.0, 0.9, 0.7, 0.5, 0.0])
    plain = loop.step(loop.step(state).state).state.x
    other, _ = start(bend, (4,), [1.0, 0.9, 0.7, 0.5, 0.0], adaptive=False)
    euler = ebb.load(bend, like=state.x[0]).loop(
        ebb.Plan(solve="euler", grid={"name": "explicit", "times": [1.0, 0.9, 0.7, 0.5, 0.0]}), {}
    )
    assert torch.equal(plain, euler.step(euler.step(state).state).state.x)
    assert not torch.equal(end(loop, state), end(other, state))


def errors(grid: Callable[[int], list[float]], counts: tuple[int, ...]) -> Iterator[float]:
    """How far a Gaussian's flow ends from its closed form."""
    p = registry.make("process", {"name": "flow"})
    mean, std = 0.6, 0.3
    g = Gaussian(p, torch.full((8,), mean, dtype=torch.float64), std**2)
    for n in counts:
        times = grid(n)
        loop, state = start(g, (8,), times, n=4)
        (a, c), (a_s, c_s) = ((1 - t, t) for t in (times[0], times[-1]))
        z = (state.x - a * mean) / math.sqrt((a * std) ** 2 + c**2)
        exact = a_s * mean + math.sqrt((a_s * std) ** 2 + c_s**2) * z
        yield float((end(loop, state) - exact).square().mean().sqrt())


def test_it_is_of_order_one_where_ratios_of_levels_tend_to_one():
    even = lambda n: [0.8 - 0.5 * k / n for k in range(n + 1)]  # noqa: E731
    levels = lambda n: [1 / (1 + 0.1 * 100 ** (k / n)) for k in range(n + 1)]  # noqa: E731
    for grid in (even, levels):
        _, coarse, fine = errors(grid, (40, 160, 320))
        assert abs(math.log2(coarse / fine) - 1) < 0.15


def test_it_does_not_converge_on_even_times_to_the_data():
    """As the head says: the last ratios of levels are 2, 3/2, 4/3... however many the steps."""
    coarse, fine = errors(lambda n: [0.9 * (1 - k / n) for k in range(n + 1)], (50, 800))
    assert fine > 0.8 * coarse > 0.01


@pytest.mark.parametrize("numbers", [(50_000,), (1, 200, 250)])
def test_large_elements_round_alike_alone_and_in_a_batch(numbers: tuple[int, ...]):
    """Torch splits a large sum among threads where it leaves one number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bend = Says(registry.make("process", {"name": "flow"}), lambda x, t: (2 * x).tanh())
        loop, state = start(bend, numbers, [0.9, 0.7, 0.5, 0.3], n=2)
        assert torch.equal(end(loop, state)[1:2], end(loop, state.take(torch.tensor([1]))))
    finally:
        torch.set_num_threads(threads)


def test_bounds_the_wrong_way_round_are_refused():
    with pytest.raises(EbbError, match="low must not be above high"):
        registry.make("solve", {"name": "evodiff", "low": 2.0})
