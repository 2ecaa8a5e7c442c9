"""The registry itself: every part can be built, says what it is, and declares its exemptions with a reason."""

from __future__ import annotations

import re

import pytest
import torch
import worlds

from ebbtide.core import registry
from ebbtide.core.registry import Entry

every = pytest.mark.parametrize("entry", [pytest.param(e, id=worlds.title(e)) for e in worlds.parts()])


@every
def test_an_exemption_names_a_contract_and_has_a_reason(entry: Entry):
    for contract, reason in entry.exempt.items():
        assert contract in worlds.CONTRACTS, f"{worlds.title(entry)} is exempt from an unknown contract {contract!r}"
        assert len(reason.split()) >= 3, f"{worlds.title(entry)} gives no reason for its exemption from {contract!r}"


@every
def test_a_part_is_frozen_and_holds_no_tensor(entry: Entry):
    for spec in worlds.variants(entry):
        part = worlds.build(entry.slot, spec)
        first = next(iter(entry.cls.__pydantic_fields__), None)
        if first is not None:
            with pytest.raises((AttributeError, TypeError)):
                setattr(part, first, 0)
        assert not any(isinstance(v, torch.Tensor) for v in vars(part).values())


@every
def test_a_part_has_a_sentence_and_its_baseline_exists(entry: Entry):
    assert re.fullmatch(r"[A-Z].+\.", entry.sentence), entry.sentence
    if entry.baseline is not None:
        assert entry.baseline in registry.names(entry.slot)
    if entry.off is not None:
        assert set(entry.off) <= set(entry.cls.__pydantic_fields__)


@every
def test_every_need_can_be_met_and_every_part_has_a_world(entry: Entry):
    assert all(case.world().loop is not None for case in worlds.cases(entry, forms=False))


def test_all_parts_of_the_package_are_found():
    """The decorators read from the source and those that ran name the same parts."""
    assert {(e.slot, e.name) for e in worlds.parts()} <= set(registry._modules())
    assert {s for s, _ in registry._modules()} <= set(registry.SLOTS)
    assert len(worlds.parts("process")) >= 10
