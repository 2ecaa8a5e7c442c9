"""What can stand for a plan: a plan file, a picture that holds one, a preset, or the config of a diffusers scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.plan import Plan, presets
from ebbtide.interop import schedulers

STEPS = 20


class Read(NamedTuple):
    """A plan, what should be said about it, and whether it was laid for the number of steps that was asked for."""

    plan: Plan
    notes: tuple[str, ...] = ()
    laid: bool = False


def read_plan(source: str, steps: int | None = None) -> Read:
    """The plan of that name; a scheduler's config is laid for so many steps (20).

    Raises EbbError for what is neither a file nor a preset of the package or of a system, and for files that hold no plan.
    """
    config = schedulers.config_file(source)
    if config is not None:
        found = schedulers.read(config, STEPS if steps is None else steps)
        return Read(found.plan, found.notes, laid=True)
    if not Path(source).exists() and source not in presets():
        from ebbtide import systems

        known = systems.presets()
        if source in known:
            return Read(Plan.from_dict(known[source]))
        raise EbbError(f"{source} is neither a file nor a preset; {nearest(source, [*known, *presets()])}")
    return Read(Plan.load(source))
