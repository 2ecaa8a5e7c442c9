"""Speculative steps: draft several ancestral steps along the last prediction, check them in one batch, keep what holds.

    draft     d_j+1 = m~_j + k_z z_j,   m~_j = k_x d_j + k_0 x0(frozen) + k_y y
    check     m_j with x0(d_j) in its place, all in one batch;   delta_j = (m~_j - m_j) / k_z
    keep      d_j+1 if log u_j < -(z_j . delta_j + |delta_j|^2 / 2), and go on
              else m_j + k_z (z_j - 2 delta_j (z_j . delta_j) / |delta_j|^2), and stop there

This is the reflection coupling of N(m~, k_z^2) with N(m, k_z^2), the one that agrees most often. Whether kept or reflected,
x_j+1 has the law of the ancestral step from x_j exactly, so the run has the law of `ancestral`, whatever the drafts were
worth; they only say how many steps a batch of calls is worth. The first point of a batch always goes on.

Shapes   x (B, ...), any units, which keep step within their element; memory: x0 like x, known like t. At most `window`
         calls an element a step, in one batch.
Paper    De Bortoli et al. 2025, "Accelerated diffusion models via speculative sampling" (arXiv 2501.05370), algorithms 2
         and 3, frozen target draft
Off      window = 1 is `ancestral`, bit for bit.
Differs  the data prediction is what is frozen. A step without noise (onto the data) cannot be coupled: it is made from its
         own prediction and ends the batch.

Raises EbbError for eta = 0, where there is no chance to couple.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ebbtide.core.key import Noise
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Solver
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.time import combine, ratio, right
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine, Weights
from ebbtide.solve.euler import Eta
from ebbtide.solve.window import ahead, ask_along, at, later, per_unit, whole


@part(
    "solve",
    "speculative",
    paper="2501.05370",
    needs={"affine"},
    off={"window": 1},
    baseline="ancestral",
    exempt={
        "calls": "a batch holds as many points as are open (tests/solve/test_parallel_in_time.py counts)",
        "order": "its law is that of ancestral, by chance that is not affine (tests/solve/test_parallel_in_time.py)",
    },
)
class Speculative(Solver):
    """Speculative steps: draft several ancestral steps along the last prediction, check them in one batch, keep what holds.

    window   steps drafted at once
    eta      of the chain: 1 ancestral; drafts hold the more often the more noise there is
    """

    stochastic = True
    window: Annotated[int, Field(ge=1)] = 4
    eta: Eta = 1.0

    @model_validator(mode="after")
    def _chance(self) -> Speculative:
        if self.eta == 0:
            raise ValueError(
                "drafts are kept by chance, which needs noise; take eta above 0, or `picard` without noise"
            )
        return self

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        k, t, x = self.window, state.t, state.x
        if k == 1:
            pred = ask(x, t)
            return Move(process.move(x, pred, t, s, self.eta, ask.noise, state.cond)), pred
        view = ahead(ask, s, k + 1)
        known = whole(memory["known"]) if memory else torch.zeros(len(t), dtype=torch.bool)
        frozen = memory["x0"] if memory else torch.zeros_like(x)
        noises = [later(ask.noise, j) for j in range(k)]
        steps = [process.weights(view.times[j], view.times[j + 1], self.eta) for j in range(k)]
        # steps that every unit of an element makes with noise can be drafted
        fair = [known & view.goes[j] & (process.c(view.times[j + 1]) > 0).reshape(len(t), -1).all(1) for j in range(k)]
        fair = [torch.stack(fair[: j + 1]).all(0) for j in range(k)]

        z = [noise.normal(x) for noise in noises]
        draft = [x]
        for j in range(k):
            draft.append(self._go(process, steps[j], draft[j], frozen, z[j], state))
        # a step is checked where all before it were drafted; the last may be one that could not be
        checked = [fair[j - 1] & view.goes[j] for j in range(1, k)]
        pred, means = ask_along(ask, draft[:k], view, checked)

        out, hops, going = [x], torch.zeros(len(t), dtype=torch.int64), torch.ones(len(t), dtype=torch.bool)
        for j in range(k):
            mine = going if j == 0 else going & checked[j - 1]
            hops = hops + mine
            held, own = self._couple(steps[j], frozen - means[j], z[j], fair[j], noises[j])
            moved = self._go(process, steps[j], draft[j], means[j], own, state)
            out.append(torch.where(right(held, x).to(x.device), draft[j + 1], moved))
            going = mine & held

        # worth keeping where the next step can be drafted
        open_ = torch.stack([(process.c(v) > 0).reshape(len(t), -1).all(1) for v in view.times[1:]])
        useful = at(view.goes, hops) & at(list(open_), hops)
        remembered: Memory = {}
        if bool(useful.any()):
            last = at(means, hops - 1)
            last = torch.where(right(useful, last).to(last.device), last, 0)
            remembered = {"x0": last, "known": per_unit(useful.double(), t)}
        return Move(at(out, hops), remembered, at(view.times, hops), per_unit(hops, t)), pred

    def _go(self, process: Affine, w: Weights, x: Tensor, x0: Tensor, z: Tensor, state: State) -> Tensor:
        """The step with these draws."""
        end = [(w.y, process.end(state.cond))] if process.ended else []
        moved: Tensor = combine((w.x, x), (w.x0, x0), *end, (w.noise, z))
        return moved

    def _couple(self, w: Weights, off: Tensor, z: Tensor, fair: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Which elements keep their draft, (B,), and the draws of the others; `off` is what the draft's x0 is off by."""
        delta = combine((ratio(w.x0, w.noise), off))
        inner = (z * delta).double().flatten(1).sum(1)
        size = delta.square().double().flatten(1).sum(1)
        u = noise.uniform(noise.key.shape, salt=1).reshape(len(z), -1)[:, 0]
        held = fair & (u.log() < -(inner + size / 2).cpu())
        back = torch.where(fair.to(z.device) & (size > 0), 2 * inner / size.clamp_min(1e-300), 0.0)
        return held, z - right(back, z).to(z) * delta
