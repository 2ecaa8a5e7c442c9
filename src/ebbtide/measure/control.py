"""A policy in a closed loop: at every tick it sees, makes a plan, and the first of its actions are done.

    tick 0   A = sample(first | seen)
    tick n   A = sample(later | seen, previous A),   then A_1 ... A_every are done

A loop is a fold like any run, so what counts, shows or stops it is a loop around this one. Worlds that are over are not planned
for any more. The draws of an element depend on its seed and on the tick alone, so a world is driven the same among others.

Shapes   A (n, H, actions), n the worlds that are not over; `every` <= H
Paper    Chi et al. 2023, "Diffusion policy" (arXiv 2303.04137), section 2.3; plans that go on from the last: Duan et al. 2025,
         "Real-time iteration scheme for diffusion policy" (2508.05396)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ebbtide.api import sample
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.denoise.model import Model

_APART = 1_000_003


class World(Protocol):
    """Several environments that take their steps together."""

    @property
    def over(self) -> Tensor:
        """Which of them have ended, (n,) bool."""

    def seen(self) -> dict[str, Tensor]:
        """The condition of a policy, n rows a leaf."""

    def act(self, actions: Tensor) -> None:
        """Do one action each, (n, A) as the policy gives them; those that are over stay as they are."""


class Tick(NamedTuple):
    """What the loop yields after each tick.

    number  of the tick, from 0
    plan    the actions planned, (n, H, A); rows of worlds that were over before are those they ended with
    calls   network evaluations in this tick, of each world
    """

    number: int
    plan: Tensor
    calls: Tensor


def drive(
    model: Model,
    world: World,
    first: Plan,
    later: Plan | None = None,
    *,
    seeds: Sequence[int],
    ticks: int,
    every: int = 1,
) -> Iterator[Tick]:
    """Act in `world` until all of it is over, at most `ticks` times.

    first, later   how the plan of tick 0 and those of all others are made; without `later` all are made alike
    seeds          one a world
    every          how many actions of a plan are done before the next is made; a warm start is to shift by as many

    Raises EbbError where a plan has fewer actions than are to be done.
    """
    n, chunk = len(seeds), torch.zeros(0)
    for tick in range(ticks):
        going = (~world.over).nonzero()[:, 0]
        if not len(going):
            return
        plan = first if later is None or not tick else later
        cond = {k: v[going] for k, v in world.seen().items()}
        if tick and plan.parts("start")[0].called != "prior":  # which would leave it to the network
            cond["previous"] = chunk[going]
        drawn = [(int(seeds[int(k)]) * _APART + tick) % 2**62 for k in going]
        out = sample(model, plan, cond=cond, n=len(going), seed=drawn)
        made = out.x
        assert isinstance(made, Tensor)
        if not tick:
            if every > made.shape[1]:
                raise EbbError(f"a plan of {made.shape[1]} actions cannot be followed for {every}: lower `every`.")
            chunk = made.new_zeros((n, *made.shape[1:]))
        chunk = chunk.index_copy(0, going, made)
        for k in range(every):
            world.act(chunk[:, k])
        calls = torch.zeros(n, dtype=torch.int64).index_fill(0, going, out.calls // len(going))
        yield Tick(tick, chunk, calls)
