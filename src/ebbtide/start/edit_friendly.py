"""Edit-friendly start: the noise that makes a sampler draw this picture, to be drawn again under another condition.

    x_k = corrupt(source, t_k), with noise of its own for every k          copies that know nothing of each other
    z_k = (x_{k+1} - mu(x_k)) / w_k                                       the solver's step is mu(x_k) + w_k z
    x_{k+1} <- the step with z_k;  the last step draws nothing and leaves out  r = source - x_n

The run replays z_k: under the source's own condition it walks the same way and ends at x_n, with `correct: residual`, which
adds r, at the source itself; under another condition it edits. Neighbouring copies are far apart, so the maps hold the
picture's structure: they are larger than fresh noise and correlated from step to step.

    skip = (1 - strength) n   steps of the grid are not made: the fewer are made, the nearer to the source

The plan's own solver, guides and network say mu and w: each step is taken with the maps 1 and -1, on one prediction. So any
solver will do whose step is affine in one draw: ancestral, euler with eta, ddpm, dpmpp-2m-sde, dpmpp-3m-sde, er-sde, lcm.
One that draws otherwise, or asks the network after it has drawn, is refused.

Shapes   cond["source"] like x (B, ...), data; any units. cond["from"] is the condition of the source, a mapping like the
         condition's own leaves; without it, the source is read under the run's condition. Both are taken out. The maps are
         (B, n, ...) in the slot `noise`. Calls: one run of the steps that are made, which `Step.calls` does not count.
Paper    Huberman-Spiegelglas et al. 2024, "An edit friendly DDPM noise space" (arXiv 2304.06140), section 3
Off      replay = false is `encoded`, bit for bit.
Differs  the residual of the last step is kept, where the authors' code drops the last map. Samples drawn from one source
         share the maps only where they share a seed. The plan's guides read the source too, unless `scale` says otherwise.

Raises EbbError where the solver draws otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask, Loop
from ebbtide.core.parts import Start
from ebbtide.core.registry import part
from ebbtide.core.state import Pred, State, Step
from ebbtide.core.tree import Tree
from ebbtide.start.held import drop, held, later, leave, points


@part(
    "start",
    "edit-friendly",
    paper="2304.06140",
    needs={"affine", "stochastic"},
    gives={"source", "residual"},
    off={"replay": False},
    baseline="encoded",
)
class EditFriendly(Start):
    """Edit-friendly start: the noise that makes a sampler draw this picture, to be drawn again under another condition.

    strength   the share of the grid's steps that are made
    scale      of the guidance under which the source is read; None: the plan's own guides
    replay     whether the noise is kept
    """

    strength: Annotated[float, Field(ge=0, le=1)] = 0.75
    scale: float | None = None
    replay: bool = True

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        """Raises EbbError without cond["source"], for a grid whose times are not known beforehand, and for some solvers."""
        source, state = held("source", like, ask, "data to edit")
        assert isinstance(source, Tensor)
        n = points(ask).shape[-1] - 1
        state = later(drop(state, "from"), ask, int(self.strength * n))
        state = replace(state, x=ask.process.corrupt(source, state.t, ask.noise, cond))
        if not self.replay:
            return state
        maps, rest = self._read(state, source, cond, ask, n)
        return leave(state.remember("noise", {"x": maps}), ask, "residual", rest)

    def _read(self, state: State, source: Tensor, cond: dict[str, Tree], ask: Ask, n: int) -> tuple[Tensor, Tensor]:
        """The maps (B, n, ...) of the source, zeros where nothing is drawn, and what its last step leaves out."""
        loop = self._reader(ask.loop)
        told = cond.get("from", {})
        if not isinstance(told, dict):
            raise EbbError("cond['from'] is the condition of the source, such as {'label': 3}.")
        state = loop.fresh(replace(state, cond={**state.cond, **told}))
        maps = source.new_zeros((len(source), n, *source.shape[1:]))
        first = k = int(state.i.reshape(-1)[0]) if state.i.numel() else n
        drew = False
        for k in range(first, n):
            up, down = torch.ones_like(source), -torch.ones_like(source)
            step = _step(loop, state, k, n, up)
            assert isinstance(step.pred, Pred)
            low = _step(loop, state, k, n, down, step.pred).state.x
            mean, w = (step.state.x + low) / 2, (step.state.x - low) / 2
            drawn = w.abs() > torch.finfo(w.dtype).eps * (1 + mean.abs()) * 8
            ahead = step.state.t
            noise = replace(ask.noise.fold(k), i=torch.zeros_like(state.i))
            wanted = ask.process.corrupt(source, ahead, noise, cond)
            maps[:, k] = torch.where(drawn, (wanted - mean) / torch.where(drawn, w, 1.0), 0.0)
            drew = drew or bool(drawn.any())
            after = _step(loop, state, k, n, maps[:, k], step.pred).state
            off = torch.where(drawn, (after.x - wanted).abs() / (1 + wanted.abs()), 0.0)
            if float(off.max()) > torch.finfo(off.dtype).eps ** 0.5:
                raise EbbError(
                    f"start 'edit-friendly' needs a solver that draws once a step, such as 'ancestral', and "
                    f"{ask.loop.solve.called!r} does otherwise."
                )
            ask.calls += step.calls
            layers = {name: step.state.memory[name] for name in loop.layer_names if name in step.state.memory}
            state = replace(after, memory={**after.memory, **layers})
        if n - first > 1 and not drew:
            raise EbbError(
                f"start 'edit-friendly' needs a solver that draws noise, and {ask.loop.solve.called!r} drew none: give it "
                "eta = 1."
            )
        return maps, source - state.x

    def _reader(self, loop: Loop) -> Loop:
        """What the source is read with: no corrections, no steering, and its own guidance where there is one."""
        if self.scale is None:
            return replace(loop, correct=(), steer=None)
        guide: Any = registry.make("guide", {"name": "cfg", "scale": self.scale})
        return replace(loop, correct=(), steer=None, layers=(guide, loop.layers[-1]))


def _step(loop: Loop, state: State, k: int, n: int, z: Tensor, given: Pred | None = None) -> Step:
    """The k-th step with this noise."""
    held = z[:, None].expand(len(z), n, *z.shape[1:])
    return loop.advance(state.remember("noise", {"x": held}), given)
