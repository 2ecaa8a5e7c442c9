"""The registry: found by reading, imported when asked for, and every mistake told in one sentence."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Annotated, Literal

import pytest
from pydantic import Field

from ebbtide.core import registry
from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.parts import Solver
from ebbtide.core.registry import SLOTS, entries, find, make, names, part


@pytest.fixture(autouse=True)
def own():
    """What a test registers is gone after it; parts of the package that it imported stay."""
    yield
    for key in [k for k, e in registry._registry.items() if not e.cls.__module__.startswith("ebbtide.")]:
        del registry._registry[key]


def bare(module: str) -> type:
    """A class to register that comes from `module`."""
    return type("Leap", (Solver,), {"__module__": module})


def solver() -> type:
    class Leap(Solver):
        """Leap: a solver made up for this test.

        More about it.
        """

        rate: Annotated[float, Field(gt=0, le=1)] = 0.5
        mode: Literal["fast", "slow"] = "fast"
        times: list[float] = Field(default_factory=list)

    return Leap


# ---------------------------------------------------------------- registering


def test_a_part_is_registered_by_its_decorator_alone():
    made = part("solve", "leap", paper="1234.56789", needs={"affine"}, off={"rate": 1.0}, baseline="euler")(solver())
    entry = find("solve", "leap")
    assert entry.cls is made
    assert made.entry is entry
    assert (entry.paper, entry.needs, entry.baseline) == ("1234.56789", {"affine"}, "euler")
    assert entry.sentence == "Leap: a solver made up for this test."
    assert "leap" in names("solve")
    assert "leap" not in names("grid")
    assert entry in entries("solve")


def test_a_name_cannot_be_given_twice():
    part("solve", "leap")(bare("json"))
    with pytest.raises(ValueError, match=r"'leap' is registered twice: json and csv"):
        part("solve", "leap")(bare("csv"))
    part("grid", "leap")(bare("csv"))  # another slot is another name
    again = part("solve", "leap")(bare("json"))  # and a module may be loaded again
    assert find("solve", "leap").cls is again


def test_a_slot_must_exist():
    with pytest.raises(ValueError, match=r"'sovle' is no slot; did you mean solve\?"):
        part("sovle", "leap")


def test_every_file_of_a_part_is_found_by_its_decorator():
    for entry in entries():
        if entry.cls.__module__.startswith("ebbtide."):
            assert registry._modules()[entry.slot, entry.name] == entry.cls.__module__
            assert entry.name in names(entry.slot)
    assert {s for s, _ in registry._modules()} <= set(SLOTS)


# ---------------------------------------------------------------- making


def test_parts_are_frozen_and_equal_by_value():
    part("solve", "leap")(solver())
    made = make("solve", {"name": "leap", "rate": 0.25, "times": [1, 2]})
    assert (made.rate, made.mode, made.times) == (0.25, "fast", [1.0, 2.0])
    assert made == make("solve", {"name": "leap", "rate": 0.25, "times": [1, 2]})
    assert made != make("solve", {"name": "leap"})
    with pytest.raises(FrozenInstanceError):
        made.rate = 1.0


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"name": "leep"}, r"there is no solve 'leep'; did you mean leap\?"),
        ({"name": "hewn"}, r"there is no solve 'hewn'; did you mean .*heun"),
        ({"name": "qqqq"}, r"there is no solve 'qqqq'; known: .*euler.*heun.*leap"),
        ({"name": "karras"}, r"'karras' is a part of 'grid', not of 'solve'\."),
        ({"name": "leap", "rat": 1}, r"solve 'leap' has no parameter 'rat'; did you mean rate\?"),
        ({"name": "leap", "order": 1}, r"solve 'leap' has no parameter 'order'; "),
        ({"name": "leap", "entry": 1}, r"solve 'leap' has no parameter 'entry'; "),
        ({"name": "leap", "rate": 0}, r"solve 'leap', rate: .*greater than 0 \(got 0\)"),
        ({"name": "leap", "rate": 1.5}, r"solve 'leap', rate: .*less than or equal to 1 \(got 1\.5\)"),
        ({"name": "leap", "rate": "much"}, r"solve 'leap', rate: .*number.*\(got 'much'\)"),
        ({"name": "leap", "rate": None}, r"solve 'leap', rate: .*number.*\(got None\)"),
        ({"name": "leap", "mode": "slw"}, r"solve 'leap', mode: .*'fast' or 'slow' \(got 'slw'\)"),
        ({"name": "leap", "times": [1.0, "x"]}, r"solve 'leap', times\.1: .*number.*\(got 'x'\)"),
    ],
)
def test_mistakes_are_one_sentence(spec, sentence):
    part("solve", "leap")(solver())
    with pytest.raises(EbbError, match=f"^{sentence}") as caught:
        make("solve", spec)
    text = str(caught.value)
    assert text[-1] in ".?"
    assert "\n" not in text
    assert "pydantic" not in text


def test_a_parameter_that_must_be_given_is_named():
    with pytest.raises(EbbError, match=r"^process 'masked', vocab: it must be given\.$"):
        make("process", {"name": "masked"})


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ({"low": 2.0}, r" \(got low=2\.0\)"),
        ({"low": 3.0, "high": 2.0}, r" \(got low=3\.0, high=2\.0\)"),
        ({"table": [1.0] * 1000}, r" \(got table=\[1\.0, .{,60}\]\)"),
        ({"named": "x" * 1000}, r" \(got named='x.{,90}x'\)"),
    ],
)
def test_what_several_parameters_are_together_is_said_in_the_words_of_the_part(given, got):
    class Between(Solver):
        """Between: a solver made up for this test."""

        low: float = 0.0
        high: float = 1.0
        table: list[float] = Field(default_factory=list)
        named: str = ""

        def __post_init__(self) -> None:
            if self.low > self.high or self.table or self.named:
                raise ValueError("Low lies below high, and nothing else is given.")

    part("solve", "between")(Between)
    assert make("solve", {"name": "between"}).high == 1.0
    with pytest.raises(EbbError, match=rf"^solve 'between': low lies below high, and nothing else is given{got}\.$"):
        make("solve", {"name": "between", **given})


def test_nearest_names_what_is_close_or_all_there_is():
    assert nearest("eulr", ["karras", "euler"]) == "did you mean euler?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b."
    assert nearest("zzz", []) == "known: none."


# ---------------------------------------------------------------- importing


LAZY = """
import sys
import ebbtide
assert not [m for m in sys.modules if m.startswith("ebbtide.")], "importing ebbtide imports its rooms"
assert "torch" not in sys.modules, "importing ebbtide imports torch"
from ebbtide.core import registry
for slot in registry.SLOTS:
    registry.names(slot)
rooms = tuple(f"ebbtide.{slot}." for slot in registry.SLOTS)
loaded = [m for m in sys.modules if m.startswith(rooms)]
assert not loaded, f"names() imported {loaded}"
registry.make("solve", {"name": "heun"})
loaded = {name for slot, name in registry._registry}
assert loaded == {"heun"}, f"heun imported {loaded}"
assert not [m for m in sys.modules if m.startswith("ebbtide.grid.")]
"""


def test_nothing_is_imported_before_it_is_asked_for():
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
