"""Contract 13: the card of every system passes, and fails when its mechanism is switched off."""

from __future__ import annotations

import pytest

from ebbtide import systems


def found() -> list[object]:
    return [pytest.param(i, marks=[pytest.mark.slow] if systems.find(i).slow else []) for i in systems.ids()]


@pytest.mark.parametrize("system", found())
def test_the_card_passes_and_its_control_fails(system: str):
    good = systems.run(system)
    wrong = [f"{c.name} = {c.figure:g}, {c.bounds}" for c in good.checks if not c.passed]
    assert good.passed, f"{system}: {'; '.join(wrong) or 'no check was made'}"
    control = systems.run(system, control=True)
    held = "; ".join(f"{c.name} = {c.figure:g}" for c in control.checks)
    assert not control.passed, f"{system} passes with its mechanism switched off: {held}"
