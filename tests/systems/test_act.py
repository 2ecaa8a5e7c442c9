"""Policies: what the cards of rti-dp and bac measure with."""

from __future__ import annotations

import pytest
import torch

import ebbtide as ebb
from ebbtide.systems import presets
from ebbtide.systems.act import rti_dp
from ebbtide.systems.reuse import bac
from ebbtide.zoo.demonstrations import stretches


def white() -> ebb.Model:
    """A policy whose plans are white noise whatever it sees."""

    def say(x, clock, obs):
        return torch.zeros_like(x)  # v of N(0, 1) in a variance-preserving process: x0 = a x

    return ebb.load(say, process="vp-cosine", like=torch.zeros(4, 1, dtype=torch.float64), predicts="v")


def pointed() -> ebb.Model:
    """A policy with one plan, whatever it sees."""
    like = torch.zeros(4, 1, dtype=torch.float64)
    return ebb.load(lambda x, clock, obs: 0.5 * torch.ones_like(x), process="vp-cosine", like=like, predicts="x0")


def test_plans_drawn_alike_are_as_near_as_draws_are_to_one_another():
    first = ebb.Plan(grid={"name": "linear", "steps": 3})
    states = torch.zeros(400, 5, 5)
    assert rti_dp.apart(white(), first, first, states) == pytest.approx(1, abs=0.1)
    noisy = first.replace(grid={"name": "explicit", "times": [1.0, 0.9]})  # stops where there is noise
    assert rti_dp.apart(pointed(), first.replace(grid={"name": "explicit", "times": [1.0, 0.01]}), noisy, states) > 10


def test_units_spread_evenly_are_as_many_as_asked():
    units = {"a": [0], "b": [0], "c": [0]}
    for total in (3, 20, 100, 150):
        spread = bac.even(units, total)
        assert sum(map(len, spread.values())) == total
        assert all(v[0] == 0 for v in spread.values())
        assert max(map(len, spread.values())) - min(map(len, spread.values())) <= 1
        assert bac.share(spread) == pytest.approx(total / 150)


def test_what_ships_of_episodes_is_of_pushed_blocks():
    states = stretches()
    assert states.shape == (24, 41, 5)
    assert 0 <= float(states[..., :4].min()) and float(states[..., :4].max()) <= 512
    assert (states[:, 1:, :2] - states[:, :-1, :2]).norm(dim=2).max() < 60  # no agent jumps
    assert (states[:, -1, 2:4] - states[:, 0, 2:4]).norm(dim=1).median() > 10  # blocks move


def test_the_plan_of_pusht_starts_where_the_warm_start_leaves_half():
    plan = ebb.Plan.from_dict(presets()["rti-dp-pusht"])
    assert plan.grid["times"][0] == 0.5
    assert plan.start == {"name": "warm", "shift": 8}
