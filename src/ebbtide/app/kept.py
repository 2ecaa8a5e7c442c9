"""Samples that `ebb eval` has drawn, a file for each plan: figures can be taken again, and others, with no network.

    front.samples/1f0a93b2c4d5.safetensors   x (n, ...), and of each batch: rows, calls, seconds

A file grows by a batch at a time and is written whole each time, so a stop costs the batch under way.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ebbtide.app.files import said, whole
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan


@dataclass
class Drawn:
    """The samples of one plan so far, and what each batch cost: rows, network calls, seconds."""

    x: list[Tensor] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(self.rows)

    @property
    def samples(self) -> Tensor:
        """All of them, in the order of their seeds."""
        return torch.cat(self.x)

    def add(self, x: Tensor, calls: float, seconds: float) -> None:
        """Take in a batch."""
        self.x.append(x.detach().cpu())
        self.rows.append(len(x))
        self.calls.append(float(calls))
        self.seconds.append(seconds)


@dataclass
class Kept:
    """The samples of all plans, in a folder where there is one."""

    folder: Path | None
    known: dict[str, Drawn] = field(default_factory=dict)

    def of(self, plan: Plan) -> Drawn:
        """What was drawn by a plan; nothing where it is new. Raises EbbError for a file that cannot be read."""
        key = key_of(plan)
        if key not in self.known:
            self.known[key] = self._read(key)
        return self.known[key]

    def _read(self, key: str) -> Drawn:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = None if self.folder is None else self.folder / f"{key}.safetensors"
        if path is None or not path.exists():
            return Drawn()
        try:
            held = load_file(path)
            rows = [int(v) for v in held["rows"]]
            return Drawn(list(held["x"].split(rows)), rows, held["calls"].tolist(), held["seconds"].tolist())
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise EbbError(f"{said(path)} cannot be read ({error}); --overwrite begins afresh.") from error

    def save(self, plan: Plan) -> None:
        """Write the samples of a plan, whole."""
        from safetensors.torch import save_file

        if self.folder is None:
            return
        drawn = self.of(plan)
        about = {k: torch.tensor(getattr(drawn, k), dtype=torch.float64) for k in ("rows", "calls", "seconds")}
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole(self.folder / f"{key_of(plan)}.safetensors") as part:
            save_file({"x": drawn.samples.contiguous(), **about}, part, {"plan": plan.to_yaml()})


def key_of(plan: Plan) -> str:
    """A short name of what a plan says."""
    return hashlib.sha256(json.dumps(plan.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
