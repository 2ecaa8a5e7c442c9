"""Every pair of techniques in one plan, on shipped models, for a few steps: it works, or one sentence says why not.

    python -m tests.composition -o docs/composition.md

Each part is tried alone on the models in turn, and a pair on the first that takes both. Exit code 1 where a pair fails: with
anything but an `EbbError`, or with samples that are not finite.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ebbtide as ebb
from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import OF_MODEL
from ebbtide.core.plan import MANY, Plan, features
from ebbtide.core.registry import Entry
from ebbtide.core.tree import tree_map
from ebbtide.samples import finite_rows

SLOTS = ("network", "guide", "correct", "steer", "solve")
MODELS = ("digits", "digits-unet", "shakespeare")
LEFT_OUT = {
    "network/compile": "a program is compiled for every pair, a minute each; tests/network/test_rewrites.py runs it"
}
SMALL = {"correct/bottleneck": {"multiple": 4}}  # the shipped networks take no other sizes
LARGEST = 30  # of the sentences that are shown
STEPS, SAMPLES = 4, 2
WORKS = "works"


@dataclass(frozen=True)
class Outcome:
    """What came of a plan: on which model, and the sentence where it was refused or the error where it failed."""

    kind: str
    model: str
    said: str = ""

    @property
    def sign(self) -> str:
        """As the page shows it."""
        return {WORKS: "✓", "refused": "–", "fails": "**✗**"}[self.kind]


def parts() -> list[Entry]:
    """The parts that are paired."""
    own = [e for slot in SLOTS for e in registry.entries(slot) if e.cls.__module__.startswith("ebbtide.")]
    return [e for e in own if title(e) not in LEFT_OUT]


def title(entry: Entry) -> str:
    """slot/name."""
    return f"{entry.slot}/{entry.name}"


def spec(entry: Entry) -> dict[str, Any]:
    """The part with its defaults, or its first example where it has none."""
    plain = {"name": entry.name, **SMALL.get(title(entry), {})}
    alone = not hasattr(entry.cls, "calibrated")
    try:
        registry.make(entry.slot, plain)
    except EbbError:
        alone = False
    return plain if alone else {**plain, **entry.cls.examples[0]}


def plan_of(entries: Sequence[Entry]) -> Plan:
    """A plan that holds these parts, the first of a slot outermost, with what they need beside them."""
    slots: dict[str, Any] = {"grid": {"name": "linear", "steps": STEPS}}
    for entry in entries:
        held = spec(entry)
        slots[entry.slot] = [*slots.get(entry.slot, []), held] if entry.slot in MANY else held
    there = list(entries)
    wanted = sorted(frozenset[str]().union(*(e.needs for e in there)) - OF_MODEL)
    for need in wanted:
        if not any(need in features(registry.make(e.slot, spec(e))) for e in there):
            found = _companion(need, slots)
            for e in found:
                slots[e.slot] = [spec(e)] if e.slot in MANY else spec(e)
                wanted += sorted(e.needs - OF_MODEL)
            there += found
    return Plan(**slots)


def _companion(need: str, slots: dict[str, Any]) -> list[Entry]:
    """The first part that gives what is needed, in a slot that is free, the simplest of a slot first."""
    for e in sorted(registry.entries(), key=lambda e: len(e.needs - OF_MODEL)):
        free = e.slot not in slots or e.slot == "grid"
        if free and e.slot != "process" and need in features(registry.make(e.slot, spec(e))):
            return [e]
    return []


def condition(model: Any, plan: Plan) -> dict[str, Any]:
    """A condition with what the parts of the plan read of it: data of the model's own, and a mask that hides every third."""
    cond: dict[str, Any] = {"label": torch.tensor([3] * SAMPLES)} if model.labels else {}
    parts = [p for slot in registry.SLOTS for p in plan.parts(slot)]
    reads = frozenset[str]().union(*(p.reads for p in parts))
    reads |= {"source"} if "source" in frozenset[str]().union(*(p.entry.gives for p in parts)) else frozenset()
    data = tree_map(lambda v: (torch.arange(v.numel()) % 5 / 2.5 - 1).reshape(v.shape).to(v), model.batch(SAMPLES))
    hidden = tree_map(lambda v: (torch.arange(v.numel()) % 3 == 0).reshape(v.shape).to(v), data)
    known = {"mask": hidden, "measured": tree_map(lambda v, h: v * (1 - h), data, hidden)}
    known |= {"level": torch.linspace(0.3, 0.7, SAMPLES, dtype=torch.float64)}
    return cond | {name: known.get(name, data) for name in reads - {"residual"}}


def tried(plan_or_error: Any, model: Any) -> Outcome:
    """Run it for its few steps."""
    try:
        plan = plan_or_error()
        cond = model.condition(condition(model, plan), SAMPLES) or model.condition(None, SAMPLES)
        loop = model.loop(plan, cond)
        group = torch.zeros(SAMPLES, dtype=torch.int64) if plan.steer is not None else None
        state = loop.begin(model.batch(SAMPLES), cond, list(range(SAMPLES)), model.unit_shape(), group)
        for step in itertools.islice(loop.run(state), 4 * STEPS):
            state = step.state
    except EbbError as error:
        return Outcome("refused", model.name, str(error))
    except Exception as error:  # what the page is for
        return Outcome("fails", model.name, f"{type(error).__name__}: {error}")
    if not bool(finite_rows(state.x).all()):
        return Outcome("fails", model.name, "samples are not finite")
    return Outcome(WORKS, model.name)


