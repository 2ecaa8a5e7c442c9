"""Contract 10: a plan of any parts with any parameters is the same plan after JSON, YAML and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import worlds
import yaml

from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import MANY, Plan
from ebbtide.core.registry import Entry


def plans(entry: Entry) -> list[Plan]:
    """Plans around every variant of a part, its process written in."""
    out = []
    for case in worlds.cases(entry, forms=False):
        world = case.world()
        slots = world.plan.to_dict()
        slots["process"] = worlds.KINDS.get(case.kind, case.spec if entry.slot == "process" else None)
        out.append(Plan(**slots))
    return out


@worlds.each("plan")
def test_round_trips(entry: Entry, tmp_path: Path):
    for plan in plans(entry):
        data = plan.to_dict()
        assert Plan.from_dict(data) == plan
        assert Plan.from_dict(json.loads(plan.to_json())) == plan
        assert Plan.from_dict(yaml.safe_load(plan.to_yaml())) == plan
        assert json.loads(plan.to_json()) == yaml.safe_load(plan.to_yaml())
        for suffix in (".yaml", ".json"):
            plan.save(tmp_path / f"plan{suffix}")
            back = Plan.load(tmp_path / f"plan{suffix}")
            assert back == plan
            for slot in registry.SLOTS:
                assert back.parts(slot) == plan.parts(slot)
        assert not list(tmp_path.glob("*.part"))


@worlds.each("plan")
def test_every_parameter_can_be_other_than_its_default(entry: Entry):
    """`variants` changes each parameter once, or the part's own examples do; so round trips saw them all."""
    seen = worlds.variants(entry)
    for name in entry.cls.__pydantic_fields__:
        values = [repr(getattr(registry.make(entry.slot, s), name)) for s in seen]
        required = all(name in s for s in seen)
        assert required or len(set(values)) > 1, (
            f"no test has seen {worlds.title(entry)} with another {name!r}: give the part an example that sets it"
        )


@worlds.each("plan")
def test_a_bound_plan_is_what_it_says(entry: Entry):
    """The parts of the loop are those that the read-back plan describes."""
    for case in worlds.cases(entry, forms=False):
        world = case.world()
        back = Plan.from_dict(json.loads(world.plan.to_json()))
        loop, again = world.loop, world.model.loop(back, world.cond)
        for name in ("start", "grid", "solve", "correct", "steer"):
            assert getattr(loop, name) == getattr(again, name)
        assert loop.layers[:-1] == again.layers[:-1]


@worlds.each("plan")
def test_unknown_parameters_and_wrong_types_are_told_in_one_sentence(entry: Entry):
    spec = worlds.examples(entry)[0]
    slot = entry.slot
    wrap = (lambda s: [s]) if slot in MANY else (lambda s: s)
    with pytest.raises(EbbError, match="no parameter 'colour'") as told:
        Plan(**{slot: wrap({**spec, "colour": "red"})})
    assert "\n" not in str(told.value)
    for name in entry.cls.__pydantic_fields__:
        with pytest.raises(EbbError, match=f"'{entry.name}'") as told:
            Plan(**{slot: wrap({**spec, name: {"no": ["such", "value"]}})})
        assert "\n" not in str(told.value)


def test_a_plan_of_all_slots_round_trips_and_is_frozen():
    plan = Plan(
        process="flow",
        solve={"name": "dpmpp-2m", "order": 1},
        grid={"name": "explicit", "times": (1.0, torch.tensor(0.5), 0.0)},
        guide=[{"name": "cfg", "scale": 2}, "cfg"],
        run={"model": "digits", "cond": 7, "n": 2, "seed": [3, 4]},
    )
    assert Plan.from_dict(json.loads(plan.to_json())) == plan
    taken = plan.to_dict()
    taken["grid"]["times"][0] = 0.1
    taken["guide"].clear()
    assert plan.parts("grid")[0].times == [1.0, 0.5, 0.0]
    assert len(plan.guide) == 2
    with pytest.raises(AttributeError):
        plan.solve = "euler"  # type: ignore[misc]
