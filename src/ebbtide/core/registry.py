"""The registry: a part is one class in one file of its slot's folder, and its decorator is the only entry it needs.

    @part("solve", "dpmpp-2m", paper="2211.01095", needs={"affine"}, off={"order": 1})
    class DPMpp2M(Solver): ...

Names are found by reading the decorators in the source, so nothing is imported before it is asked for.
"""

from __future__ import annotations

import functools
import importlib
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
from pydantic.dataclasses import dataclass as checked

from ebbtide.core.errors import EbbError, nearest

SLOTS = ("process", "start", "grid", "guide", "network", "solve", "correct", "steer")
_DECORATOR = re.compile(r'^@part\(\s*"([\w-]+)",\s*"([\w.+-]+)"', re.M)
_C = TypeVar("_C", bound=type)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class Entry:
    """What the registry knows of a part.

    needs   features that some other part of the plan must give ("affine", "err", "null"...)
    gives   features that this part gives whatever its parameters; a property `gives` of the class may add more
    refuses features that must be absent
    off     parameters that switch the technique off: the result is then bit-equal to `baseline`
    exempt  contract -> reason, for contract tests that cannot hold for this part
    """

    slot: str
    name: str
    cls: type
    paper: str = ""
    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()
    refuses: frozenset[str] = frozenset()
    off: Mapping[str, Any] | None = None
    baseline: str | None = None
    exempt: Mapping[str, str] = field(default_factory=dict)

    @property
    def features(self) -> frozenset[str]:
        """What the part gives whatever its parameters, by its decorator and by its class."""
        own: Any = getattr(self.cls, "gives", frozenset())
        return self.gives | (own if isinstance(own, frozenset) else frozenset())

    @property
    def sentence(self) -> str:
        """The first sentence of the part's file."""
        import sys

        doc = self.cls.__doc__ or sys.modules[self.cls.__module__].__doc__ or ""
        return doc.strip().split("\n")[0]


_registry: dict[tuple[str, str], Entry] = {}


@dataclass_transform(frozen_default=True, kw_only_default=False)
def part(
    slot: str,
    name: str,
    *,
    paper: str = "",
    needs: Iterable[str] = (),
    gives: Iterable[str] = (),
    refuses: Iterable[str] = (),
    off: Mapping[str, Any] | None = None,
    baseline: str | None = None,
    exempt: Mapping[str, str] | None = None,
) -> Callable[[_C], _C]:
    """Register a class as the part `name` of `slot` and make it a frozen dataclass whose fields pydantic checks.

    Raises ValueError for an unknown slot and for a name that another class holds already.
    """
    if slot not in SLOTS:
        raise ValueError(f"{slot!r} is no slot; {nearest(slot, SLOTS)}")

    def register(cls: _C) -> _C:
        made: Any = checked(frozen=True, config=pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True))(cls)
        before = _registry.get((slot, name))
        if before is not None and before.cls.__module__ != made.__module__:
            raise ValueError(f"{slot} {name!r} is registered twice: {before.cls.__module__} and {made.__module__}")
        features = (frozenset(needs), frozenset(gives), frozenset(refuses))
        entry = Entry(slot, name, made, paper, *features, off, baseline, exempt or {})
        _registry[slot, name] = entry
        made.entry = entry
        return made  # type: ignore[no-any-return]

    return register


@functools.cache
def _modules() -> dict[tuple[str, str], str]:
    """(slot, name) -> module, read from the decorators of the package's own files."""
    root = Path(__file__).parent.parent
    found = {}
    for slot in SLOTS:
        for file in sorted((root / slot).glob("*.py")):
            for where, name in _DECORATOR.findall(file.read_text(encoding="utf-8")):
                found[where, name] = f"ebbtide.{slot}.{file.stem}"
    return found


def names(slot: str) -> list[str]:
    """The names of all parts of a slot, those of the package and those registered by imported modules."""
    return sorted({n for s, n in (*_modules(), *_registry) if s == slot})


def find(slot: str, name: str) -> Entry:
    """The entry of a part, its module imported now. Raises EbbError with the nearest names when there is none."""
    if (slot, name) not in _registry and (slot, name) in _modules():
        importlib.import_module(_modules()[slot, name])
    if (slot, name) not in _registry:
        elsewhere = [s for s in SLOTS if name in names(s)]
        if elsewhere:
            raise EbbError(f"{name!r} is a part of {elsewhere[0]!r}, not of {slot!r}.")
        raise EbbError(f"there is no {slot} {name!r}; {nearest(name, names(slot))}")
    return _registry[slot, name]


def entries(slot: str | None = None) -> list[Entry]:
    """All entries, of one slot or of every slot, imported."""
    return [find(s, n) for s in SLOTS if slot in (None, s) for n in names(s)]


def make(slot: str, spec: Mapping[str, Any]) -> Any:
    """The part that a spec {"name": ..., **parameters} describes.

    Raises EbbError for an unknown name or parameter and for a value out of range, in one sentence.
    """
    entry = find(slot, spec["name"])
    given = {k: v for k, v in spec.items() if k != "name"}
    known = list(getattr(entry.cls, "__pydantic_fields__", {}))
    for name in given:
        if name not in known:
            raise EbbError(f"{slot} {entry.name!r} has no parameter {name!r}; {nearest(name, known)}")
    try:
        return entry.cls(**given)
    except pydantic.ValidationError as error:
        raise EbbError(f"{slot} {entry.name!r}{_told(error, given)}.") from None


def _told(error: pydantic.ValidationError, given: Mapping[str, Any]) -> str:
    """The first thing that is wrong with parameters, as the end of a sentence."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    what = first["msg"].removeprefix("Value error, ").rstrip(".")
    what = what[:1].lower() + what[1:]
    if first["type"] == "missing":
        return f", {where}: it must be given"
    if where:
        return f", {where}: {what} (got {_SHORT.repr(first['input'])})"
    # said of several parameters together, for which pydantic shows an object of its own
    told = ", ".join(f"{k}={_SHORT.repr(v)}" for k, v in given.items())
    return f": {what} (got {told})" if told else f": {what}"
