"""Consistency trajectories: learn to jump from any time t to any earlier s along a teacher's ways, and to denoise where s = t.

    G(x_t, t -> s) = move(x_t, g, t, s),   g = g(x_t, t, s)          in variance-exploding time (s/t) x_t + (1 - s/t) g
    jump      a way of the teacher through x_t and x_s:   g must be g*, for which G = x_s
    denoise   x_t = a x0 + c eps:                         g(x_t, t, t) must be x0

Both errors are taken in the network's own prediction, where they have one scale: with the flow process x_s = x_t - (t - s) f,
so f* = (x_t - x_s) / (t - s), the mean velocity of the way, and z - x0 where there is none. The jump of no length is the
identity whatever f says; s = 0 is the sample, so one network serves one step, a few, or, as a denoiser, any solver.

Shapes   ways (B, T + 1, *event): x[:, k] at time k / T, data first (see `zoo.drawn`); labels (B,) or none; f shaped like x
Paper    Kim, Lai et al. 2023, "Consistency trajectory models" (arXiv 2310.02279), eq. 7 and 9 (G and g), 11 (denoising); the
         mean velocity: Geng et al. 2025 (2505.13447), eq. 3
Off      denoise = 1 learns no jumps: flow matching on the teacher's samples.
Differs  targets are the teacher's own ways, kept beforehand: u = s in the paper, full distillation, and no average network.
         Squared error of f, without the carry to time 0; no adversary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core.key import Noise
from ebbtide.core.time import combine, right
from ebbtide.learn.flow_matching import FlowMatching


@dataclass(frozen=True)
class Trajectories(FlowMatching):
    """The loss of a network that jumps.

    denoise   the share of the rows that learn to denoise
    """

    denoise: float = 0.25

    def loss(self, network: nn.Module, ways: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The mean squared error over a batch of ways (B, T + 1, *event), labels (B,); `noise` has B keys."""
        n, last = ways.shape[0], ways.shape[1] - 1
        rows = torch.arange(n)
        one, two = ((noise.uniform((n,), salt) * (last + 1)).long() for salt in (4, 5))
        two = torch.where(one == two, (one + 1) % (last + 1), two)
        high, low = torch.maximum(one, two), torch.minimum(one, two)
        jumps = noise.uniform((n,), 6) >= self.denoise
        t = torch.where(jumps, high.double() / last, self.times(noise))
        s = torch.where(jumps, low.double() / last, t)
        x0 = ways[:, 0]
        plain: Any = self.process.corrupt(x0, t, noise, {})
        x = torch.where(right(jumps, plain).to(plain.device), ways[rows, high], plain)
        w = self.process.weights(t, s)
        there = combine((1.0, ways[rows, low]), (-torch.as_tensor(w.x), x))
        part = torch.where(jumps, torch.as_tensor(w.x0), 1.0)
        clean = torch.where(right(jumps, x0).to(x0.device), combine((1 / part, there)), x0)
        known = torch.full((n,), self.null, device=x.device) if labels is None else labels
        said = self.jumped(network, x, t, s, known)
        return (said - self.process.from_x0(self.kind, clean, x, t, {})).square().mean()

    def jumped(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """The network's prediction for a step from t to s, (B,) both, shaped like x."""
        out: Tensor = network(far(x, (t - s).to(x)), (t * self.clock).to(x), class_labels=labels).sample
        return out


def far(x: Tensor, by: Tensor) -> Tensor:
    """x (B, C, H, W) with one channel more, filled with `by` (B,)."""
    return torch.cat([x, right(by, x).expand(-1, 1, *x.shape[2:]).to(x)], 1)
