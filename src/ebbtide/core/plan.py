"""Plans: frozen plain data that says how samples are made, checked before anything runs.

    Plan(solve="dpmpp-2m", grid={"name": "karras", "steps": 12}, guide=[{"name": "cfg", "scale": 3.0}])

A part is written as its name or as {"name": ..., **parameters}. Every part is built once to check its parameters, and the
features that parts need, give and refuse are compared, so a clash is one readable sentence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from ebbtide.core import registry
from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.loop import Loop
from ebbtide.core.parts import OF_MODEL, Layer, Part, Process

Spec: TypeAlias = "str | Mapping[str, Any]"
MANY = ("guide", "network", "correct")
PRESETS = Path(__file__).parent.parent / "plans"


def _plain(value: Any) -> Any:
    """A copy made of dicts, lists, numbers, strings and None; numbers of numpy and torch become Python's."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise EbbError(f"a plan holds plain data only, not {value!r}.")


def filled(slot: str, value: Any) -> Any:
    """What a slot holds, in the one form that plans keep: a spec, a list of them where it holds several, None or [].

    Raises EbbError for what is neither the name of a part nor a mapping with one.
    """
    many = slot in MANY
    if value is None:
        return [] if many else None
    return _specs(slot, value) if many else _spec(slot, value)


def _spec(slot: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return {"name": value["name"], **{k: _plain(v) for k, v in value.items() if k != "name"}}
    raise EbbError(f"{slot} must be the name of a part or a mapping with a 'name', not {value!r}.")


def _specs(slot: str, value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str | Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        raise EbbError(f"{slot} is a list of parts, not {value!r}.")
    return [_spec(slot, v) for v in value]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How samples are made: one spec for each slot, a list of them for guide (outermost first), network and correct.

    process  None: the model's own. A given one is the process sampled in; the border converts
    run      what was run with this plan (model, condition, seeds, versions); written beside an output

    Raises EbbError for unknown parts and parameters, values out of range, and parts that clash.
    """

    process: Spec | None = None
    start: Spec = "prior"
    grid: Spec = "linear"
    guide: Sequence[Spec] | Spec = ()
    network: Sequence[Spec] | Spec = ()
    solve: Spec = "euler"
    correct: Sequence[Spec] | Spec = ()
    steer: Spec | None = None
    run: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for slot in registry.SLOTS:
            value = getattr(self, slot)
            if value is None and slot in ("start", "grid", "solve"):
                raise EbbError(
                    f"a plan needs a {slot}, such as {getattr(type(self), slot)!r}; `ebb list` names all of them."
                )
            object.__setattr__(self, slot, filled(slot, value))
        object.__setattr__(self, "run", None if self.run is None else _plain(self.run))
        self.check()

    # ---------------------------------------------------------------- plain data

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, slots that hold nothing left out."""
        named = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return {k: v for k, v in named.items() if v not in (None, [])}

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """A plan from plain data. Raises EbbError for slots that do not exist."""
        if not isinstance(data, Mapping):
            raise EbbError("a plan is a mapping from slots to parts, such as {solve: dpmpp-2m}.")
        known = [f.name for f in fields(cls)]
        for slot in data:
            if slot not in known:
                raise EbbError(f"a plan has no slot {slot!r}; {nearest(str(slot), known)}")
        return cls(**data)

    def to_json(self) -> str:
        """The plan as one line of JSON."""
        return json.dumps(self.to_dict())

    def to_yaml(self) -> str:
        """The plan as YAML."""
        import yaml

        return str(yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=120))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as YAML (JSON where the name ends so); the file appears whole or not at all."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(self.to_json() if path.suffix == ".json" else self.to_yaml(), encoding="utf-8")
        os.replace(part, path)

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Plan:
        """A plan from a YAML or JSON file, from a PNG that ebbtide wrote, or by the name of a preset.

        Raises EbbError when there is no such file or preset, or it holds no plan.
        """
        import yaml

        path = Path(source)
        if not path.exists():
            named = presets()
            if str(source) not in named:
                raise EbbError(f"{source} is neither a file nor a preset; {nearest(str(source), named)}")
            path = named[str(source)]
        try:
            text = _embedded(path) if path.suffix.lower() == ".png" else path.read_text(encoding="utf-8")
            data = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise EbbError(f"{path} cannot be read as a plan: {str(error).splitlines()[0]}.") from None
        return cls.from_dict(data)

    # ---------------------------------------------------------------- parts

    def parts(self, slot: str) -> list[Any]:
        """The parts of one slot, built."""
        value = getattr(self, slot)
        specs = value if slot in MANY else [] if value is None else [value]
        return [registry.make(slot, spec) for spec in specs]

    def check(self, process: Process | None = None, gives: frozenset[str] = frozenset()) -> None:
        """Compare what the parts need, give and refuse; with the model's `process`, what they need of it too.

        Raises EbbError naming the part, what it lacks and what would give it.
        """
        built = {slot: self.parts(slot) for slot in registry.SLOTS}
        if not built["process"] and process is not None:
            built["process"] = [process]
        own = process is None
        everything = [(slot, p) for slot, parts in built.items() for p in parts]
        given = gives.union(*(features(p) for _, p in everything))
        for slot, p in everything:
            entry = getattr(p, "entry", None)
            if entry is None:
                continue
            for need in sorted(entry.needs - given):
                if own and need in OF_MODEL:
                    continue  # the model may give it: asked again when the plan meets one
                mend = _givers(need)
                raise EbbError(f"{slot} {entry.name!r} needs {need!r}, which nothing in this plan gives{mend}.")
            for clash in sorted(entry.refuses & given):
                others = [f"{s} {q.entry.name!r}" for s, q in everything if clash in features(q) and q is not p]
                raise EbbError(
                    f"{slot} {entry.name!r} does not go together with {' and '.join(others) or clash} ({clash})."
                )

    def bind(self, network: Layer, process: Process, gives: frozenset[str] = frozenset()) -> Loop:
        """The loop of this plan over the innermost layer of a model; `process` is the one sampled in."""
        self.check(process, gives)
        return Loop(
            process=process,
            start=self.parts("start")[0],
            grid=self.parts("grid")[0],
            layers=(*self.parts("guide"), network),
            solve=self.parts("solve")[0],
            correct=tuple(self.parts("correct")),
            steer=next(iter(self.parts("steer")), None),
        )

    def replace(self, **changes: Any) -> Plan:
        """This plan with some slots changed."""
        return replace(self, **changes)


def _givers(need: str) -> str:
    """What would give a feature, as the end of a sentence; the first few of each slot."""
    found: dict[str, list[str]] = {}
    for entry in registry.entries():
        if need in entry.features:
            found.setdefault(entry.slot, []).append(entry.name)
    told = [f"{slot} {', '.join(names[:4])}{' and others' if len(names) > 4 else ''}" for slot, names in found.items()]
    return f"; it comes with {'; '.join(told)}" if told else ""


def features(p: Part) -> frozenset[str]:
    """All features a part gives: those of its entry and those that depend on its parameters."""
    entry = getattr(p, "entry", None)
    stochastic = frozenset({"stochastic"}) if getattr(p, "stochastic", False) else frozenset()
    return (frozenset() if entry is None else entry.gives) | p.gives | stochastic


def presets() -> dict[str, Path]:
    """The plans that ship with the package, by name."""
    return {p.stem: p for p in sorted(PRESETS.glob("*.yaml"))}


def _embedded(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get("ebbtide")
    except UnidentifiedImageError:
        text = None
    if text is None:
        raise EbbError(f"{path} holds no plan; pictures written by `ebb sample` do.")
    return str(text)
