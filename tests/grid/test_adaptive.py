"""Adaptive times: the error that is allowed is the error that is made, and smaller ones cost more."""

from __future__ import annotations

import pytest
import torch

import ebbtide as ebb
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.process.flow import Flow

LAW = GaussianMixture(Flow(), [0.4, 0.6], [[-1.0, 0.5], [1.2, -0.3]], 0.05)


@pytest.fixture(scope="module")
def model():
    return ebb.load(LAW, like=torch.zeros(2, dtype=torch.float64))


def run(model, grid, n=64):
    return ebb.sample(model, ebb.Plan(solve="heun", grid=grid), n=n)


def test_a_smaller_tolerance_costs_more_calls_and_errs_less(model):
    fine = run(model, {"name": "log-snr", "steps": 400}).x
    calls, errors = [], []
    for tol in (0.1, 0.01, 0.001):
        found = run(model, {"name": "adaptive", "tol": tol})
        calls.append(found.calls)
        errors.append(float((found.x - fine).norm(dim=1).median()))
    assert calls == sorted(calls)
    assert calls[-1] > 2 * calls[0]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 5


def test_a_step_that_errs_too_much_is_made_again_shorter(model):
    """From a first step that is far too long: it is refused, its length falls, and time stands still meanwhile."""
    steps = list(ebb.run(model, ebb.Plan(solve="heun", grid={"name": "adaptive", "h": 0.9, "tol": 1e-3}), n=1))
    assert steps[0].accepted is not None
    assert not bool(steps[0].accepted.any())
    assert float(steps[0].state.t[0]) == 1.0
    assert float(steps[0].state.memory["grid"]["h"][0]) < 0.9
    assert float(steps[-1].state.t[0]) == 0.0
