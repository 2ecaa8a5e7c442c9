"""What parts of `steer` share: requests and their rows, what a step foresees, and how parents are drawn.

    effective number   (sum w)^2 / sum w^2       from one particle that holds all the weight to all that weigh the same
    parents            row k is drawn with probability w_k / sum w, each place by a lot of its own

A particle's lot is its own key's, so who wins in one request depends on nobody outside it.

Shapes   log weights (k,) float64 of the particles of one request, on the CPU; -inf for one that cannot go on
Source   Kong, Liu, Wong 1994, "Sequential imputations and Bayesian missing data problems", for the effective number;
         Gordon, Salmond, Smith 1993, "Novel approach to nonlinear/non-Gaussian Bayesian state estimation", for parents
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Process
from ebbtide.core.state import Pred, State
from ebbtide.core.tree import Tree, tree_map


def requests(group: Tensor) -> list[Tensor]:
    """The rows of each request, in their order; `group` (B,) need not be sorted."""
    order = group.argsort(stable=True)
    _, counts = torch.unique_consecutive(group[order], return_counts=True)
    return list(order.split(counts.tolist()))


def first_of(units: Tensor) -> Tensor:
    """One number an element: that of its first unit, (B,)."""
    return units.reshape(len(units), -1)[:, 0]


def furthest(units: Tensor) -> Tensor:
    """One number an element: the largest among its units, (B,)."""
    return units.reshape(len(units), -1).amax(1)


def arrived(before: State, after: State) -> tuple[Tensor, Tensor]:
    """Which elements a step has moved, and which of those are data now, (B,) each."""
    moved = (after.t != before.t).reshape(len(before), -1).any(1)
    return moved, moved & (furthest(after.t) == 0)


def foreseen(ask: Ask, pred: Pred, after: Tree, landed: Tensor, process: Process) -> Tree:
    """What each element of `ask.state` will be as far as one knows, shaped like x.

    That is what one step to the data would give: the mean of numbers, a completion of tokens drawn from the logits. An
    element that has `landed` is what it is, `after`.
    """
    if bool(landed.all()):
        return after
    state = ask.state
    guess = process.move(state.x, pred, state.t, torch.zeros_like(state.t), 0.0, ask.noise, state.cond)
    if not bool(landed.any()):
        return guess
    done = landed.nonzero()[:, 0]
    return tree_map(
        lambda g, x: g.index_copy(0, done.to(g.device), x[done.to(x.device)].to(g)),
        guess,
        after,
    )


def effective(log_weights: Tensor) -> float:
    """How many particles of equal weight would be worth these."""
    return 1 / float(log_weights.softmax(0).square().sum())


def parents(log_weights: Tensor, lots: Tensor) -> Tensor:
    """A parent for each place, by a lot in (0, 1) for each: (k,) places among the particles."""
    total = log_weights.softmax(0).cumsum(0)
    return torch.searchsorted(total, lots * total[-1], right=True).clamp_(max=len(lots) - 1)
