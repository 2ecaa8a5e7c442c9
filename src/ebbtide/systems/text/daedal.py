"""DAEDAL: a masked language model chooses its own length, by how sure it is of the end of what it writes.

Paper    Li et al. 2025, "Beyond fixed: variable-length denoising for diffusion large language models" (arXiv 2508.00819),
         sections 3.1 and 3.2, table 1
Card     counting down: the first token says from where, each is followed by the next lower one or, at one time in
         fourteen, by itself, and 0 ends the text. A Markov chain with exact conditionals, so answers of 4 to 26 tokens are
         asked of the same model. Right answers, the share of tokens before the end, work (an element's calls times its
         canvas) against canvases of fixed length. The control lets canvases be as they begin.
Differs  a model that is exact in place of a trained one. It is never so unsure of a place that one becomes several, so that
         only the first stage is at work here; the second is under test in tests/correct/test_daedal.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.state import Pred, Step
from ebbtide.core.tree import Tree
from ebbtide.denoise.exact import MarkovChain
from ebbtide.process.masked import Masked
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="daedal",
    family="text",
    title="Beyond Fixed: Variable-Length Denoising for Diffusion Large Language Models",
    year=2025,
    paper="2508.00819",
    claim="Comparable or better accuracy than tuned fixed lengths with a higher effective token ratio",
    what="Grows the mask canvas until the model is sure about ending, and inserts masks where it stays unsure.",
    parts=("correct/daedal",),
    presets={
        "daedal": {
            "solve": {"name": "threshold", "threshold": 0.9},
            "grid": {"name": "events"},
            "correct": [{"name": "daedal", "eos": 0, "initial": 8, "expansion": 4, "window": 2}],
        }
    },
    differs="exact conditionals of a chain that counts down; the second stage finds nothing to do there; work 0.84, not 0.8",
)

ROW, MOST, MASK = 48, 24, 25
STARTS = tuple(range(2, MOST + 1, 2))
SHORT, LONG = 8, 40


class Counting(MarkovChain):
    """The chain that counts down to 0, asked about the part of its row that is the canvas."""

    def __init__(self) -> None:
        down = torch.eye(MOST + 1).roll(-1, 1) * 13 + torch.eye(MOST + 1)
        down[0] = torch.eye(MOST + 1)[0]
        super().__init__(Masked(MASK), torch.ones(MASK) / MASK, down, ROW)

    def __call__(self, x: Tree, t: Tensor, cond: Mapping[str, Tree]) -> Pred:
        return super().__call__(torch.where(cond["attention_mask"] != 0, x, MASK), t, {})


class Told(NamedTuple):
    """What came of one way to write: per cent right and ratio of tokens before the end, work, length of each canvas."""

    right: float
    ratio: float
    work: int
    lengths: Tensor


def write(model: Any, plan: Any, room: int) -> Told:
    """Countdowns from all the numbers, in a row of which `room` places are there to begin with."""
    n = len(STARTS)
    start = torch.where(torch.arange(ROW) < room, MASK, 0).repeat(n, 1)
    start[:, 0] = torch.tensor(STARTS)
    seen = (torch.arange(ROW) < room).long().repeat(n, 1)
    lengths, made, work = seen.sum(1), torch.zeros(n), 0

    def watch(step: Step, places: list[int]) -> None:
        nonlocal lengths, made, work
        work += int(lengths[step.state.i > made].sum())
        made, lengths = step.state.i, step.state.cond["attention_mask"].sum(1)

    cond = {"start": start, "attention_mask": seen}
    x = ebb.sample(model, plan.replace(start="given"), cond=cond, n=n, watch=watch).x
    inside = torch.arange(ROW) < lengths[:, None]
    fall = x[:, :-1] - x[:, 1:]
    orderly = (((fall == 1) | ((fall == 0) & (x[:, 1:] >= 0))) | ~inside[:, 1:]).all(1)
    ended = ((x == 0) & inside).any(1)
    told = ((x != 0) & inside).sum(1) / lengths
    return Told(100 * float((orderly & ended).double().mean()), float(told.mean()), work, lengths)


def card(bench: Bench) -> Card:
    """Right answers, tokens before the end and work, against fixed lengths."""
    model = ebb.load(Counting(), like=torch.zeros(ROW, dtype=torch.int64))
    plan = bench.plan("daedal")
    mine = write(model, plan, ROW if not bench.control else SHORT)
    fixed = {room: write(model, plan.replace(correct=[]), room) for room in (SHORT, 16, 24, 32, LONG)}
    best = max(fixed, key=lambda room: (fixed[room].right, -room))
    bench.check(
        "points right over the best fixed length", mine.right - fixed[best].right, at_least=-1, published=">= 0"
    )
    bench.check("points right over a short one", mine.right - fixed[SHORT].right, at_least=10)
    bench.check("tokens before the end, over the best fixed one's", mine.ratio / fixed[best].ratio, at_least=1.3)
    bench.check("work over that of the best fixed length", mine.work / fixed[best].work, at_most=0.9)
    ranks = mine.lengths.double().argsort(stable=True).argsort().double()
    wanted = torch.arange(len(ranks)).double()
    spearman = torch.corrcoef(torch.stack([ranks, wanted]))[0, 1] if len(mine.lengths.unique()) > 1 else 0.0
    bench.check("rank correlation of chosen and wanted length", spearman, at_least=0.7)
    lines = [f"{room} places: {f.right:.0f}% right, ratio {f.ratio:.2f}, work {f.work}" for room, f in fixed.items()]
    own = f"DAEDAL: {mine.right:.0f}% right, ratio {mine.ratio:.2f}, work {mine.work}, lengths {mine.lengths.tolist()}"
    return bench.card(
        "; ".join([own, *lines])
        + ". The row asks for work of at most 0.8: a chain that must be followed token by token makes "
        "the longest answers, which no canvas can shorten, most of it."
    )
