"""Journals: what a call of `ebb.sample` has made so far, so that another call can go on from there.

    journal = Journal()
    ebb.sample(model, plan, n=64, batch=16, journal=journal)      # stopped half way
    journal.save("run.state.safetensors", {})
    ...
    ebb.sample(model, plan, n=64, batch=16, journal=Journal.load("run.state.safetensors")[0])

The file is a saved `State`, that of the batch under way, with one more slot of memory that holds the finished batches.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ebbtide.core.errors import EbbError
from ebbtide.core.state import State, Step
from ebbtide.core.tree import Tree, leaves, tree_map
from ebbtide.samples import Failure

_SLOT = "journal"


@dataclass
class Journal:
    """The progress of one call of `sample`, which writes it after every whole step.

    batches  samples of the finished batches, on the CPU
    frames   x after every step, batch by batch, where a trace is kept
    failed   elements of finished batches that did not stay finite
    calls    network evaluations so far, `notes` what techniques did, `seconds` the time it took
    state    of the batch under way; None before a batch begins
    """

    batches: list[Tree] = field(default_factory=list)
    frames: list[list[Tree]] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    calls: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    state: State | None = None

    @property
    def finished(self) -> int:
        """How many samples are done."""
        return sum(len(next(iter(leaves(x).values()))) for x in self.batches)

    def begin(self, state: State, trace: bool) -> None:
        """A batch begins."""
        self.state = state
        if trace:
            self.frames.append([])

    def add(self, step: Step, trace: bool) -> State:
        """Take in one step of the batch under way; gives its state."""
        self.state = step.state
        self.calls += step.calls
        self.notes.update(step.info)
        if trace:
            self.frames[-1].append(tree_map(lambda v: v.cpu(), step.state.x))
        return step.state

    def close(self, failed: list[Failure]) -> None:
        """The batch under way is finished."""
        assert self.state is not None
        self.batches.append(tree_map(lambda v: v.cpu(), self.state.x))
        self.failed += failed
        self.state = None

    def save(self, path: str | os.PathLike[str], about: dict[str, Any]) -> None:
        """Write it, with `about` as plain data; the file appears whole or not at all.

        Raises EbbError when no batch is under way.
        """
        if self.state is None:
            raise EbbError("there is no batch under way, so there is nothing to save.")
        kept: dict[str, Any] = {}
        if self.batches:
            kept["x"] = tree_map(lambda *v: torch.cat(v), *self.batches)
        shot = {str(k): _stacked(frames) for k, frames in enumerate(self.frames) if frames}
        if shot:
            kept["frames"] = shot
        state = self.state.remember(_SLOT, kept) if kept else self.state
        said = {
            "failed": [list(f) for f in self.failed],
            "calls": self.calls,
            "notes": dict(self.notes),
            "seconds": self.seconds,
            "away": [k for k, v in self.state.flat().items() if v.device.type != "cpu"],
        }
        state.save(path, {**about, _SLOT: said})

    @staticmethod
    def load(path: str | os.PathLike[str], device: str | torch.device | None = None) -> tuple[Journal, dict[str, Any]]:
        """A saved journal and what was written about it; a plain saved state is one with nothing finished.

        device  where the tensors go that lay on another device than the CPU

        Raises EbbError when the file is missing or is not a saved state.
        """
        state, about = State.load(path)
        said = about.pop(_SLOT, {})
        memory = dict(state.memory)
        kept = memory.pop(_SLOT, {})
        state = replace(state, memory=memory)
        if device is not None and said.get("away"):
            away = set(said["away"])
            state = State.unflat({k: v.to(device) if k in away else v for k, v in state.flat().items()})
        shot = kept.get("frames", {})
        frames = [_frames(shot[b]) for b in sorted(shot, key=int)]
        return Journal(
            batches=[kept["x"]] if "x" in kept else [],
            frames=frames,
            failed=[Failure(*f) for f in said.get("failed", [])],
            calls=said.get("calls", 0),
            notes=Counter(said.get("notes", {})),
            seconds=said.get("seconds", 0.0),
            state=state,
        ), about


def _stacked(frames: list[Tree]) -> dict[str, Tree]:
    """The frames of a batch, those in a row that are of one shape as one: a correction may change the shape on the way."""
    shapes = [[v.shape for v in leaves(x).values()] for x in frames]
    first = [k for k in range(len(frames)) if k == 0 or shapes[k] != shapes[k - 1]]
    rows = zip(first, [*first[1:], len(frames)], strict=True)
    return {str(j): tree_map(lambda *v: torch.stack(v), *frames[a:b]) for j, (a, b) in enumerate(rows)}


def _frames(stacked: dict[str, Tree]) -> list[Tree]:
    """The inverse of `_stacked`."""
    out: list[Tree] = []
    for j in sorted(stacked, key=int):
        count = len(next(iter(leaves(stacked[j]).values())))
        out += [tree_map(lambda v, k=k: v[k], stacked[j]) for k in range(count)]
    return out
