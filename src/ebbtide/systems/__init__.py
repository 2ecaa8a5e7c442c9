"""Systems: published works, each with the record of what it is, plans that reproduce it, and a card that proves it.

A system is one file, `systems/<family>/<id with _>.py`:

    SYSTEM = System(id="...", family="...", title="...", year=2024, claim="...", parts=("solve/heun",), presets={...})

    def card(bench: Bench) -> Card:
        ...
        bench.check("order on the mixture", slope, at_least=1.85, published="2")
        return bench.card()

The record is written in literals, so listing systems imports none of them. A card runs twice: once as it is, and once as
its *control*, in which `bench.plan` switches the system's parts off and `bench.fault` plants the fault named; it must pass
the first time and fail the second.
"""

from __future__ import annotations

import ast
import functools
import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ebbtide.core.errors import EbbError, nearest

_ROOT = Path(__file__).parent
_T = TypeVar("_T")


@dataclass(frozen=True)
class System:
    """The record of a published system.

    claim    what the publication says it achieves
    paper    arXiv number or DOI
    parts    "slot/name" of the parts it is made of; its control run switches these off
    presets  plans that reproduce it, by name
    slow     its card takes more than 20 s on two cores
    differs  where what stands here differs from the publication
    """

    id: str
    family: str
    title: str
    year: int
    claim: str
    what: str = ""
    paper: str = ""
    parts: tuple[str, ...] = ()
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    slow: bool = False
    differs: str = ""


@dataclass(frozen=True)
class Check:
    """One figure measured, and the bounds it must keep."""

    name: str
    figure: float
    at_least: float | None = None
    at_most: float | None = None
    published: str = ""

    @property
    def passed(self) -> bool:
        """Whether the figure keeps its bounds; what is not a number keeps none."""
        low = self.at_least is None or self.figure >= self.at_least
        high = self.at_most is None or self.figure <= self.at_most
        return self.figure == self.figure and low and high

    @property
    def bounds(self) -> str:
        """The bounds as people write them."""
        low = [] if self.at_least is None else [f">= {self.at_least:g}"]
        high = [] if self.at_most is None else [f"<= {self.at_most:g}"]
        return ", ".join(low + high)


@dataclass(frozen=True)
class Card:
    """The outcome of a card: it passes when every check does. `note` says what an honest reader should know."""

    checks: tuple[Check, ...]
    note: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(c.passed for c in self.checks)


@dataclass
class Bench:
    """What a card measures on: plans and pieces as they are, or, in the control run, with the mechanism switched off."""

    system: System
    control: bool = False
    checks: list[Check] = field(default_factory=list)

    def plan(self, plan: Mapping[str, Any] | str) -> Any:
        """A plan, or the system's preset of that name; the control run has the system's parts at their off values.

        Raises EbbError when the control run would change nothing.
        """
        from ebbtide.core.plan import MANY, Plan

        data = dict(self.system.presets[plan] if isinstance(plan, str) else plan)
        made = Plan.from_dict(data)
        if not self.control:
            return made
        changed = {}
        for slot in {p.split("/")[0] for p in self.system.parts}:
            value = getattr(made, slot)
            specs = [self._off(slot, v) for v in (value if slot in MANY else [value])]
            changed[slot] = specs if slot in MANY else specs[0]
        if Plan.from_dict({**data, **changed}) == made:
            raise EbbError(f"the control run of {self.system.id!r} switches nothing off in this plan.")
        return made.replace(**changed)

    def _off(self, slot: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        from ebbtide.core import registry

        if f"{slot}/{spec['name']}" not in self.system.parts:
            return spec
        entry = registry.find(slot, spec["name"])
        return {"name": entry.baseline} if entry.off is None and entry.baseline else {**spec, **(entry.off or {})}

    def fault(self, good: _T, bad: _T) -> _T:
        """`good`, or in the control run `bad`: the planted fault of a system without a part to switch off."""
        return bad if self.control else good

    def check(
        self,
        name: str,
        figure: Any,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        published: str = "",
    ) -> float:
        """Record one figure with its bounds (inclusive), and give it back as a float."""
        self.checks.append(Check(name, float(figure), at_least, at_most, published))
        return float(figure)

    def card(self, note: str = "") -> Card:
        """The outcome of all checks so far."""
        return Card(tuple(self.checks), note)


@dataclass(frozen=True)
class Report:
    """A card run both ways. It holds when the card passes and its control run fails."""

    system: System
    card: Card
    control: Card
    seconds: float

    @property
    def passed(self) -> bool:
        return self.card.passed and not self.control.passed


# -------------------------------------------------------------------- finding them


@functools.cache
def _files() -> dict[str, Path]:
    return {p.stem.replace("_", "-"): p for p in sorted(_ROOT.glob("*/*.py")) if p.stem != "__init__"}


def ids(family: str | None = None) -> list[str]:
    """The ids of all systems, or of one family. Raises EbbError for a family that has none."""
    found = [i for i, p in _files().items() if family in (None, p.parent.name)]
    if not found and family is not None:
        raise EbbError(f"there is no family {family!r}; {nearest(family, {p.parent.name for p in _files().values()})}")
    return sorted(found)


def source(id: str) -> Path:
    """The file of a system. Raises EbbError with the nearest ids when there is none."""
    if id not in _files():
        raise EbbError(f"there is no system {id!r}; {nearest(id, _files())}")
    return _files()[id]


def find(id: str) -> System:
    """The record of a system, read without importing it. Raises EbbError with the nearest ids when there is none."""
    for node in ast.parse(source(id).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.targets[0].id == "SYSTEM":  # type: ignore[attr-defined]
            return System(**{k.arg: ast.literal_eval(k.value) for k in node.value.keywords if k.arg})
    raise EbbError(f"{_files()[id]} holds no SYSTEM record.")


def run(id: str, control: bool = False) -> Card:
    """Run the card of a system, or its control run."""
    system = find(id)
    module = importlib.import_module(f"ebbtide.systems.{system.family}.{_files()[id].stem}")
    card: Card = module.card(Bench(system, control))
    return card


def check(id: str) -> Report:
    """Run the card of a system both ways."""
    started = time.perf_counter()
    card, control = run(id), run(id, control=True)
    return Report(find(id), card, control, time.perf_counter() - started)


def presets() -> dict[str, Mapping[str, Any]]:
    """The plans of all systems, by the name of the preset."""
    return {name: plan for id in ids() for name, plan in find(id).presets.items()}
