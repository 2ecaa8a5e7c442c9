"""Beam search: each beam has children that share its one call, the reward looks a little ahead of them, the best go on.

    mu, sigma of the step from t to u     one call a beam
    x_k = mu + sigma eps_k                K children of each, by the solver's own noise
    r_k = reward(x0-hat of x_k)           L deterministic steps on an even grid from u to 0; L = 1 is the posterior mean
    of a request's B K children the best B go on, best first

The B elements of a request (its `group`) are its beams: alone it is greedy search. Where looking ahead draws, as it does on
tokens, all children of a request look with the same draws, else those would drown what sets them apart. Where beams land
each keeps the best of its own children, as where nothing is drawn any more those are all alike; a request ends in B
different samples. Children that score the same go by their number, so that beams stay apart: a reward that says nothing
chooses nothing.

Shapes   x (B, ...), any units. No memory. Calls of a step: B + B K L in place of B, and no more than B where it lands.
Paper    Oshima et al. 2025, "Inference-time text-to-video alignment with diffusion latent beam search" (arXiv 2501.19252),
         algorithm 1
Off      children = 1 is the plan without it, bit for bit.
Differs  beams begin from noises of their own; `first` and `last` are times, and outside them each beam has one child. Solvers
         that call more than once a step make their other calls for every child.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.key import Noise
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Process, Steer
from ebbtide.core.registry import part
from ebbtide.core.state import Pred, State, Step
from ebbtide.core.tree import Memory
from ebbtide.steer import judge
from ebbtide.steer.particles import furthest, requests

Time = Annotated[float, Field(ge=0, le=1)]


@part("steer", "dlbs", paper="2501.19252", needs={"stochastic"}, off={"children": 1})
class Beams(Steer):
    """Beam search: each beam has children that share its one call, the reward looks a little ahead of them, the best go on.

    reward     a name, "file.py:function", or a mapping with a "name" and parameters; see `measure.rewards`
    children   K, of each beam
    lookahead  L, deterministic steps to what is judged
    first, last   the times between which beams have children
    """

    examples = ({"reward": "mean"}, {"reward": "mean", "lookahead": 2, "children": 3})
    reward: judge.Reward
    children: Annotated[int, Field(ge=1)] = 2
    lookahead: Annotated[int, Field(ge=1)] = 6
    first: Time = 1.0
    last: Time = 0.0

    def init(self, state: State, ask: Ask) -> Memory:
        if self.on:
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
        t = furthest(state.t)
        moving = (ask(state).ahead(1) != state.t).reshape(len(state), -1).any(1)
        parents = moving & (t <= self.first) & (t >= self.last)
        if not self.on or not bool(parents.any()):
            return advance(state)
        state, pred, asking = _asked(state, moving, ask)
        index = torch.arange(len(state)).repeat_interleave(torch.where(parents, self.children, 1))
        grown = advance(state.take(index), given=pred.map(lambda v: v[index.to(v.device)]))

        rows = parents[index].nonzero()[:, 0]
        seen = ask(grown.state.take(rows))
        said = judge.judged(self.reward, seen, judge.look(seen, process, self.lookahead, _common(seen)))
        chosen = _chosen(index, rows, said.value, state.group, furthest(seen.state.t) == 0)
        pick = lambda v: v[chosen.to(v.device)]  # noqa: E731
        notes = {
            **(Counter(asking.notes) + Counter(grown.info)),
            **judge.told(self.called, said),
            self.called: len(rows),
        }
        return Step(
            grown.state.take(chosen),
            None if grown.pred is None else grown.pred.map(pick),
            asking.calls + grown.calls + seen.calls,
            None if grown.accepted is None else pick(grown.accepted),
            notes,
        )

    def remarks(self, notes: Mapping[str, int]) -> list[str]:
        return judge.remarks(self.called, self.reward, notes, "those children gave way to others")


def _asked(state: State, moving: Tensor, ask: Callable[[State], Ask]) -> tuple[State, Pred, Ask]:
    """The predictions at the points of elements that move, and the state in which the layers remember having made them."""
    rows = moving.nonzero()[:, 0]
    some = state if len(rows) == len(state) else state.take(rows)
    asking = ask(some)
    pred = asking(some.x, some.t)
    told = {k: v for k, v in asking.memory.items() if v}
    some = replace(some, memory={**some.memory, **told})
    if len(rows) == len(state):
        return some, pred, asking
    whole = pred.map(lambda v: v.new_zeros((len(state), *v.shape[1:])).index_copy(0, rows.to(v.device), v))
    return state.put(rows, some), whole, asking


def _common(seen: Ask) -> Noise:
    """The draws of the first child of a request, for all of them: where looking ahead draws, scores differ by children."""
    group = seen.state.group
    return seen.noise.take((group[:, None] == group).double().argmax(1))


def _chosen(index: Tensor, rows: Tensor, score: Tensor, group: Tensor, landed: Tensor) -> Tensor:
    """Who goes on: for each element, the place of a child of its request; `rows` are the places that were judged."""
    chosen = torch.zeros(len(group), dtype=torch.int64)
    chosen[index] = torch.arange(len(index))  # one that had no children is its own
    count = torch.arange(len(index)) - torch.searchsorted(index, index)  # which child of its parent a place is
    for own in requests(group[index[rows]]):
        own = own[count[rows[own]].argsort(stable=True)]  # first children first, so that equals are of other beams
        order = own[judge.best(score[own])]
        parent = index[rows[order]]
        beams = parent.unique()
        if bool(landed[own].all()):
            firsts = [int((parent == b).nonzero()[0, 0]) for b in beams]
            order = order[sorted(firsts)]
        chosen[beams] = rows[order[: len(beams)]]
    return chosen
