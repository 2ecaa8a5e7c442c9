"""What a user waits for: the command line from a cold start, each command in a process of its own.

    python bench/cold.py [--data mnist.npz | --quick] [--repeats 3] [--json]

    ebb --help                                          bar  0.3 s    the median of some runs
    ebb sample digits -n 16                             bar  6 s      the median of some runs
    ebb sample --data mnist.npz -n 16 --steps 20        bar 60 s      one run
    the most memory that the last one holds             bar  2 GB     on Linux and macOS

Wall clock, with as many threads as the machine gives. "Cold" is a new process: files may be in the system's cache. The
data is that of `--data`; without one it is looked for beside the checkout, and else that line is left out, and said so.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "assets" / "data" / "mnist.npz"


def ebb(*words: str) -> tuple[float, float]:
    """Seconds of one command, and the most memory it held in GB (nan where the system does not tell)."""
    command = [str(Path(sys.executable).with_name("ebb")), *words]
    began = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    said = child.stderr.read().decode(errors="replace")
    if not hasattr(os, "wait4"):
        child.wait()
        held = float("nan")
    else:
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        held = used.ru_maxrss / (1024**3 if sys.platform == "darwin" else 1024**2)
    seconds = time.perf_counter() - began
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {child.returncode}:\n{said[-2000:]}")
    return seconds, held


def several(name: str, bar: float, commands: list[list[str]]) -> figures.Figure:
    """The median time of some commands."""
    taken = [ebb(*words)[0] for words in commands]
    return figures.Figure(name, statistics.median(taken), bar, "s", f"{min(taken):.2f} to {max(taken):.2f} s")


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("--data", type=Path, default=BESIDE if BESIDE.exists() else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="leave out the data set")
    given = parser.parse_args()
    given.data = None if given.quick else given.data
    with tempfile.TemporaryDirectory() as folder:
        digits = [["sample", "digits", "-n", "16", "-o", f"{folder}/{k}.png"] for k in range(given.repeats)]
        found = [
            several("ebb --help", 0.3, [["--help"]] * given.repeats),
            several("ebb sample digits -n 16", 6, digits),
        ]
        if given.data is not None:
            words = ["sample", "--data", str(given.data), "-n", "16", "--steps", "20", "-o", f"{folder}/data.png"]
            seconds, held = ebb(*words)
            name = f"ebb sample --data {given.data.name} -n 16 --steps 20"
            found.append(figures.Figure(name, seconds, 60, "s"))
            if held == held:
                found.append(figures.Figure("  its memory", held, 2, "GB"))
    status = figures.report(f"From a cold start ({figures.versions()})", found, given.json)
    if given.data is None and not given.quick:
        print("no data set: give --data mnist.npz to measure `ebb sample --data`")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
