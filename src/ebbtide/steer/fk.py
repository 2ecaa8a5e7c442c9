"""FK steering: particles of a request are resampled on the way, by how promising what is foreseen of each looks.

    r_t = g reward(x0-hat of x_t),  of the sample itself where it has landed;   g the strength
    G_t = exp(r_t - r_before)   diff      exp(max r)   max      exp(sum r)   add      exp(r_t)   rt
    at the landing of the last three    G = exp(r) / (product of the G before)
    parents ~ weights / sum of weights,   weights = those carried * G

So the product of potentials along a whole lineage is exp(r(x_0)), and the particles of a group tend to the tilted
law p(x_0) exp(r(x_0)) as they become many. All rewards are less `floor`.

Elements compete inside their group. They are resampled where the effective number of particles, (sum w)^2 / sum w^2, is
below `ess` of them, and always where they land; else their weights are carried on. x0-hat is what one step to the data
would give: the mean of numbers, and of tokens a completion drawn from the logits.

Shapes   x (B, ...), any units. Memory, (B,) float64: reward, the statistic less `floor`; product and carried, logarithms.
         No call but those of the plan.
Paper    Singhal et al. 2025, "A general framework for inference-time scaling and steering of diffusion models" (arXiv
         2501.06848)
Off      strength = 0 is the plan without it, bit for bit.
Differs  weights are kept as logarithms, so they need no bounds. diff carries its weights too where it does not resample (the
         released code forgets them). At the landing max and add weigh by the reward of the sample itself, which
         is what makes the product the tilt; the code takes their statistic. `every` counts steps, `first` and `last` are times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Process, Steer
from ebbtide.core.registry import part
from ebbtide.core.state import State, Step
from ebbtide.core.tree import Memory, tree_map
from ebbtide.steer import judge
from ebbtide.steer.particles import arrived, effective, first_of, foreseen, furthest, parents, requests

KEPT = ("reward", "product", "carried")
Time = Annotated[float, Field(ge=0, le=1)]


@part("steer", "fk-steering", paper="2501.06848", needs={"stochastic"}, off={"strength": 0.0})
class FKSteering(Steer):
    """FK steering: particles of a request are resampled on the way, by how promising what is foreseen of each looks.

    reward       a name, "file.py:function", or a mapping with a "name" and parameters; see `measure.rewards`
    strength        how far the law is tilted towards it
    every        resample after every so many steps, at times from `first` down to `last`, and where elements land
    ess          resample where the effective share of particles is below this; 1 always does
    floor        the reward of a lineage of which nothing is known yet
    """

    examples = (
        {"reward": "mean", "ess": 1.0},
        {"reward": {"name": "mean"}, "ess": 1.0, "potential": "max", "every": 2},
    )
    reward: judge.Reward
    strength: Annotated[float, Field(ge=0)] = 10.0
    potential: Literal["diff", "max", "add", "rt"] = "diff"
    every: Annotated[int, Field(ge=1)] = 1
    first: Time = 1.0
    last: Time = 0.0
    ess: Annotated[float, Field(gt=0, le=1)] = 0.5
    floor: float = 0.0

    def init(self, state: State, ask: Ask) -> Memory:
        if self.on:
            if not bool(state.i.any()) and len(requests(state.group)) == len(state):
                raise EbbError(
                    f"steer {self.called!r} lets the samples of a request compete, and here each request is one "
                    "sample: say how many belong together, such as group=4 (--group 4)."
                )
            judge.trial(self.reward, state, ask)
        return {}

    def step(
        self,
        state: State,
        memory: Memory,
        advance: Callable[..., Step],
        ask: Callable[[State], Ask],
        process: Process,
    ) -> Step:
        step = advance(state)
        moved, landed = arrived(state, step.state)
        rows = (moved & (landed | self._chance(step.state))).nonzero()[:, 0]
        if not self.on or step.pred is None or not len(rows):
            return step
        pick = lambda v: v[rows.to(v.device)]  # noqa: E731
        asking, landed = ask(state.take(rows)), landed[rows]
        x = foreseen(asking, step.pred.map(pick), tree_map(pick, step.state.x), landed, process)
        said = judge.judged(self.reward, asking, x)

        held = {k: memory.get(k, torch.zeros(len(state), dtype=torch.float64)) for k in KEPT}
        mine = self._weigh({k: v[rows] for k, v in held.items()}, said.value - self.floor, landed)
        parent, unsteered = self._resample(asking, mine["carried"], held["carried"][rows], landed)
        kept = {k: v.index_copy(0, rows, mine[k]) for k, v in held.items()}
        notes = {**step.info, self.called: len(rows) - unsteered, **judge.told(self.called, said)}
        notes |= {f"{self.called}: unsteered": unsteered} if unsteered else {}
        return _descend(step._replace(state=step.state.remember("steer", kept), info=notes), rows, parent)

    def _chance(self, after: State) -> Tensor:
        """Whether this is a step after which particles may compete, (B,)."""
        count, t = furthest(after.i), furthest(after.t)
        return (count % self.every == 0) & (t <= self.first) & (t >= self.last)

    def _weigh(self, held: Memory, r: Tensor, landed: Tensor) -> Memory:
        """The memory after rewards r (NaN: none), with the weights before anyone competes in `carried`."""
        lost, before = r.isnan(), held["reward"]
        stat = {"max": torch.maximum(before, r), "add": before + r}.get(self.potential, r)
        if self.potential == "diff":
            log = self.strength * (r - before)
        else:
            log = torch.where(landed, self.strength * r - held["product"], self.strength * stat)
        return {
            "reward": torch.where(lost, before, stat),
            "product": held["product"] + torch.where(lost, 0.0, log),
            "carried": held["carried"] + torch.where(lost, -torch.inf, log),
        }

    def _resample(self, ask: Ask, weights: Tensor, before: Tensor, landed: Tensor) -> tuple[Tensor, int]:
        """The parent of each row, and how many rows no reward could be read of in their whole group.

        `weights` become those that are carried on: of a group without rewards, what they were.
        """
        lots = first_of(ask.noise.fold(1).uniform(ask.state.key.shape))
        parent, unsteered = torch.arange(len(weights)), 0
        for own in requests(ask.state.group):
            w = weights[own]
            read = w.isfinite()
            if not bool(read.any()):
                weights[own] = before[own]
                unsteered += len(own)
            elif bool((landed[own] | ~read).any()) or effective(w) < self.ess * len(own):
                parent[own] = own[parents(w, lots[own])]
                weights[own] = 0.0
            else:
                weights[own] = w - w.max()
        return parent, unsteered

    def remarks(self, notes: Mapping[str, int]) -> list[str]:
        unsteered = notes.get(f"{self.called}: unsteered", 0)
        out = judge.remarks(self.called, self.reward, notes, "those particles gave way to others")
        if unsteered:
            out.append(
                f"no reward could be read of whole groups, {unsteered} particles in all: they went on unsteered."
            )
        return out


def _descend(step: Step, rows: Tensor, parent: Tensor) -> Step:
    """The step with some of its rows replaced by others of them."""
    if torch.equal(parent, torch.arange(len(parent))):
        return step
    index = torch.arange(len(step.state)).index_copy(0, rows, rows[parent])
    pred = None if step.pred is None else step.pred.map(lambda v: v[index.to(v.device)])
    return step._replace(state=step.state.take(index), pred=pred)
