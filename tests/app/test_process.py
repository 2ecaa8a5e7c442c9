"""The command in a process of its own: cold starts, streams, signals."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EBB = [sys.executable, "-c", "from ebbtide.app.cli import main; main()"]
HEAVY = ("torch", "pydantic", "diffusers", "transformers", "numpy", "PIL", "safetensors")


def start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([*EBB, *args], cwd=cwd, stdout=pipe, stderr=pipe, text=True, env=environment)


def cost(args: list[str]) -> float:
    """Processor seconds of a command: what it takes on a machine that does nothing else."""
    spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # noqa: E731
    before = spent()
    subprocess.run(args, check=True, capture_output=True)
    return spent() - before


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['ebb', {!r}]\n"
        "from ebbtide.app.cli import main\n"
        "try:\n    main()\n"
        f"finally:\n    print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    for option in ("--help", "--version"):
        out = subprocess.run([sys.executable, "-c", code.format(option)], capture_output=True, text=True, check=True)
        assert out.stdout.splitlines()[-1] == "[]"
    assert min(cost([*EBB, "--help"]) for _ in range(3)) < 0.3


def test_threads_wait_without_spinning_unless_the_user_says_so() -> None:
    code = (
        "import sys, os\n"
        "sys.argv = ['ebb', '--version']\n"
        "from ebbtide.app.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(os.environ['OMP_WAIT_POLICY'])"
    )
    plain = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    for environment, policy in ((plain, "PASSIVE"), ({**plain, "OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert told.stdout.split()[-1] == policy


COMMANDS = ["sample", "resume", "list", "explain", "check", "train", "solvers", "grid", "plan", "plan show"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples(command: str) -> None:
    from typer.testing import CliRunner

    from ebbtide.app.cli import app

    told = CliRunner().invoke(app, [*command.split(), "--help"])
    assert told.exit_code == 0
    assert f"ebb {command}" in told.stdout


def test_usage_errors_leave_with_2(tmp_path: Path) -> None:
    for args in (["nothing"], ["sample", "--nothing"], ["sample", "digits", "-n", "many"]):
        process = start(*args, cwd=tmp_path)
        assert process.communicate()[0] == ""
        assert process.returncode == 2


def test_ctrl_c_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the shipped model; the files of the stopped run, finished here, are those of a whole run, byte by byte."""
    from typer.testing import CliRunner

    from ebbtide.app.cli import app

    monkeypatch.chdir(tmp_path)
    line = ["sample", "digits", "-n", "4", "--batch", "2", "--steps", "60", "--label", "1,8", "-o"]
    part = start(*line, "part", cwd=tmp_path)
    while not list(tmp_path.glob("part/seed-*.png")) and part.poll() is None:
        time.sleep(0.01)
    part.send_signal(signal.SIGINT)
    out, err = part.communicate(timeout=60)
    assert (part.returncode, out) == (130, ""), err
    assert err == "stopped. 2 files written. Go on with: ebb resume part.state.safetensors\n"
    for args in (["resume", "part.state.safetensors"], [*line, "whole"]):
        assert CliRunner().invoke(app, args).exit_code == 0
    names = {p.name for p in Path("whole").iterdir()}
    assert names == {"plan.yaml", *(f"seed-000{k}.png" for k in range(4))}
    assert {n: (Path("part") / n).read_bytes() for n in names} == {n: (Path("whole") / n).read_bytes() for n in names}
