"""What parts of `steer` share with a reward: its parameter, its trial before the run, its scores, and what is said of it.

    look ahead   x_u -> x0-hat:  L moves by eta = 0 to u (1 - 1/L), u (1 - 2/L) ... 0;  L = 1 is the posterior mean

Shapes   scores (B,) float64 on the CPU, NaN where nothing was said; a look ahead is shaped like x
Paper    Oshima et al. 2025 (arXiv 2501.19252), section 4.2, for the look ahead
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import Tensor

from ebbtide.core.key import Noise
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Process
from ebbtide.core.state import State
from ebbtide.core.tree import Tree, tree_map
from ebbtide.measure import rewards
from ebbtide.steer.particles import furthest


def _known(value: str | dict[str, Any]) -> str | dict[str, Any]:
    rewards.check(value)
    return value


Reward = Annotated[str | dict[str, Any], AfterValidator(_known)]
"""A name, "file.py:function", or a mapping with a "name" and parameters; see `measure.rewards`."""


def trial(reward: str | dict[str, Any], state: State, ask: Ask) -> None:
    """Ask a reward once, where a run begins. Raises EbbError for what it lacks and for scores of a wrong shape."""
    if bool(state.i.any()):
        return
    two = state.take(torch.arange(min(2, len(state))))
    blank = ask.pixels(tree_map(torch.zeros_like, two.x))
    rewards.trial(reward, rewards.Seen(blank, two.cond, ask.text))


def judged(reward: str | dict[str, Any], asking: Ask, x: Tree) -> rewards.Scores:
    """What a reward says of x, what is known of the elements of `asking.state`."""
    return rewards.scores(rewards.find(reward), rewards.Seen(asking.pixels(x), asking.state.cond, asking.text))


def look(asking: Ask, process: Process, steps: int, draws: Noise | None = None) -> Tree:
    """Where deterministic steps would bring the elements of `asking.state`; an element that is data is what it is.

    draws   of a process that draws in any case, as those on tokens do; by default those of the elements
    """
    state, draws = asking.state, asking.noise if draws is None else draws
    rows = (furthest(state.t) > 0).nonzero()[:, 0]
    pick = lambda v: v[rows.to(v.device)]  # noqa: E731
    x, start, cond = (tree_map(pick, v) for v in (state.x, state.t, state.cond))
    at = start
    for j in range(steps if len(rows) else 0):
        to = start * (steps - 1 - j) / steps
        pred = asking(x, at, role="look", of=rows)
        x = process.move(x, pred, at, to, 0.0, draws.fold(1 + j).take(rows), cond)
        at = to
    return tree_map(lambda new, old: old.index_copy(0, rows.to(old.device), new.to(old)), x, state.x)


def told(called: str, said: rewards.Scores) -> dict[str, int]:
    """The notes of a step on what could not be read."""
    return {f"{called}: {why}": count for why, count in said.unread.items()}


def remarks(called: str, reward: str | dict[str, Any], notes: Mapping[str, int], fate: str) -> list[str]:
    """The sentences at the end of a run on what could not be read; `fate` is what became of it."""
    name = reward if isinstance(reward, str) else reward["name"]
    said = {k.partition(": ")[2]: n for k, n in notes.items() if k.startswith(f"{called}: ")}
    return [f"the reward {name!r} {why}, {n} times; {fate}." for why, n in said.items() if why != "unsteered"]


def best(value: Tensor) -> Tensor:
    """Places by falling score, those without one last; equals keep their order."""
    return value.nan_to_num(-torch.inf, torch.inf, -torch.inf).argsort(descending=True, stable=True)
