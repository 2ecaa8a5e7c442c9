"""Multistep solvers: DDIM corrected by the slopes of earlier steps, one call a step.

    x_s = DDIM(x_t) + E sum_k r_k (f_k - f_t)                                     predictor
    x_t <- x_t + E' sum_k (r'_k - r_k) f_k                                        corrector, before the next step

f_k are the slopes (x0 or eps, see `coordinates`) at earlier times, r_k their weights. The corrector repeats the step that led
here with the slope found at its end; as both start from the same place, only the difference of their weights is left, so no
earlier state is kept. Each subclass is a published choice of space, variable, order and rule for the weights.

Shapes   x (B, ...), any units. Memory: "1", "2"... the slopes of earlier steps, newest first, each f like x and t like the
         times (0: nothing stored, and the order is as much lower)
Source   Zhang, Chen 2023, "Fast sampling of diffusion models with exponential integrator" (arXiv 2204.13902), section 3
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine, Weights
from ebbtide.solve import coordinates
from ebbtide.solve.coordinates import KIND, Space, Variable, place, slide, through


class Multistep(Solver):
    """DDIM corrected by the slopes of earlier steps.

    terms      slopes that the predictor combines, this step's own among them
    corrector  whether the step that led here is put right first
    eta        0 the flow, 1 the reverse SDE (in the data space)
    """

    space: Space = "data"
    variable: Variable = "log-snr"
    corrector: bool = False
    eta: float = 0.0

    @property
    def terms(self) -> int:
        """How many slopes the predictor combines."""
        return int(self.order or 1)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    # ---------------------------------------------------------------- what a method chooses

    def nodes(self, process: Affine, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> list[Tensor]:
        """kappa_k of the slopes at `past` for a step from t to s, 0 for the one at t first."""
        u = lambda t: place(process, self.space, self.variable, t)  # noqa: E731
        here = u(t)
        return [0 * here, *((u(v) - here) / (u(s) - here) for v in past)]

    def moments(self, process: Affine, t: Tensor, s: Tensor, fade: Tensor, count: int) -> list[Tensor]:
        """I_0 to I_count for a step from t to s."""
        return coordinates.moments(process, self.variable, t, s, fade, count)

    def noise(self, process: Affine, t: Tensor, s: Tensor) -> float | Tensor:
        """eta of a step from t to s."""
        return self.eta

    def there(self, process: Affine, t: Tensor) -> Tensor:
        """Whether the slope at an earlier time t can be used: it is stored, and where there is no noise it is not eps."""
        stored = t > 0
        return stored & (process.c(t) > 0) if self.space == "noise" else stored

    # ---------------------------------------------------------------- weights

    def predict(self, process: Affine, t: Tensor, s: Tensor, fade: Tensor, past: Sequence[Tensor]) -> list[Tensor]:
        """The weights of the slopes at t and at `past`, 1 in all; those of slopes that are not there are 0."""
        past = past[: self.terms - 1]
        nodes = self.nodes(process, t, s, past)
        chosen = [torch.zeros_like(t) for _ in past]
        for m in range(1, len(past) + 1):
            found = through(nodes[: m + 1], self.moments(process, t, s, fade, m))[1:]
            there = self.there(process, past[m - 1])
            chosen = [torch.where(there, f, c) for f, c in zip(found, chosen, strict=False)] + chosen[m:]
        if self.variable == "log-snr" or self.space == "data":  # data is infinitely far away there
            chosen = [torch.where(process.c(s) == 0, 0.0, c) for c in chosen]
        own = torch.ones_like(t)
        for c in chosen:
            own = own - c
        return [own, *chosen]

    def correct(self, process: Affine, t: Tensor, past: Sequence[Tensor]) -> list[Tensor]:
        """What is added to x_t along the slopes at t and at `past`: the step that led here, with the slope at its end."""
        zero = torch.zeros_like(t)
        if not self.corrector or not past:
            return [zero] * (1 + len(past))
        last, older = past[0], past[1 : self.terms]
        go = slide(process, self.space, last, t, self.noise(process, last, t))
        before = self.predict(process, last, t, go.fade, older)
        nodes = self.nodes(process, last, t, older)
        nodes = [nodes[0], torch.ones_like(t), *nodes[1:]]
        after = [zero] * (len(older) + 2)
        for m in range(len(older) + 1):
            found = through(nodes[: m + 2], self.moments(process, last, t, go.fade, m + 1))
            there = self.there(process, last if m == 0 else older[m - 1])
            after = [torch.where(there, f, c) for f, c in zip(found, after, strict=False)] + after[m + 2 :]
        change = [after[1], after[0] - before[0], *(a - b for a, b in zip(after[2:], before[1:], strict=True))]
        kept = [torch.where(self.there(process, last), go.along * c, zero) for c in change]
        return kept + [zero] * (1 + len(past) - len(kept))

    def weigh(self, process: Affine, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The weights of x, x0, y, noise and of the slopes at `past`, for the whole step."""
        go = slide(process, self.space, t, s, self.noise(process, t, s))
        ahead, back = self.predict(process, t, s, go.fade, past), self.correct(process, t, past)
        ahead = ahead + [torch.zeros_like(t)] * (len(back) - len(ahead))
        of_x, of_x0, of_y = process.kinds_of(KIND[self.space], t)
        own = go.along * (ahead[0] - 1) + go.keep * back[0]
        rest = [go.along * r + go.keep * d for r, d in zip(ahead[1:], back[1:], strict=True)]
        return go.x + own * of_x, go.x0 + own * of_x0, go.y + own * of_y, go.noise, *rest

    # ---------------------------------------------------------------- the step

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        pred = ask(state.x, state.t)
        return self.advance(state, memory, pred, s, ask, process), pred

    def advance(self, state: State, memory: Memory, pred: Pred, s: Tensor, ask: Ask, process: Affine) -> Move:
        """The step, its prediction given."""
        past = past_of(memory)
        x, x0, y, noise, *rest = process.once(
            self, lambda t, s, *past: self.weigh(process, t, s, past), state.t, s, *(p["t"] for p in past)
        )
        w = Weights(x, x0, y, noise, 0.0, 0.0)
        terms = [(x0, pred.mean), *((r, p["f"]) for r, p in zip(rest, past, strict=True))]
        moved = process.apply(w, state.x, terms, state.cond, ask.noise)
        return Move(moved, self.keep(state, pred, past, process))

    def keep(self, state: State, pred: Pred, past: Sequence[Memory], process: Affine) -> Memory:
        """The memory after this step: its own slope, then those of the steps before it."""
        size = self.terms - 1 + bool(self.corrector)
        if not size:
            return {}
        f = self.slope(process.from_x0(KIND[self.space], pred.mean, state.x, state.t, state.cond), past)
        return {str(k + 1): v for k, v in enumerate([{"f": f, "t": state.t}, *past][:size])}

    def slope(self, f: Tensor, past: Sequence[Memory]) -> Tensor:
        """What is kept of a slope."""
        return f


def past_of(memory: Memory) -> list[Memory]:
    """What is kept of earlier steps, newest first."""
    return [memory[k] for k in sorted(memory)]


class SecondOrder(Multistep):
    """A rule that is of order 2 however many slopes it combines."""

    @property
    def order(self) -> int:
        return min(self.terms + bool(self.corrector), 2)

    @property
    def startup(self) -> int:
        return self.order
