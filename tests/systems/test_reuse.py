"""Reuse: what the card of ras measures with."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

import ebbtide as ebb
from ebbtide.network.ras import RAS
from ebbtide.systems.reuse import ras


def test_a_repeated_flow_is_a_longer_step():
    """Steps of a 28th, those that are not asked along the flow that was found last."""
    model = ebb.load("digits")
    times = ras.repeated(16)
    assert len(times) == 17
    asked = {round(28 * (1 - t)) for t in times[:-1]}
    assert {0, 1, 2, 3, 12, 20} <= asked
    plan = ebb.Plan(solve="euler", grid={"name": "explicit", "times": times})
    found = ebb.sample(model, plan, cond=[3, 7], n=2).x
    x = ebb.api.begin(model, plan, [3, 7], 2)[1].x
    flow = torch.zeros_like(x)
    for k in range(28):
        t = torch.full((2,), 1 - k / 28, dtype=torch.float64)
        if k in asked:
            mean = model.denoiser(x, t, {"label": torch.tensor([3, 7])}).mean
            flow = (x - mean) / (1 - k / 28)
        x = x - flow / 28
    torch.testing.assert_close(found, x, rtol=0, atol=1e-4)


def test_tokens_at_random_are_as_many_and_others_every_time():
    model = ebb.load("digits")
    plan = ebb.Plan(grid={"name": "linear", "steps": 6}, network=[{"name": "ras", "whole": 1, "resets": []}])
    with mock.patch.object(RAS, "choose", ras.at_random):
        steps = list(ebb.run(model, plan, cond=[1, 2], n=2))
    idle = [s.state.memory["network"]["0"]["main|point"]["idle"] for s in steps]
    entered = [(v == 0) for v in idle]
    assert [e.sum(1).tolist() for e in entered] == [[49, 49], *[[24, 24]] * 5]  # half of 49
    assert not torch.equal(entered[1], entered[2])
    assert not torch.equal(entered[1][0], entered[1][1])


def test_distances_are_geometric_means():
    x = torch.zeros(2, 1, 4, 4)
    y = torch.stack([torch.full((1, 4, 4), 0.1), torch.full((1, 4, 4), 0.4)])
    assert ras.apart(x, y) == pytest.approx(0.2)
