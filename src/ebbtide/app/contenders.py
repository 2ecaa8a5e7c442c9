"""What `ebb eval` compares: plans, each a file, a preset, a scheduler's config, or a solver and its grid as they are typed.

--plan fast.yaml          a plan file, or a picture that holds one
--plan dpmpp-2m           this solver, on even times
--plan "heun on karras"   this solver on this grid, as `ebb solvers` names them; PART:param=value too
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ebbtide.app.options import Options
from ebbtide.app.reading import Read, read_plan
from ebbtide.app.request import plan_of
from ebbtide.core import registry
from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.plan import Plan, presets
from ebbtide.interop import samplers, schedulers


@dataclass(frozen=True)
class Contender:
    """A plan under the name that the table gives it; `words` are the options with which `ebb sample` runs it."""

    name: str
    plan: Plan
    words: tuple[str, ...]


def contenders(
    texts: Sequence[str], steps: Sequence[int | None], o: Options, process: Any = None
) -> tuple[list[Contender], list[str]]:
    """The plans, each at every number of steps, and what should be said about them.

    o         the options that are laid over each plan
    process   of the model, for which other libraries' grids are laid

    Raises EbbError for what names no plan, and for a plan that cannot have so many steps.
    """
    found: list[Contender] = []
    notes: list[str] = []
    several = len(set(steps)) > 1
    for text in texts:
        for count in steps:
            one, said = _contender(text, count, o, process)
            notes += [n for n in said if n not in notes]
            if any(one.plan == other.plan for other in found):
                notes.append(f"{one.name} is the plan of {next(c.name for c in found if c.plan == one.plan)} again")
                continue
            name = f"{one.name}, {count} steps" if several else one.name
            same = sum(c.name == name for c in found)
            found.append(replace(one, name=f"{name} ({same + 1})" if same else name))
    return found, notes


def _contender(text: str, steps: int | None, o: Options, process: Any) -> tuple[Contender, list[str]]:
    over = replace(o, steps=steps)
    words = ["--steps", str(steps)] if steps is not None else []
    if is_file(text):
        read = read_plan(text, steps)
        name = Path(text).name.removesuffix(".yaml").removesuffix(".plan") if Path(text).exists() else text
        words = ["--plan", text, *words]
    else:
        solver, _, grid = (part.strip() for part in text.partition(" on "))
        _check_solver(text, solver)
        over = replace(over, solver=solver, grid=grid or o.grid)
        read, name = Read(Plan()), text
        words = ["--solver", solver, *(["--grid", grid] if grid else []), *words]
    read = read._replace(plan=read.plan.replace(run=None))
    made = plan_of(over, read, process)
    for flag, value in (("guidance", o.guidance), ("eta", o.eta), ("process", o.process)):
        words += [] if value is None else [f"--{flag}", f"{value:g}" if isinstance(value, float) else value]
    for value in o.sets or ():
        words += ["--set", value]
    return Contender(name, made.plan, tuple(words)), list(made.notes)


def is_file(text: str) -> bool:
    """Whether this is a plan, rather than the name of a solver."""
    from ebbtide import systems

    named = text in presets() or text in systems.presets()
    return named or schedulers.config_file(text) is not None or Path(text).exists()


def _check_solver(text: str, solver: str) -> None:
    name = solver.partition(":")[0]
    known = samplers.named(solver)[0]
    if name in registry.names("solve") or known in samplers.SAMPLERS or known in samplers.UNSUPPORTED:
        return
    from ebbtide import systems

    near = nearest(name, [*registry.names("solve"), *systems.presets(), *presets()])
    raise EbbError(f"--plan {text} is neither a file, a preset nor a solver; {near}")
