"""Fixtures of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real weights and data beside a developer's checkout; tests that need it skip elsewhere."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not (path / "assets").is_dir():
        pytest.skip("needs the folder ../shared with real weights and data, which this clone does not have")
    return path
