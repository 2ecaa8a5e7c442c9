"""What the tests of foreign networks share: an example run as a user runs it, MNIST, and a classifier of others' making."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="session")
def example(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Runs `python examples/NAME.py WEIGHTS [...]` once; gives what it named, and under "out" the file that it writes."""
    done: dict[str, dict[str, Any]] = {}

    def run(name: str, weights: str = "", *more: str) -> dict[str, Any]:
        if name not in done:
            out = tmp_path_factory.mktemp(name) / "digits.png"
            with pytest.MonkeyPatch.context() as patch:
                file = shared / "assets" / "models" / f"{weights or name}.safetensors"
                patch.setattr(sys, "argv", [name, str(file), *more, str(out)])
                done[name] = {**runpy.run_path(str(EXAMPLES / f"{name}.py")), "out": out}
        return done[name]

    return run


@pytest.fixture(scope="session")
def mnist(shared: Path) -> tuple[Tensor, Tensor]:
    """The first 500 test pictures (500, 1, 28, 28) in [-1, 1], and their labels."""
    with np.load(shared / "assets" / "data" / "mnist.npz") as data:
        x, y = torch.from_numpy(data["x_test"][:500]), torch.from_numpy(data["y_test"][:500])
    return x.float()[:, None] / 127.5 - 1, y.long()


@pytest.fixture(scope="session")
def judge(shared: Path) -> Callable[[Tensor], Tensor]:
    """clf_mnist: pictures in [-1, 1] to logits; 99% of MNIST's test pictures are read right."""
    from safetensors.torch import load_file

    w = load_file(shared / "assets" / "models" / "clf_mnist.safetensors")
    of = lambda name: (w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731

    def logits(x: Tensor) -> Tensor:
        x = ((x + 1) / 2 - 0.1307) / 0.3081
        for name in ("features.0", "features.3"):
            x = F.max_pool2d(F.conv2d(x, *of(name), padding=1).relu(), 2)
        return F.linear(F.linear(x.flatten(1), *of("classifier.0")).relu(), *of("classifier.2"))

    return logits
