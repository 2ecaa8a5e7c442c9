"""Contract 2: the observed order is the declared one.

Deterministic solvers follow the probability flow of a two-mode mixture, number by number, where the exact path is known
through quantiles; with exact history (they are set back on the path after each of the first steps, which fills their memory
with exact predictions) and from a cold start. Stochastic solvers are affine on Gaussian data, so the law they end in is
known exactly once every draw they make is replaced, one at a time, by a unit: its order is the weak one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import worlds
from torch import Tensor

from ebbtide.core import key, registry
from ebbtide.core.loop import Loop
from ebbtide.core.state import State
from ebbtide.denoise.model import Model

KINDS = ("vp", "flow", "bridge")
FIRST, LAST, WARM = 0.8, 0.3, 5


def cases(stochastic: bool) -> Iterator[Any]:
    for entry in worlds.parts("solve"):
        for spec in worlds.variants(entry):
            solver = registry.make("solve", spec)
            if solver.stochastic != stochastic or solver.order is None:
                continue
            for kind in KINDS:
                if worlds.goes(entry, spec, kind):
                    case = worlds.Case(entry, spec, kind)
                    yield worlds.marked("order", entry, case, case.id)


def bound(case: worlds.Case, times: list[float], modes: int, n: int, cond: dict[str, Tensor]) -> tuple[Loop, Any]:
    world = case.world().changed(grid={"name": "explicit", "times": times})
    bell = worlds.Bell(world.model.process, modes)
    model = Model("bell", bell, like=torch.zeros(n, dtype=torch.float64))
    return model.loop(world.plan, cond), bell


def path(case: worlds.Case, steps: int, warm: int) -> float:
    """The distance from the exact path after `steps` steps, the first `warm` before them being set right."""
    h = (FIRST - LAST) / steps
    times = [FIRST + warm * h - k * h for k in range(steps + warm + 1)]
    cond = {"label": torch.tensor([0, 1, 2])}
    if case.kind == "bridge":
        cond["y"] = torch.linspace(-1, 1, 33, dtype=torch.float64).reshape(3, 11)
    loop, bell = bound(case, times, 2, 11, cond)
    p = torch.linspace(0.04, 0.96, 11, dtype=torch.float64).expand(3, 11)
    state = loop.begin(torch.zeros(3, 11, dtype=torch.float64), cond, [0, 1, 2])
    state = replace(state, x=bell.quantile(p, state.t, cond))
    for _ in range(warm):
        state = loop.step(state).state
        before = (state.t > FIRST - h / 2)[:, None]  # a step may go several times far
        state = replace(state, x=torch.where(before, bell.quantile(p, state.t, cond), state.x))
    state = worlds.finish(loop, state)
    return float((state.x - bell.quantile(p, state.t, cond)).square().mean().sqrt())


def observed(errors: list[float], limit: bool = False) -> float:
    """The order seen at the last halving, or what it tends to: e = C h^p + D h^(p + 1) nears p in proportion to h."""
    assert errors[-1] > 5e-15, f"the errors {errors} are too small to tell an order"
    *_, before, last = [math.nan, *(math.log2(a / b) for a, b in itertools.pairwise(errors))]
    return 2 * last - before if limit else last


def ladder(order: float) -> tuple[int, ...]:
    """Numbers of steps at which an order shows: few where rounding is soon reached, more where three powers compete."""
    if order > 4:
        return 12, 24, 48
    return (40, 80, 160) if order == 4 else (20, 40, 80)


# where a low order at the start must first outgrow a high one after it
LONG_LADDER = (160, 320, 640)


@pytest.mark.parametrize("case", list(cases(stochastic=False)))
def test_order_with_exact_history(case: worlds.Case):
    solver = registry.make("solve", case.spec)
    declared = solver.order
    errors = [path(case, n, min(WARM, n // 3)) for n in ladder(declared)]
    seen = observed(errors, limit=declared > 4)
    assert abs(seen - declared) < 0.15, f"order {seen:.3f}, declared {declared}: {errors}"


@pytest.mark.parametrize("case", list(cases(stochastic=False)))
def test_order_from_a_cold_start(case: worlds.Case):
    solver = registry.make("solve", case.spec)
    declared = solver.order if solver.startup is None else solver.startup
    errors = [path(case, n, 0) for n in (ladder(declared) if solver.startup is None else LONG_LADDER)]
    seen = observed(errors, limit=declared > 4)
    assert abs(seen - declared) < 0.15, f"order {seen:.3f}, declared {declared}: {errors}"


def law(monkeypatch: pytest.MonkeyPatch, case: worlds.Case, times: list[float], prior: bool) -> tuple[float, float]:
    """How far mean and standard deviation at the end are from the exact ones."""

    def run(rows: int) -> tuple[State, int, Any]:
        cond = {"label": torch.zeros(rows, dtype=torch.int64)}
        if case.kind == "bridge":
            cond["y"] = torch.full((rows, 1), 0.7, dtype=torch.float64)
        loop, bell = bound(case, times, 1, 1, cond)
        units = worlds.Units()
        monkeypatch.setattr(key, "normal", units)
        state = loop.begin(torch.zeros(rows, 1, dtype=torch.float64), cond, range(rows))
        if not prior:
            units.known.clear()
            mean, std = exact(bell, state.t, cond)
            state = replace(state, x=mean + std * (torch.arange(rows) == 1).double()[:, None])
        state = worlds.finish(loop, state)
        mean, std = exact(bell, state.t, cond)
        response = state.x[1:] - state.x[0]
        gap = (state.x[0] - mean[0]).abs(), (response.square().sum().sqrt() - std[0]).abs()
        monkeypatch.undo()
        return gap, units.draws, bell

    _, draws, _ = run(2)
    gap, again, _ = run(2 + draws)
    assert again == draws
    return float(gap[0]), float(gap[1])


def exact(bell: worlds.Bell, t: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    _, m, s = bell.law(t, cond)
    a, c, b = bell.process.a(t), bell.process.c(t), bell.process.b(t)
    end = 0 if b is None else b[:, None] * cond["y"]
    return (a * m[0])[:, None] + end, (a**2 * s[0] ** 2 + c**2).sqrt()[:, None]


@pytest.mark.parametrize("case", list(cases(stochastic=True)))
def test_weak_order_of_stochastic_solvers(case: worlds.Case, monkeypatch: pytest.MonkeyPatch):
    errors = []
    solver = registry.make("solve", case.spec)
    for n in (16, 32, 64, 128) if solver.startup is None else (128, 256, 512):
        times = [FIRST + (LAST - FIRST) * k / n for k in range(n + 1)]
        errors.append(math.hypot(*law(monkeypatch, case, times, prior=False)))
    declared = registry.make("solve", case.spec).order
    if max(errors) < 1e-12:
        return  # exact on Gaussians, of whatever order elsewhere
    seen = observed(errors, limit=solver.startup is not None)
    assert abs(seen - declared) < 0.15, f"weak order {seen:.3f}, declared {declared}: {errors}"


@pytest.mark.parametrize("case", [*cases(stochastic=False), *cases(stochastic=True)])
def test_a_run_from_the_prior_ends_in_the_law_of_the_data(case: worlds.Case, monkeypatch: pytest.MonkeyPatch):
    """From pure noise to the data, both ends of time included; a Gaussian's law is known exactly, and so is the run's."""
    n = 200
    times = [math.sin(math.pi / 2 * (1 - k / n)) ** 2 for k in range(n)] + [0.0]
    mean, std = law(monkeypatch, case, times, prior=True)
    assert mean < 0.02, f"the mean is {mean:.4f} off"
    assert std < 0.02, f"the standard deviation is {std:.4f} off"
