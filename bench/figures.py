"""What the benches share: figures with bars, interleaved timing, and the memory of a process."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One thing measured. `bar` is the most it may be (None: no promise is made); `said` shows what it was made of."""

    name: str
    value: float
    bar: float | None = None
    unit: str = "x"
    said: str = ""

    @property
    def ok(self) -> bool:
        """Whether the figure keeps its bar; what is not a number keeps none."""
        return self.bar is None or self.value <= self.bar


def report(title: str, figures: list[Figure], as_json: bool = False) -> int:
    """Print the figures as a table, or as JSON; gives the exit status, 1 where a bar was missed."""
    if as_json:
        print(json.dumps({"title": title, "figures": [asdict(f) for f in figures]}, indent=2))
    else:
        print(f"## {title}")
        wide = max(len(f.name) for f in figures)
        for f in figures:
            bar = "      no bar" if f.bar is None else f"bar {f.bar:5.4g} {f.unit:2s}"
            verdict = "" if f.bar is None else "ok  " if f.ok else "OVER"
            print(f"{f.name:{wide}s}  {f.value:8.3f} {f.unit:2s}  {bar:12s}  {verdict:4s}  {f.said}".rstrip())
    return int(not all(f.ok for f in figures))


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A command line with the module's first sentence and `--json`."""
    out = argparse.ArgumentParser(description=(doc or "").strip().split("\n")[0])
    out.add_argument("--json", action="store_true", help="print figures as JSON")
    return out


def versions() -> str:
    """What the figures were measured with."""
    import diffusers
    import torch

    import ebbtide

    return (
        f"ebbtide {ebbtide.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, {torch.get_num_threads()} thread(s)"
    )


class Kept:
    """What long runs found, in a file from which the next goes on; without a file, in memory alone."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.found: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` finds, as JSON has it, or found under this name before."""
        if name not in self.found:
            self.found[name] = work()
            if self.file:
                self.file.write_text(json.dumps(self.found))
        return self.found[name]


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    turns: int,
    each: int = 5,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Median seconds of each run, of processor time, which on one thread is wall time less what other programs took.

    All take turns, so a machine that slows down slows all of them; in its turn each runs a few times, as a program does.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(turns):
        for name, run in runs.items():
            for _ in range(each):
                began = clock()
                run()
                taken[name].append(clock() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def peak() -> float:
    """The most memory this process has held so far, MB.

    Linux tells it for this program alone (VmHWM); elsewhere it may include what the parent held when it started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [v for v in status.read_text().splitlines() if v.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
