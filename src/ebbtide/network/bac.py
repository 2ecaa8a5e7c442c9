"""BAC: every attention and feed-forward of a transformer recomputed at the few steps that suit it best.

    b_k          what a unit gave at step k of a recorded run; a unit is one attention or one feed-forward
    phi(i, j)    = sum_{k=i+1}^{j-1} cos(b_{k-1}, b_k)         how well the update at i serves the steps before j
    C            the M steps, 0 first, with the largest sum of phi: by dynamic programming
    bubbling     the `upstream` units of largest mean |b_t - b_u|_1 also recompute wherever a feed-forward after them does,
                 the deep ones first, so that no feed-forward is refreshed on stale inputs

At a step a unit is computed where its schedule says so; elsewhere it adds to the stream what it gave last.

Shapes   b (B, L, D), by element, tag and role. schedule {unit: steps}; a unit that it does not name is always computed, and
         all are at steps beyond the last that it was made for
Paper    Ji et al. 2025 (arXiv 2506.13456), sections 3.2 and 3.3
Off      enabled = false; a budget of all steps is the network itself too.
Differs  `served` takes the cosine of each step to the update that serves it, the sum of which is what reuse costs, where the
         paper adds those of neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.registry import part
from ebbtide.network.anatomy import Anatomy, Site, anatomy, passing
from ebbtide.network.patch import Patch, Rows, keeping, rewired
from ebbtide.network.record import Record

ALL = -1


class Units(NamedTuple):
    """The units of a network, and which of them are computed at each step."""

    sites: tuple[Site, ...]
    due: tuple[frozenset[str], ...]


@part("network", "bac", paper="2506.13456", needs={"module"}, refuses={"gradients"}, off={"enabled": False})
class BAC(Patch):
    """BAC: every attention and feed-forward of a transformer recomputed at the few steps that suit it best."""

    examples = ({"schedule": {"transformer_blocks.0.attn1": [0, 2], "transformer_blocks.1.ff": [0, 3]}, "steps": 4},)

    schedule: dict[str, list[int]] = Field(default_factory=dict)
    steps: Annotated[int, Field(ge=0)] = 0
    budget: Annotated[int, Field(ge=1)] = 10
    upstream: Annotated[int, Field(ge=0)] = 5
    served: bool = False
    enabled: bool = True

    def look(self, network: nn.Module) -> Units:
        sites = units(anatomy(network))
        if not self.schedule or not self.steps:
            raise EbbError("'bac' needs a schedule for this model: plan = ebb.calibrate(model, plan).")
        names = [s.path for s in sites]
        for name in self.schedule:
            if name not in names:
                raise EbbError(f"'bac' knows no unit {name!r} of this network; {nearest(name, names)}")
        chosen = [self.schedule.get(name, range(self.steps)) for name in names]
        due = [frozenset(n for n, c in zip(names, chosen, strict=True) if k in c) for k in range(self.steps)]
        return Units(sites, tuple(due))

    def claims(self, seen: Units) -> Iterable[nn.Module]:
        return (s.module for s in seen.sites)

    def mode(self, seen: Units, rows: Rows) -> Tensor:
        """The first step at which the same units are due; all of them where nothing is kept."""
        kinds = torch.tensor([seen.due.index(due) for due in seen.due])
        stored, last = rows.load("stored"), len(kinds) - 1
        known = torch.zeros(len(rows), dtype=torch.bool) if stored is None else stored > 0
        return torch.where(known & (rows.i <= last), kinds[rows.i.clamp(max=last)], ALL)

    @contextmanager
    def enter(self, seen: Units, rows: Rows) -> Iterator[None]:
        rows.save("stored", torch.ones(len(rows)))
        with ExitStack() as stack:
            for site in seen.sites:
                if rows.mode == ALL or site.path in seen.due[rows.mode]:
                    stack.enter_context(rewired(site.module, keeping(rows, site)))
                    continue
                rows.note()
                for _, module in site.before:
                    stack.enter_context(rewired(module, passing))
                kept = rows.kept(site.path)
                stack.enter_context(rewired(site.module, lambda *a, kept=kept, **k: kept))
            yield

    def calibrated(self, record: Record) -> BAC:
        """The part with the schedule of a recorded run."""
        network = record.network
        sites = units(anatomy(network))
        outputs = gathered(record, network, sites)
        chosen = {k: best(affinity(v, self.served), self.budget) for k, v in outputs.items()}
        chosen = bubbled(sites, chosen, {k: volatility(v) for k, v in outputs.items()}, self.upstream)
        return replace(self, schedule=chosen, steps=record.steps)


def units(net: Anatomy) -> tuple[Site, ...]:
    """Every attention and feed-forward, in the order of their answers."""
    net.need("attention", "feed_forward")
    return tuple(s for block in net.blocks for s in block.sites)


def gathered(record: Record, network: nn.Module, sites: Sequence[Site]) -> dict[str, Tensor]:
    """What every unit gave at each step, (K, numbers); of a step that asks more than once, the first time."""
    steps: dict[str, list[Tensor]] = {s.path: [] for s in sites}
    for asked, given in record.answers(network, {s.path: s.module for s in sites}):
        for path, out in given.items():
            if len(steps[path]) == asked.step:
                steps[path].append(out.flatten().float())
    return {path: torch.stack(v) for path, v in steps.items()}


def affinity(outputs: Tensor, served: bool = False) -> Tensor:
    """phi(i, j), (K, K + 1): how well an update at i serves the steps before j; minus infinity where j <= i."""
    k = len(outputs)
    unit = outputs / outputs.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosines = unit @ unit.T
    each = cosines if served else torch.cat([torch.ones(1), cosines.diagonal(1)]).expand(k, k)
    out = torch.full((k, k + 1), -torch.inf)
    for i in range(k):
        out[i, i + 1] = 0
        out[i, i + 2 :] = each[i, i + 1 :].cumsum(0)
    return out


def best(phi: Tensor, budget: int) -> list[int]:
    """The `budget` steps, 0 first, whose affinities to the steps that they serve have the largest sum."""
    k = len(phi)
    m = min(budget, k)
    value, back = phi[0], []  # value[j]: the best of the steps before j, with the updates so far
    for _ in range(m - 1):
        each = value[:k, None] + phi  # the next update at i, serving until j
        value, came = each.max(0)
        back.append(came)
    steps, j = [], k
    for came in reversed(back):
        j = int(came[j])
        steps.append(j)
    return [0, *reversed(steps)]


def volatility(outputs: Tensor) -> float:
    """The mean distance |b_t - b_u|_1 of two steps."""
    return float(torch.cdist(outputs, outputs, p=1).mean())


def bubbled(
    sites: Sequence[Site], chosen: Mapping[str, list[int]], moves: Mapping[str, float], upstream: int
) -> dict[str, list[int]]:
    """Schedules with those of every later feed-forward added to the `upstream` units that move most, deep ones first."""
    out = {k: set(v) for k, v in chosen.items()}
    paths = [s.path for s in sites]
    for path in sorted(sorted(paths, key=lambda p: -moves[p])[:upstream], key=paths.index, reverse=True):
        for later in sites[paths.index(path) + 1 :]:
            if later.kind.endswith("feed-forward"):
                out[path] |= out[later.path]
    return {k: sorted(v) for k, v in out.items()}
