"""The contract tests' own words at the end of a run."""

from __future__ import annotations

from typing import Any

import worlds


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name every exemption that a part declares."""
    exempt = [(worlds.title(e), c, why) for e in worlds.parts() for c, why in sorted(e.exempt.items())]
    terminalreporter.write_line(f"{len(exempt)} exemptions from contracts, in {len(worlds.parts())} parts")
    for part, contract, why in exempt:
        terminalreporter.write_line(f"  {part}: {contract} ({why})")
