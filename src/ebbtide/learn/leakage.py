"""Noised condition: an image-to-video network is shown its picture through noise, the more the later the time.

    shown = y + beta_s eps,   beta_s = beta_max sigmoid(2 t^power - 1 + n),   n ~ N(0, 1),   y the first frame of x0
    loss = mean (f(x_t, t, shown) - f*)^2

At high noise a clean picture tells more of the clip than x_t does, so a network learns to say the picture eight times over:
a still. Noise on the picture there makes it read x_t. beta_s is not told. The picture stands beside every frame as one
more channel, and what the network says of that channel is left out.

Shapes   x0 (B, F, C, S, S) of a `VideoTransformer` of 2 C channels, shown (B, C, S, S)
Paper    Zhao et al. 2024, "Identifying and solving conditional image leakage in image-to-video diffusion model" (arXiv
         2406.15735), "TimeNoise"
Off      beta_max = 0 is training with the picture as it is, bit for bit.
Differs  beta_max is in units of the data, here of [-1, 1], where the paper's 100 is on the scale of the noise of its network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ebbtide.core.key import Noise
from ebbtide.core.time import combine
from ebbtide.learn.flow_matching import FlowMatching


class Shown(nn.Module):
    """A network of clips (x, clock, labels) that has seen a picture for each: it stands beside all frames, a channel more."""

    def __init__(self, network: nn.Module, picture: Tensor) -> None:
        super().__init__()
        self.network, self.picture = network, picture

    def forward(self, x: Tensor, clock: Tensor, labels: Tensor) -> Tensor:
        """The prediction at x (B, F, C, S, S)."""
        beside = self.picture.to(x)[:, None].expand_as(x)
        out: Tensor = self.network(torch.cat([x, beside], 2), clock, labels)
        return out[:, :, : x.shape[2]]


@dataclass(frozen=True)
class NoisedCondition(FlowMatching):
    """Flow matching of clips whose first frame is given, through noise.

    beta_max   the most noise on the picture, in units of the data
    power      of the time in the law of it: high powers keep the noise for the highest times
    """

    beta_max: float = 1.0
    power: float = 5.0

    def beta(self, t: Tensor, noise: Noise) -> Tensor:
        """The noise of the pictures shown at times t (B,), (B,) float64."""
        n = torch.special.ndtri(noise.uniform(t.shape, 7).clamp(1e-9, 1 - 1e-9))
        return self.beta_max * torch.sigmoid(2 * t**self.power - 1 + n)

    def loss(self, network: nn.Module, x0: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The mean squared error over clips x0 (B, F, C, S, S) in [-1, 1]; `noise` has B keys."""
        picture = x0[:, 0]
        if self.beta_max:
            picture = combine((1.0, picture), (self.beta(self.times(noise), noise), noise.normal(picture, 8)))
        return super().loss(Shown(network, picture), x0, labels, noise)

    def said(self, network: nn.Module, x: Tensor, clock: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = network(x, clock, labels)
        return out
