"""Policies: what the cards of rti-dp and bac measure with."""

from __future__ import annotations

import pytest

import ebbtide as ebb
from ebbtide.systems import presets
from ebbtide.systems.reuse import bac
from ebbtide.zoo.demonstrations import stretches


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
    assert float(states[..., :4].min()) >= 0
    assert float(states[..., :4].max()) <= 512
    assert (states[:, 1:, :2] - states[:, :-1, :2]).norm(dim=2).max() < 60  # no agent jumps
    assert (states[:, -1, 2:4] - states[:, 0, 2:4]).norm(dim=1).median() > 10  # blocks move


def test_the_plan_of_pusht_starts_where_the_warm_start_leaves_half():
    plan = ebb.Plan.from_dict(presets()["rti-dp-pusht"])
    assert plan.grid["times"][0] == 0.5
    assert plan.start == {"name": "warm", "shift": 8}
