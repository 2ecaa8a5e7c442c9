"""Reflow: learn a flow again on its own pairs of noise and sample, which makes its paths straight.

    z noise, x0 the sample that a teacher's flow leads it to      x_t = (1 - t) x0 + t z
    loss = mean (f(x_t, t, y) - (z - x0))^2

Flow matching, but that each picture keeps the one noise that made it. Paths of one coupling do not cross, so the mean of
z - x0 over all paths through a point is nearly one of them, and a long step along it ends where the path does. The pairs hold
what the teacher's plan did: with guidance in it, the student needs none.

    S = integral of E |(z - x0) - dx_t/dt|^2 dt        straightness of a flow's own ways, 0 where all are lines

With `at_end` a share of the rows is at t = 1, where f must lead all the way in one step: the distillation.

Shapes   ways (B, T + 1, C, H, W): x0 first, z last (see `zoo.drawn`), or pairs (T = 1); labels (B,) or none; f says
         (B, C, H, W)
Paper    Liu, Gong, Liu 2022, "Flow straight and fast" (arXiv 2209.03003), algorithm 1; Liu et al. 2023, "InstaFlow"
         (2309.06380), section 2.3 and 3 (distillation after reflow)
Off      pairs of independent noise are flow matching; at_end = 0 distils nothing.
Differs  distillation is a share of the batch in place of a run of its own with another network, so that one network serves any
         number of steps; squared error alone, no perceptual distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ebbtide.core.key import Noise
from ebbtide.core.time import combine
from ebbtide.learn.flow_matching import FlowMatching


@dataclass(frozen=True)
class Reflow(FlowMatching):
    """The loss of a flow that is taught its own pairs.

    at_end   the share of the rows at t = 1
    """

    at_end: float = 0.0

    def loss(self, network: nn.Module, pairs: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The mean squared error over a batch of ways (B, T + 1, C, H, W), labels (B,); `noise` has B keys."""
        x0, z = pairs[:, 0], pairs[:, -1]
        t = self.times(noise)
        t = torch.where(noise.uniform(t.shape, 7) < self.at_end, 1.0, t)
        x = combine((self.process.a(t), x0), (self.process.c(t), z))
        known = torch.full((len(x0),), self.null, device=x0.device) if labels is None else labels
        said = self.said(network, x, (t * self.clock).to(x), known)
        return (said - self.process.from_x0(self.kind, x0, x, t, {})).square().mean()


def straightness(states: Tensor) -> float:
    """S of ways (N, T + 1, *event) on an even grid: the mean over times of |(z - x0) - dx/dt|^2, summed over all numbers."""
    steps = states.shape[1] - 1
    slopes = states.diff(dim=1) * steps
    whole = states[:, -1:] - states[:, :1]
    return float((whole - slopes).double().square().flatten(2).sum(2).mean())
