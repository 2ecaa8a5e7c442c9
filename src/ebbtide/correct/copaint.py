"""CoPaint: the state is moved until what it foretells agrees with the measurement, all of it at once, before it is denoised.

    L(x) = |A(x0-hat(x)) - y|^2 + reg r^k |x - x_t|^2 / n,      x0-hat = E[x0 | x_t = x]
    x <- x - f rate g^k (n^3/2 / a) dL/dx,    f <- backtrack f until L does not rise,      n = a^2 + c^2

k counts steps, g and r are the growths. The gradient goes through the denoiser, so what is hidden moves with what is seen, and
the border of a mask shows no seam. It is a greedy search for the most likely x along the run: x0-hat comes to be the sample
itself as t falls, and so the mismatch goes to nothing. An L that never rises is kept element by element.

Shapes   cond["measured"], and what the operator asks for, in rows like x; x (B, ...), any units: those that have arrived stay.
         Each iteration is a call with a gradient, and one for each try. No memory.
Paper    Zhang et al. 2023, "Towards coherent image inpainting using denoising diffusion implicit models" (arXiv 2304.03322),
         algorithm 1, with the adaptive rate of its appendix
Off      iters = 0 is the plan without it, bit for bit.
Differs  steps are those of x / n^1/2, so that every Gaussian process counts as variance preserving; 1 / a is held to at most
         100. One-step estimates only, no screening of starts; `time-travel` is a part of its own, to be listed after this one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Correct, Process
from ebbtide.core.registry import part
from ebbtide.core.state import Pred, Query, State
from ebbtide.core.time import right
from ebbtide.core.tree import Memory
from ebbtide.guide.gradients import through
from ebbtide.measure import operators
from ebbtide.measure.operators import Operator
from ebbtide.process.affine import Affine

_LEAST = 0.01
Positive = Annotated[float, Field(gt=0)]


@part("correct", "copaint", paper="2304.03322", needs={"gaussian"}, off={"iters": 0})
class CoPaint(Correct):
    """CoPaint: the state is moved until what it foretells agrees with the measurement, all of it at once.

    operator           A: a name, "file.py:function", or a mapping with a "name" and parameters; see `measure.operators`
    iters              gradient steps at every time
    rate, growth       their length, and by how much it grows with every step of the run
    reg, reg_growth    the pull to the state as it was
    backtrack, tries   by how much a step is shortened that would make it worse, and how often
    """

    examples = ({"operator": {"name": "clip", "low": -1.0, "high": 1.0}},)
    operator: str | dict[str, Any] = "mask"
    iters: Annotated[int, Field(ge=0)] = 2
    rate: Positive = 0.02
    growth: Positive = 1.012
    reg: Annotated[float, Field(ge=0)] = 1e-4
    reg_growth: Positive = 1.01
    backtrack: Annotated[float, Field(gt=0, lt=1)] = 0.8
    tries: Annotated[int, Field(ge=1)] = 12
    reads = operators.READ

    @field_validator("operator")
    @classmethod
    def _known(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        operators.check(value)
        return value

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({"gradients"}) if self.on else frozenset()

    def init(self, state: State, ask: Ask) -> Memory:
        if self.on:
            operators.tried(self.operator, state)
        return {}

    def __call__(
        self, state: State, memory: Memory, pred: Pred | None, ask: Ask, process: Process
    ) -> tuple[State, Memory]:
        rows = (state.t > 0).reshape(len(state), -1).any(1).nonzero()[:, 0]
        if not self.on or not len(rows):
            return state, memory
        assert isinstance(process, Affine)
        some = state if len(rows) == len(state) else state.take(rows)
        found = self._moved(some, rows, ask, process)
        ask.note(self.called, len(rows))
        if some is state:
            return replace(state, x=found), memory
        return replace(state, x=state.x.index_copy(0, rows.to(found.device), found)), memory

    def _moved(self, state: State, rows: Tensor, ask: Ask, process: Affine) -> Tensor:
        """x of some elements, `rows` of the batch, after all iterations."""
        x = start = state.x
        operator = operators.find(self.operator, state.cond)
        a, c = process.a(state.t), process.c(state.t)
        size = a**2 + c**2
        k = state.i.reshape(len(state), -1).amax(1).double()
        reg = self.reg * (k * _log(self.reg_growth)).exp()
        rate = size * (size.sqrt() / a.clamp_min(1e-30)).clamp(max=1 / _LEAST) * (state.t > 0)
        rate = right(self.rate * (k * _log(self.growth)).exp(), rate) * rate
        near = right(1 / size, x).to(x)

        def loss(mean: Tensor, x: Tensor, index: Tensor) -> Tensor:
            """L of the elements `index`, (n,) float64."""
            fit = _of(operator, index, len(state)).misfit(mean)[0]
            away = (_rows(near, index) * (x - _rows(start, index)) ** 2).double().flatten(1).sum(1)
            return 2 * fit + reg[index] * away

        every = torch.arange(len(state))
        share = torch.ones(len(state), dtype=torch.float64)
        for _ in range(self.iters):
            query = Query(x, state.t, role="look", of=rows)
            (pulled,) = through(ask, ask.many, (query,), _surrogate(operator))
            least = loss(pulled.pred.mean, x, every)
            slope = pulled.gradient + 2 * right(reg, x).to(x) * near * (x - start)
            open_ = every
            for _ in range(self.tries):
                step = right(share, rate) * rate
                new = _rows(x, open_) - right(step[open_], x).to(x) * _rows(slope, open_)
                seen = ask(new, state.t[open_], role="look", of=rows[open_]).mean
                good = loss(seen, new, open_) <= least[open_]
                better, open_ = open_[good], open_[~good]
                x = x.index_copy(0, better.to(x.device), new[good.to(x.device)])
                if not len(open_):
                    break
                share = share.index_copy(0, open_, share[open_] * self.backtrack)
        return x


def _surrogate(operator: Operator) -> Any:
    """An energy whose gradient is that of |A(x0-hat) - y|^2, whether or not A itself lets gradients pass."""

    def energy(query: Query, pred: Pred) -> Tensor:
        slope = 2 * operator.misfit(pred.mean.detach())[1]
        return (slope.detach() * pred.mean).flatten(1).sum(1)

    return energy


def _rows(v: Tensor, index: Tensor) -> Tensor:
    return v[index.to(v.device)]


def _of(operator: Operator, index: Tensor, n: int) -> Operator:
    """The operator on some of its elements."""
    return operator if len(index) == n else operator.rows(index)


def _log(v: float) -> Tensor:
    return torch.tensor(v, dtype=torch.float64).log()
