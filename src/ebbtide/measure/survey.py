"""Which plans a comparison of solvers and grids is made of, and what they cost: all that stands before the first real call.

Calls are counted by a dry run on a denoiser that says nothing, so guidance counts twice and a grid what it really asks. Every
plan gets the most steps whose count stays within the budget.

Differs  solvers that draw noise are listed apart, having no path to stay on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ebbtide import api
from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser, Process
from ebbtide.core.plan import Plan
from ebbtide.core.state import Pred, Step
from ebbtide.core.tree import Tree, leaves, tree_map
from ebbtide.denoise.model import Model
from ebbtide.process.affine import Affine

_PROBE = 8  # steps of the dry runs that see whether parts fit

Watch = Callable[[Step], None]
Spec = Mapping[str, Any]


# -------------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class Pair:
    """A solver on a grid; the number of steps is chosen for each budget."""

    solve: Spec
    grid: Spec

    @property
    def name(self) -> str:
        """heun on karras, deis:order=3 on log-snr."""
        return f"{called(self.solve)} on {called(self.grid)}"

    def plan(self, base: Plan, steps: int) -> Plan:
        """The base plan with this solver, and this grid at so many steps."""
        return base.replace(solve=self.solve, grid={**self.grid, "steps": steps})


def called(spec: Spec) -> str:
    """A spec as people write it: its name, and after colons the parameters that are given."""
    return ":".join([spec["name"], *(f"{k}={v}" for k, v in spec.items() if k != "name")])


@dataclass(frozen=True)
class Survey:
    """Which pairs there are for a model.

    pairs   every deterministic solver on every grid that can be given a number of steps
    drawn   solvers that fit but draw noise
    left    what was left out, and why
    """

    pairs: list[Pair]
    drawn: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Setting:
    """What all runs of a comparison share; `base` gives process and guides, its solver and grid are replaced.

    Raises EbbError where a model has no flow to stay on: one that decides tokens or draws at every step.
    """

    model: Model
    base: Plan = field(default_factory=Plan)
    cond: Any = None
    n: int = 16
    seed: int | Sequence[int] = 0
    device: str | torch.device | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.process, Affine):
            raise EbbError(
                f"{self.model.name} has no flow that a finer run would follow, as its process draws at every step: "
                "compare its samples by their law, with ebbtide.measure.metrics on `ebb sample -n 1000 -o a.npz`."
            )

    @cached_property
    def process(self) -> Process:
        """The process sampled in."""
        own: Process = self.model.process if self.base.process is None else self.base.parts("process")[0]
        return own

    def run(self, plan: Plan, watch: Watch | None = None) -> tuple[Tensor, float]:
        """The samples of a plan, float64 on the CPU, and the calls that each of them cost."""
        loop, state = api.begin(self.model, plan, self.cond, self.n, self.seed, self.device, self.dtype)
        calls = 0
        for step in loop.run(state):
            state, calls = step.state, calls + step.calls
            if watch is not None:
                watch(step)
        x: Tensor = state.x
        return x.detach().double().cpu(), calls / self.n

    def count(self, plan: Plan) -> float:
        """The calls of one sample, by a dry run on a denoiser that says nothing. Raises EbbError where parts do not fit."""
        loop, state = api.begin(self._silent, plan, self._first, 1)
        return float(sum(step.calls for step in loop.run(state)))

    @cached_property
    def _silent(self) -> Model:
        if self.base.network:  # patches need the network that they change
            return self.model
        return replace(self.model, denoiser=_Silent(self.model.denoiser))

    @cached_property
    def _first(self) -> dict[str, Tree]:
        conds: dict[str, Tree] = tree_map(lambda v: v[:1], self.model.condition(self.cond, self.n))
        return conds


@dataclass(eq=False)
class _Silent(Denoiser):
    """A denoiser that answers zero at once, for counting calls."""

    of: Denoiser

    def __post_init__(self) -> None:
        self.process = self.of.process

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return self.of.null(name, leaf)

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        return Pred(mean=torch.zeros_like(x))


# -------------------------------------------------------------------- which pairs


def survey(setting: Setting, solvers: Sequence[Spec] | None = None, grids: Sequence[Spec] | None = None) -> Survey:
    """The pairs that fit, of these solvers and grids, or of all that are registered at their defaults.

    Grids that lay the same times for this model are taken once. Raises EbbError for a part that was asked for and is
    unknown, does not fit, draws noise, or takes no number of steps.
    """
    setting.count(setting.base.replace(solve="euler", grid={"name": "linear", "steps": 1}))  # the base itself fits
    left: dict[str, str] = {}
    fitting: list[Spec] = []
    noisy: list[str] = []
    laid: list[tuple[Spec, dict[str, Tensor]]] = []
    for spec in _registered("grid") if grids is None else grids:
        try:
            if "steps" not in registry.find("grid", spec["name"]).cls.__pydantic_fields__:  # type: ignore[attr-defined]
                raise EbbError(f"grid {spec['name']!r} takes no number of steps, so it cannot be held to a budget.")
            plan = Pair({"name": "euler"}, spec).plan(setting.base, _PROBE)
            _, state = api.begin(setting._silent, plan, setting._first, 1)
            times = leaves(state.memory["grid"])
            same = [s for s, other in laid if _equal(times, other)]
            if same and grids is None:
                left[f"grid {called(spec)}"] = f"lays the times of {called(same[0])} for this model"
            else:
                laid.append((spec, times))
        except EbbError as error:
            if grids is not None:
                raise
            left[f"grid {called(spec)}"] = str(error)
    for spec in _registered("solve") if solvers is None else solvers:
        try:
            drawn = registry.make("solve", spec).stochastic
            if drawn and solvers is not None:
                raise EbbError(
                    f"solver {spec['name']!r} draws noise at every step, so it has no path to be compared with: "
                    "compare its samples by their law, with ebbtide.measure.metrics."
                )
            setting.count(Pair(spec, laid[0][0]).plan(setting.base, _PROBE))
            if drawn:
                noisy.append(called(spec))
            else:
                fitting.append(spec)
        except EbbError as error:
            if solvers is not None:
                raise
            left[f"solve {called(spec)}"] = str(error)
    pairs = [Pair(solve, grid) for solve in fitting for grid, _ in laid]
    return Survey(pairs, noisy, left)


def _registered(slot: str) -> list[Spec]:
    """All parts of a slot, the one that a plan has by default first."""
    usual = getattr(Plan(), slot)["name"]
    return [{"name": name} for name in sorted(registry.names(slot), key=lambda name: (name != usual, name))]


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two grids lay the same times: the same points, and no unit that waits."""
    if "points" not in a or "points" not in b or a["points"].shape != b["points"].shape:
        return False
    waits = any(bool(m[k].any()) for m in (a, b) for k in m if k != "points")
    return not waits and bool(torch.allclose(a["points"], b["points"], rtol=1e-9, atol=1e-12))


def steps_within(setting: Setting, pair: Pair, budget: int) -> tuple[int, float] | None:
    """The most steps whose calls stay within the budget, and those calls; None where one step costs more."""

    def count(steps: int) -> float:
        try:
            return setting.count(pair.plan(setting.base, steps))
        except EbbError:  # a grid or a solver that is not made for so few steps, or so many
            return math.inf

    per = registry.make("solve", pair.solve).calls * math.prod(g.calls for g in setting.base.parts("guide"))
    steps = max(1, int(budget / max(per, 0.25)))
    calls = count(steps)
    while calls > budget and steps > 1:
        steps = min(steps - 1, max(1, int(steps * budget / calls)))
        calls = count(steps)
    if calls > budget:
        return None
    while steps < 4 * budget:
        more = count(steps + 1)
        if more > budget:
            break
        steps, calls = steps + 1, more
    return steps, calls