def home(entry: Entry, models: Sequence[Any]) -> tuple[list[str], Outcome]:
    """The models on which a part works alone, and the last outcome."""
    found, last = [], Outcome("refused", "")
    for model in models:
        last = tried(lambda: plan_of([entry]), model)
        if last.kind == WORKS:
            found.append(model.name)
        elif last.kind == "fails":
            return [], last
    return found, last


def pair(a: Entry, b: Entry, homes: dict[str, list[str]], models: dict[str, Any]) -> Outcome:
    """What comes of two parts in one plan."""
    both = [name for name in homes[title(a)] if name in homes[title(b)]]
    name = both[0] if both else homes[title(a)][0]
    return tried(lambda: plan_of([a, b]), models[name])


def page(entries: Sequence[Entry], found: dict[str, Outcome], versions: str) -> str:
    """The matrix, and the sentences."""
    across = [e for e in entries if e.slot != "solve"]
    kinds = [o.kind for o in found.values()]
    counts = ", ".join(f"{kinds.count(k)} {k}" for k in (WORKS, "refused", "fails"))
    numbers = {title(e): k for k, e in enumerate(across, 1)}
    lines = [
        "# Composition",
        "",
        f"Every pair of techniques in one plan for {STEPS} steps: {counts}. ✓ works, – is refused in a sentence, ✗ fails. "
        f"Written by `python -m tests.composition -o docs/composition.md` with {versions}, on {', '.join(MODELS)}: a pair "
        "runs on the first that takes both parts.",
        "",
        *(f"Left out: {name}, as {why}." for name, why in LEFT_OUT.items()),
        "",
        "| | | " + " | ".join(str(numbers[title(e)]) for e in across) + " |",
        "|---|---|" + "---|" * len(across),
    ]
    for e in entries:
        cells = []
        for other in across:
            key = "+".join(sorted((title(e), title(other))))
            cells.append(found[key].sign if key in found else "")
        lines.append(f"| {numbers.get(title(e), '')} | `{title(e)}` | " + " | ".join(cells) + " |")
    said: dict[str, list[str]] = {}
    for key, outcome in found.items():
        if outcome.said:
            said.setdefault(outcome.said, []).append(" + ".join(f"`{k.split('/')[1]}`" for k in key.split("+")))
    lines += [
        "",
        "## What is said where a pair is refused",
        "",
        "The most frequent first.",
        "",
        "| pairs | sentence |",
        "|---|---|",
    ]
    ranked = sorted(said.items(), key=lambda item: (-len(item[1]), item[0]))
    for sentence, pairs in ranked[:LARGEST]:
        few = ", ".join(pairs[:3]) + (f" and {len(pairs) - 3} more" if len(pairs) > 3 else "")
        lines.append(f"| {few} | {sentence.replace('|', ' ')} |")
    if len(ranked) > LARGEST:
        lines += ["", f"And {len(ranked) - LARGEST} others, each of a few pairs."]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Run all pairs; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.composition", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, help="the page, and beside it its record as .json")
    parser.add_argument("--only", default="", help="pairs with a part whose name holds this")
    given = parser.parse_args(words)
    models = {name: ebb.load(name) for name in MODELS}
    entries = parts()
    record = None if given.out is None else given.out.with_suffix(".json")
    held = json.loads(record.read_text(encoding="utf-8")) if record is not None and record.exists() else {}
    found = {key: Outcome(**v) for key, v in held.items()}
    homes: dict[str, list[str]] = {}
    for entry in entries:
        homes[title(entry)], last = home(entry, list(models.values()))
        if not homes[title(entry)]:
            print(f"{title(entry)} works on none of {', '.join(MODELS)}: {last.said}")
            return 1
    pairs = [
        (a, b)
        for a, b in itertools.combinations(entries, 2)
        if (a.slot != b.slot or a.slot in MANY) and (given.only in a.name or given.only in b.name)
    ]
    began = saved = time.monotonic()
    for number, (a, b) in enumerate(pairs, 1):
        key = "+".join(sorted((title(a), title(b))))
        if key not in found:
            found[key] = pair(a, b, homes, models)
            if found[key].kind == "fails":
                print(f"{key}: {found[key].said}", flush=True)
        if record is not None and (time.monotonic() - saved > 20 or number == len(pairs)):
            saved = time.monotonic()
            record.write_text(json.dumps({k: vars(v) for k, v in found.items()}, indent=0) + "\n", encoding="utf-8")
            left = (saved - began) / number * (len(pairs) - number)
            print(f"{number}/{len(pairs)}, {left:.0f} s left", flush=True)
    if given.out is not None:
        versions = f"ebbtide {ebb.__version__} and torch {torch.__version__.split('+')[0]}"
        given.out.write_text(page(entries, found, versions), encoding="utf-8")
    bad = [k for k, o in found.items() if o.kind == "fails"]
    print(f"{len(found)} pairs, {len(bad)} fail")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
