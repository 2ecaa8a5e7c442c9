"""Models small enough to sample in no time, under names that the command line knows, and a runner for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from ebbtide import zoo
from ebbtide.app.cli import app
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model
from ebbtide.process.flow import Flow

SIDE = 8


@dataclass
class Toy(Denoiser):
    """A mixture of three pictures, one a label, that can be made to stop the process or to answer NaN.

    at      call number -> what happens just before that call is answered
    spoilt  the label whose rows are not numbers below t = 0.5
    """

    at: dict[int, Callable[[], None]] = field(default_factory=dict)
    spoilt: int | None = None
    calls: int = 0

    def __post_init__(self) -> None:
        self.process = Flow()
        y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
        means = torch.stack([x, y, (2 * (x**2 + y**2) - 1).clamp(-1, 1)])[:, None]
        self.law = GaussianMixture(self.process, [1.0, 1.0, 1.0], means, 0.02, labels=[0, 1, 2])

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return self.law.null(name, leaf)

    def __call__(self, x: Any, t: Tensor, cond: dict[str, Any]) -> Pred:
        self.calls += 1
        self.at.get(self.calls, lambda: None)()
        pred = self.law(x, t, cond)
        if self.spoilt is None:
            return pred
        bad = (cond["label"] == self.spoilt) & (t < 0.5)
        return Pred(mean=torch.where(bad[:, None, None, None], torch.nan, pred.mean))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Toy:
    """The denoiser of the model `toy`; `points` is a model that makes no pictures. The test runs in an empty folder."""
    denoiser = Toy()
    points = GaussianMixture(Flow(), [1.0], [[0.0, 0.0]], 1.0)
    models = {
        "toy": Model("toy", denoiser, torch.zeros(1, SIDE, SIDE), labels=3, medium="image", digest="d1"),
        "points": Model("points", points, torch.zeros(2)),
    }
    monkeypatch.setattr(zoo, "names", lambda: sorted(models))
    monkeypatch.setattr(zoo, "load", lambda name, **_: models[name])
    monkeypatch.chdir(tmp_path)
    return denoiser


class Ran:
    """What a command left behind."""

    def __init__(self, result: Any) -> None:
        self.code: int = result.exit_code
        self.out: str = result.stdout
        self.err: str = result.stderr


@pytest.fixture
def run() -> Callable[..., Ran]:
    """Run a command line; by default it must succeed. An exception that is no exit is raised as it is."""

    def call(line: str, code: int = 0) -> Ran:
        import shlex

        result = CliRunner().invoke(app, shlex.split(line))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        ran = Ran(result)
        assert ran.code == code, (ran.code, ran.out, ran.err)
        return ran

    return call


@pytest.fixture
def refused(run: Callable[..., Ran]) -> Callable[[str, str], None]:
    """A command line that is bad input: one sentence that says `word`, code 2, and nothing on standard output."""

    def call(line: str, word: str) -> None:
        told = run(line, code=2)
        errors = [text for text in told.err.splitlines() if not text.startswith("note: ")]
        assert len(errors) == 1, told.err
        assert errors[0].startswith("error: ")
        assert word in errors[0]
        assert told.out == ""

    return call


def interrupt() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
