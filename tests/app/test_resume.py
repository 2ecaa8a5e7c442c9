"""A run that is stopped loses nothing: `ebb resume` ends in the files of the run that was not."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ebbtide as ebb
from conftest import interrupt
from ebbtide import api, zoo
from ebbtide.app import session
from ebbtide.core.errors import EbbError
from ebbtide.journal import Journal

# Batches of 2, 2 and 1, each of six steps and so of eleven calls (Heun's last step takes one).
RUN = "sample toy -n 5 --batch 2 --solver heun --steps 6 --guidance 2 --grid karras --label 0,2"
CALLS = 33


def read(folder: Path, stem: str) -> dict[str, bytes]:
    found = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0].split(".")[0] == stem]
    return {str(p.relative_to(folder)).replace(stem, "X", 1): p.read_bytes() for p in found}


@pytest.mark.parametrize("output", ["{}.png", "{}.npz", "{}", "{}.gif", "{}.webp --frames", "{} --frames"])
@pytest.mark.parametrize("call", [1, 9, 11, 12, 20, CALLS])
def test_stopped_and_resumed_is_never_stopped(
    toy: Any, run: Callable[..., Any], output: str, call: int, tmp_path: Path
) -> None:
    run(f"{RUN} -o {output.format('whole')}")
    assert toy.calls == CALLS
    toy.calls, toy.at = 0, {call: interrupt}
    told = run(f"{RUN} -o {output.format('part')}", code=130)
    assert toy.calls < call + 3  # it stops at the end of the step
    done = max(0, call - 1) // 11 * 2 - (call == CALLS)
    if output == "{}" or output.startswith("{} "):
        assert len(list(Path("part").glob("seed-*.png"))) == (call - 1) // 11 * 2
    if output == "{}.npz" and done > 0:
        assert len(np.load("part.npz")["x"]) == (call - 1) // 11 * 2
    command = re.search(r"Go on with: ebb (resume .*)", told.err)
    assert command is not None
    toy.at = {}
    before = toy.calls
    run(command[1])
    assert toy.calls == CALLS if call != CALLS else toy.calls == before
    assert read(tmp_path, "part") == read(tmp_path, "whole")


def test_stopped_twice(toy: Any, run: Callable[..., Any], tmp_path: Path) -> None:
    run(f"{RUN} -o whole --frames")
    toy.calls, toy.at = 0, {5: interrupt, 17: interrupt, 30: interrupt}
    run(f"{RUN} -o part --frames", code=130)
    run("resume part.state.safetensors", code=130)
    run("resume part.state.safetensors", code=130)
    run("resume part.state.safetensors")
    assert read(tmp_path, "part") == read(tmp_path, "whole")


def test_a_terminated_run_is_kept_like_a_stopped_one(toy: Any, run: Callable[..., Any], tmp_path: Path) -> None:
    run(f"{RUN} -o whole.png")
    toy.calls, toy.at = 0, {15: lambda: signal.raise_signal(signal.SIGTERM)}
    run(f"{RUN} -o part.png", code=128 + signal.SIGTERM)
    run("resume part.state.safetensors")
    assert read(tmp_path, "part") == read(tmp_path, "whole")


def test_a_crash_costs_no_more_than_what_came_after_the_last_save(
    toy: Any, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(f"{RUN} -o whole")
    monkeypatch.setattr(session, "SAVE_EVERY", -1.0)  # after every step

    class Crash(BaseException):
        pass

    def crash() -> None:
        raise Crash

    toy.calls, toy.at = 0, {26: crash}
    with pytest.raises(Crash):
        run(f"{RUN} -o part")
    assert len(list(Path("part").glob("seed-*.png"))) == 4
    toy.at = {}
    run("resume part.state.safetensors")
    assert toy.calls == CALLS + 2  # the step it fell in, again
    assert read(tmp_path, "part") == read(tmp_path, "whole")


def test_an_unfinished_run_is_not_forgotten(toy: Any, run: Callable[..., Any]) -> None:
    toy.at = {9: interrupt}
    run(f"{RUN} -o part.png", code=130)
    assert "ebb resume part.state.safetensors" in run(f"{RUN} -o part.png", code=2).err
    run(f"{RUN} -o part.png --overwrite")
    assert not Path("part.state.safetensors").exists()


def test_failures_are_told_after_a_resume_too(toy: Any, run: Callable[..., Any]) -> None:
    toy.spoilt, toy.at = 2, {20: interrupt}
    run("sample toy -n 5 --batch 2 --steps 8 --label 0,2 -o part.npz", code=130)
    told = run("resume part.state.safetensors", code=1)
    assert [f"sample {k} (seed {k})" in told.err for k in range(5)] == [False, True, False, True, False]


def test_weights_that_changed_are_refused(toy: Any, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    toy.at = {9: interrupt}
    run(f"{RUN} -o part.png", code=130)
    other = dataclasses.replace(zoo.load("toy"), digest="d2")
    monkeypatch.setattr(zoo, "load", lambda name, **_: other)
    assert "weights differ" in run("resume part.state.safetensors", code=2).err
    assert Path("part.state.safetensors").exists()


def test_states_of_other_makes_are_refused(toy: Any, run: Callable[..., Any]) -> None:
    Path("text.safetensors").write_text("nothing of the kind")
    assert "cannot be read" in run("resume text.safetensors", code=2).err
    _, state = api.begin(zoo.load("toy"), ebb.Plan(), n=1)
    state.save("python.safetensors")
    assert "Python" in run("resume python.safetensors", code=2).err


def test_python_reads_what_the_command_line_left(toy: Any, run: Callable[..., Any]) -> None:
    """The batch under way, without those that are finished."""
    run(f"{RUN} -o whole.npz")
    toy.calls, toy.at = 0, {15: interrupt}
    run(f"{RUN} -o part.npz", code=130)
    plan = ebb.Plan.load("part.plan.yaml")
    last = list(ebb.resume(zoo.load("toy"), plan, "part.state.safetensors"))[-1]
    assert torch.equal(last.state.x, torch.from_numpy(np.load("whole.npz")["x"][2:4]))


def test_a_journal_keeps_everything_through_a_file(toy: Any, tmp_path: Path) -> None:
    model, plan = zoo.load("toy"), ebb.Plan(solve={"name": "euler", "eta": 1.0}, grid={"name": "linear", "steps": 7})

    def stop() -> None:
        raise KeyboardInterrupt

    whole = ebb.sample(model, plan, cond=1, n=25, batch=2, trace=True)
    toy.calls, toy.at = 0, {80: stop}  # beyond ten batches, whose names must not be sorted as text
    journal = Journal()
    with pytest.raises(KeyboardInterrupt):
        ebb.sample(model, plan, cond=1, n=25, batch=2, trace=True, journal=journal)
    assert journal.finished == 22
    journal.save(tmp_path / "j.safetensors", {"mine": 1})
    read, about = Journal.load(tmp_path / "j.safetensors")
    assert about == {"mine": 1}
    assert (read.calls, read.notes, read.finished, read.failed) == (journal.calls, journal.notes, 22, [])
    again = ebb.sample(model, plan, cond=1, n=25, batch=2, trace=True, journal=read)
    assert torch.equal(again.x, whole.x)
    assert all(torch.equal(a, b) for a, b in zip(again.trace, whole.trace, strict=True))
    assert again.calls == whole.calls
    with pytest.raises(EbbError, match="nothing to save"):
        Journal().save(tmp_path / "k.safetensors", {})
