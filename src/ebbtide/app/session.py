"""One run of `ebb sample` from the request to the files: nothing that was computed is lost on the way.

batch by batch   a folder's pictures are written when their batch is done
now and then     the journal is saved beside the output, so that even a kill costs at most half a minute
Ctrl-C           finished samples are written, the journal is saved, and `ebb resume` ends in the same files
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ebbtide import api
from ebbtide.app import output, winners
from ebbtide.app.files import said
from ebbtide.app.options import Options
from ebbtide.app.progress import Pace, share
from ebbtide.app.request import Request, resolve
from ebbtide.app.screen import Screen
from ebbtide.app.stopping import Stop
from ebbtide.app.winners import Winner
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.core.state import Step
from ebbtide.core.tree import leaves, tree_map
from ebbtide.denoise.model import seeds_of
from ebbtide.journal import Journal
from ebbtide.samples import Samples

SAVE_EVERY = 30.0


@dataclass(frozen=True)
class Manner:
    """How a run behaves: what it writes besides the samples, what it shows."""

    frames: bool = False
    preview: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a run. `state` is the file to go on from where it was stopped; `code` the exit code.

    winners   the best of each request, where the plan steered by a reward
    """

    files: list[Path]
    samples: Samples | None
    calls: int
    seconds: float
    rate: float
    state: Path | None = None
    code: int = 0
    winners: list[Winner] = field(default_factory=list)


class Keeper:
    """What lies on the disk while a run goes on."""

    def __init__(self, request: Request, path: Path, frames: bool, journal: Journal) -> None:
        self.request, self.path, self.frames, self.journal = request, path, frames, journal
        self.state = output.state_of(path)
        self.folder = output.kind_of(path) == "folder"
        self.written: list[Path] = []
        self.batches = 0
        self.saved = time.monotonic()

    def look(self) -> None:
        """After a step: write what is finished, save the journal when the last time is long ago."""
        if self.folder and len(self.journal.batches) > self.batches:
            self._write_batches(self._part())
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def _write_batches(self, samples: Samples) -> None:
        sizes = [len(next(iter(leaves(x).values()))) for x in self.journal.batches]
        places = range(sum(sizes[: self.batches]), sum(sizes))
        self.written += output.write_each(samples, self.path, places)
        self.batches = len(sizes)

    def _part(self) -> Samples:
        """The finished batches as samples of their own."""
        r, n = self.request, self.journal.finished
        seeds = seeds_of(r.seed, r.n)
        cut = lambda v: v[:n] if isinstance(v, list) and len(v) == r.n else v  # noqa: E731
        cond = {k: cut(v) for k, v in r.cond.items()} if isinstance(r.cond, dict) else cut(r.cond)
        plan = api.record(r.model, r.plan, cond, n, cut(r.seed), r.batch, r.dtype, r.group)
        x = tree_map(lambda *v: torch.cat(v), *self.journal.batches)
        # names in a folder follow all seeds of the run, so the whole list goes with the first rows
        return Samples(x=x, model=r.model, plan=plan, seeds=seeds if self.folder else seeds[:n])

    def save(self) -> None:
        """Save the journal."""
        r = self.request
        device = None if r.device is None else str(r.device)
        about = {"plan": r.recorded.to_dict(), "output": self.path.name, "frames": self.frames, "device": device}
        self.journal.save(self.state, about)
        self.saved = time.monotonic()

    def stopped(self) -> Path | None:
        """Write what is finished and save the rest; gives the file to go on from, None where there is nothing yet."""
        if self.journal.batches and self.folder:
            self._write_batches(self._part())
        elif self.journal.batches and output.kind_of(self.path) != "frames":
            self.written += output.write(self._part(), self.path, overwrite=True)
        if self.journal.state is None:
            return None
        self.save()
        return self.state

    def finish(self, samples: Samples) -> list[Path]:
        """Write all that is not written yet; the journal is not needed any more."""
        if self.folder:
            self._write_batches(samples)
            self.written += output.write_beside(samples, self.path, self.frames)
        else:
            self.written = output.write(samples, self.path, overwrite=True, frames=self.frames)
        self.state.unlink(missing_ok=True)
        return self.written


def carry_out(request: Request, path: Path, manner: Manner, journal: Journal | None = None) -> Outcome:
    """Draw the samples and write them. The output must have been checked. Raises EbbError as `ebb.sample` does."""
    journal = journal or Journal()
    calls, seconds = journal.calls, journal.seconds
    model = request.model
    if manner.preview and model.medium not in ("image", "video", "text"):
        raise EbbError(f"a preview shows pictures or text, and {model.name} makes none; leave --preview out.")
    begun = 0.0
    if journal.state is not None:
        begun = len(journal.state) * share(journal.state) / request.n
    pace = Pace(request.n, journal.finished, journal.calls, begun)
    keeper = Keeper(request, path, manner.frames, journal)
    trace = output.traced(path, model.medium, manner.frames)
    seen = model.forming if model.medium == "text" else model.preview
    screen = Screen(model.name, pace, manner.preview, manner.quiet, model.medium, seen)
    with screen, Stop(screen.stopping) as stop:

        def watch(step: Step, places: list[int]) -> None:
            pace.add(step, places)
            screen.update(step)
            keeper.look()
            stop.check()

        try:
            samples = api.sample(**request.asked, trace=trace, watch=watch, journal=journal)
        except KeyboardInterrupt:
            state = keeper.stopped()
            rate = (journal.calls - calls) / max(1e-9, journal.seconds - seconds)
            return Outcome(keeper.written, None, journal.calls, journal.seconds, rate, state=state, code=stop.code)
        files = keeper.finish(samples)
        best = winners.of(samples)
        files += [winners.write(samples, best, path)] if best else []
    if screen.on and manner.preview and model.medium != "text":
        screen.console.print(screen.picture(samples.pixels))
    rate = (samples.calls - calls) / max(1e-9, samples.seconds - seconds)
    return Outcome(files, samples, samples.calls, samples.seconds, rate, code=1 if samples.failed else 0, winners=best)


def reopen(file: Path) -> tuple[Request, Path, Manner, Journal]:
    """An unfinished run from its file. Raises EbbError where the file is none, or its model is not the same any more."""
    about: dict[str, Any] = Journal.load(file)[1]
    if "output" not in about:
        raise EbbError(f"{said(file)} was saved from Python: go on with ebb.resume(model, plan, {str(file)!r}) there.")
    request = resolve(Options(device=about["device"]), Plan.from_dict(about["plan"]))
    if request.notes:
        raise EbbError(f"{said(file)} cannot be gone on from: {request.notes[0]}.")
    journal = Journal.load(file, request.device)[0]
    return replace(request, notes=[]), file.parent / about["output"], Manner(frames=about["frames"]), journal
