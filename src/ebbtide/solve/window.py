"""What solvers share that work on several coming times of a run at once: their times, their draws, their choice.

Point j of a window is where a unit will be after j more of its own steps, so its time is ahead(j) and its draws are those
of its step i + j. An element walks as a whole: all of its units go the same number of steps, and only as far as each of
them moves at every one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ebbtide.core.key import Noise
from ebbtide.core.loop import Ask
from ebbtide.core.state import Pred, Query


class Ahead(NamedTuple):
    """The coming times of every unit, and which elements move as a whole.

    times   t_0 to t_count, shaped like the units
    goes    (B,) for j below count: every unit of the element moves in step j and in all those before it
    """

    times: list[Tensor]
    goes: list[Tensor]


def ahead(ask: Ask, s: Tensor, count: int) -> Ahead:
    """The times up to `count` steps from here; `s` is the first of them."""
    times = [ask.state.t, s, *(ask.ahead(j) for j in range(2, count + 1))]
    goes, so_far = [], torch.ones(len(s), dtype=torch.bool)
    for here, there in itertools.pairwise(times):
        so_far = so_far & (there < here).reshape(len(s), -1).all(1)
        goes.append(so_far)
    return Ahead(times, goes)


def later(noise: Noise, j: int) -> Noise:
    """The draws of the step j steps from here."""
    return replace(noise, i=noise.i + j)


def ask_along(ask: Ask, points: Sequence[Tensor], view: Ahead, rows: Sequence[Tensor]) -> tuple[Pred, list[Tensor]]:
    """The prediction at the state's own point, and the means at all points, in one batch.

    rows   (B,) for every point but the first: which elements are asked there; the others get the mean of the point before
    """
    index = [chosen.nonzero()[:, 0] for chosen in rows]
    queries = [Query(points[0], view.times[0])]
    for j, some in enumerate(index, 1):
        if len(some):
            queries.append(Query(points[j], view.times[j], role="look").rows(some))
    answers = iter(ask.many(queries))
    pred = next(answers)
    means = [pred.mean]
    for some in index:
        mean = means[-1]
        means.append(mean.index_copy(0, some.to(mean.device), next(answers).mean) if len(some) else mean)
    return pred, means


def whole(flags: Tensor) -> Tensor:
    """(B,) whether a flag stored for each unit holds for all units of the element."""
    return (flags > 0).reshape(len(flags), -1).all(1)


def at(choices: Sequence[Tensor], index: Tensor) -> Tensor:
    """Row r of choices[index[r]], for all rows."""
    first = int(index[0])
    if bool((index == first).all()):
        return choices[first]
    out = choices[first].clone()
    for k in range(len(choices)):
        some = (index == k).nonzero()[:, 0].to(out.device)
        if k != first and len(some):
            out[some] = choices[k][some]
    return out


def per_unit(values: Tensor, t: Tensor) -> Tensor:
    """Numbers of the elements, (B,), as numbers of their units."""
    return values.reshape(-1, *(1,) * (t.ndim - 1)).expand(t.shape).clone()
