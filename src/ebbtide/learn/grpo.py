"""Group-relative policy training of a sampler, where only a sliding window of steps draws noise and is trained.

    G samples from one start, drawing only in the window        they differ by its steps alone
    A = (r - mean) / std in the group                            no value network
    minimise -min(rho A, clip(rho, 1 +- e) A) over the window    rho = p(step) / p(step) when it was taken

With `flash` the steps after the window, which need no log-probability, are fewer and longer.
All other steps are plain steps of the flow: cheaper to optimise, as no gradient passes through them, and easier, as a reward
is owed to few draws. window = steps is training of all steps. The last step lands, draws nothing, and is never trained.

Shapes   rewards (B,), B = prompts * group
Paper    Li et al. 2025, "MixGRPO: unlocking flow-based GRPO efficiency with mixed ODE-SDE" (arXiv 2507.21802), algorithm 1
Off      window = every step: Flow-GRPO (Liu et al. 2025, 2505.05470)
Differs  noise enters by the exact move of the process (`eta` of DDIM), not by an Euler-Maruyama step of the SDE, so the law of
         x_t is kept at any step length. No penalty on the distance to the first weights; nothing is saved on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebbtide import api
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.core.state import State
from ebbtide.denoise.model import Model
from ebbtide.learn.policy import advantages, said, sliding, surrogate, walk
from ebbtide.measure import rewards


class Update(NamedTuple):
    """One iteration: the mean reward, how far rho strayed from 1, and the network rows so far, sampled and with gradient."""

    iteration: int
    reward: float
    strayed: float
    sampled: int
    graded: int


@dataclass(frozen=True)
class Grpo:
    """How a sampler is trained.

    window, stride, every   the steps that draw, how far they move on, and after how many iterations
    group, prompts          samples from one start, and starts an iteration
    eta, clip, most         of the noise, of rho, and of advantages
    updates                 steps of the optimiser an iteration
    flash                   steps after the window as a share of those of the grid, by DPM-Solver++(2M); None: plain steps
    """

    steps: int = 16
    window: int = 4
    stride: int = 1
    every: int = 4
    group: int = 12
    prompts: int = 8
    eta: float = 0.7
    clip: float = 0.2
    most: float = 5.0
    updates: int = 2
    flash: float | None = None
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.group < 2 or self.prompts < 1 or not 1 <= self.window <= self.steps:
            raise EbbError("training by groups takes groups of at least 2, and a window of 1 to all steps.")

    def train(
        self,
        model: Model,
        module: nn.Module,
        reward: rewards.Spec,
        iterations: int,
        *,
        grid: str = "linear",
        cond: Callable[[int], Any] = lambda iteration: None,
        seed: int = 0,
        fold: Callable[[Tensor], Tensor] = lambda a: a,
    ) -> Iterator[Update]:
        """Train the weights of `module`, which the model's denoiser asks, in place; yields after every iteration.

        cond   of the prompts of an iteration, one each
        fold   what becomes of advantages on the way: a control shuffles them
        """
        f = rewards.find(reward)
        plan = Plan(grid={"name": grid, "steps": self.steps})
        adam = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=self.lr, weight_decay=0.0)
        sampled = graded = 0
        for k in range(iterations):
            asked = model.condition(cond(k), self.prompts) or None
            still, first = api.begin(model, plan, asked, self.prompts, seed + k * self.prompts)
            drawn = model.loop(plan.replace(solve={"name": "ancestral", "eta": self.eta}), first.cond)
            state = first.take(torch.arange(self.prompts).repeat_interleave(self.group))
            steps = sliding(self.steps - 1, min(self.window, self.steps - 1), self.stride, self.every, k)
            stop = None if self.flash is None else steps[-1] + 1
            end, actions, calls = walk(still, drawn, self.eta, state, steps, stop)
            if self.flash is not None:
                end, more = self._flash(model, end, self.flash)
                calls += more
            seen = rewards.Seen(model.pixels(end.x), end.cond, model.text)
            score = rewards.scores(f, seen).value
            advantage = fold(advantages(score, self.group, self.most))
            sampled += calls
            strayed = 0.0
            for _ in range(self.updates):
                adam.zero_grad()
                for a in actions:
                    log_p = said(drawn, a.state, a.s, a.x, self.eta)
                    (surrogate(log_p, a.log_p, advantage, self.clip) / len(actions)).backward()
                    graded += len(a.x)
                    strayed = max(strayed, float((log_p.detach() - a.log_p).abs().max()))
                adam.step()
            yield Update(k, float(score.nanmean()), strayed, sampled, graded)

    @staticmethod
    def _flash(model: Model, state: State, share: float) -> tuple[State, int]:
        """The rest of a run in fewer, longer steps: where it ends, and its network calls."""
        count = max(1, math.ceil((state.memory["grid"]["points"].shape[-1] - 1 - int(state.i.max())) * share))
        now = float(state.t.max())
        times = [now * (count - j) / count for j in range(count + 1)]
        plan = Plan(start="given", solve="dpmpp-2m", grid={"name": "explicit", "times": times})
        calls = 0
        for step in api.run(model, plan, cond={**state.cond, "start": state.x}, n=len(state)):
            state, calls = step.state, calls + step.calls
        return state, calls
