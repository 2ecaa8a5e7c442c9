"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real weights and data beside a developer's checkout.

    Tests that need it skip in a clone without one; not in CI, which has it: there a missing folder is a failure.
    """
    path = Path(__file__).resolve().parents[2] / "shared"
    if (path / "assets").is_dir():
        return path
    reason = "needs the folder ../shared with real weights and data"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}: CI must not pass by skipping")
    pytest.skip(f"{reason}, which this clone does not have")
