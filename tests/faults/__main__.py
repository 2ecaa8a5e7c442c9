"""Plant every fault in a copy of the package, run the tests that should catch it, and write which one did.

    python -m tests.faults -o docs/faults.md        all of them; what the page's record holds already is not run again
    python -m tests.faults --only memory            those of a kind, or whose text says so

Exit code 1 where a fault was not caught.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.planted import FAULTS, Fault

ROOT = Path(__file__).parents[2]
HEAD = """# Planted faults

One edit each in a copy of the package, and the first test that failed. Written by `python -m tests.faults -o docs/faults.md`;
a fault that nothing catches is a hole in the suite.

| | what was planted | where | caught by |
|---|---|---|---|
"""


def edited(fault: Fault, source: str) -> str:
    """The source with the fault in it. Raises ValueError where what is edited does not stand there once."""
    if source.count(fault.good) != 1:
        raise ValueError(f"{fault.file} holds {fault.good!r} {source.count(fault.good)} times: {fault.what}")
    return source.replace(fault.good, fault.bad)


def caught(fault: Fault, copy: Path) -> str | None:
    """The first test that fails with the fault planted; None where all pass."""
    file = copy / "src" / "ebbtide" / fault.file
    whole = file.read_text(encoding="utf-8")
    file.write_text(edited(fault, whole), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-rfE",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        *shlex.split(fault.tests),
    ]
    try:
        ran = subprocess.run(words, cwd=copy, env=env, capture_output=True, text=True, timeout=600, check=False)
    finally:
        file.write_text(whole, encoding="utf-8")
    if ran.returncode not in (0, 1):
        raise RuntimeError(
            f"{fault.what}: pytest ended with {ran.returncode}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}"
        )
    if ran.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+::\S+)", ran.stdout, re.MULTILINE)
    if found is None:  # a file that cannot be imported catches nothing
        raise RuntimeError(f"{fault.what}: no test failed, but pytest did\n{ran.stdout[-2000:]}")
    return found.group(1)


def table(done: dict[str, str | None]) -> str:
    """The page."""
    rows = []
    for fault in FAULTS:
        if fault.what in done:
            test = done[fault.what]
            by = "**nothing**" if test is None else f"`{test.split('::')[-1].split('[')[0]}` in `{test.split('::')[0]}`"
            rows.append(f"| {fault.kind} | {fault.what} | `{fault.file}` | {by} |")
    return HEAD + "\n".join(rows) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Run the faults; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, help="the page, and beside it its record as .json")
    parser.add_argument("--only", default="", help="faults of this kind, or whose text holds this")
    parser.add_argument("--again", action="store_true", help="run those too that the record holds")
    given = parser.parse_args(words)
    record = None if given.out is None else given.out.with_suffix(".json")
    done: dict[str, str | None] = {}
    if record is not None and record.exists() and not given.again:
        done = json.loads(record.read_text(encoding="utf-8"))
    chosen = [f for f in FAULTS if given.only in (f.kind, "") or given.only in f.what]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("src", "tests", "docs", "bench", "examples"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "Makefile"):
            shutil.copy(ROOT / name, copy / name)
        for number, fault in enumerate(chosen, 1):
            if fault.what in done:
                continue
            began = time.monotonic()
            done[fault.what] = caught(fault, copy)
            print(
                f"{number}/{len(chosen)} {time.monotonic() - began:4.0f} s  {fault.what}: {done[fault.what]}",
                flush=True,
            )
            if record is not None:
                record.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    if given.out is not None:
        given.out.write_text(table(done), encoding="utf-8")
    missed = [f.what for f in chosen if done[f.what] is None]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} caught" + "".join(f"\nnot caught: {what}" for what in missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
