"""Restoring: regress the picture on a point between it and its degraded version, which the network sees too.

    x_t = a(t) x0 + b(t) y + c(t) eps,   loss = mean (f(x_t / n(t), y, t) - x0)^2,   n(t) = sqrt(c(t)^2 + spread^2)

One network serves every step of the bridge. At t = 1, where x_t tells nothing that y does not, it is the plain regression of x0
on y; further down it sees more. The state is brought to about the same size at all times, as the noise of a bridge may be
louder than pictures are.

Shapes   pairs (B, 2, C, H, W): x0 and y, in [-1, 1]; f says (B, C, H, W)
Paper    Yue, Wang, Loy 2023, "ResShift" (arXiv 2307.12348), eq. 8; the scale: Yue, Wang, Loy 2024 (2403.07319), section 3.4
Differs  times are continuous, a process without an end (b = 0) will do as well: a diffusion with y beside it. No
         perceptual loss.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core.key import Noise
from ebbtide.core.time import combine
from ebbtide.process.affine import Affine
from ebbtide.process.residual import ResShift


@dataclass(frozen=True)
class Restoring:
    """The loss of a network that predicts x0 from x_t and y.

    process   how pictures turn into what goes with them
    spread    the standard deviation of pictures, for the size of the network's input
    clock     the network is told the timestep clock * t
    """

    process: Affine = field(default_factory=ResShift)
    spread: float = 0.6
    clock: float = 1000.0

    def times(self, noise: Noise) -> Tensor:
        """Times of a batch, (B,) float64 in (0, 1): a comb that is moved as a whole."""
        n = len(noise.key)
        place = torch.arange(n, dtype=torch.float64) / n
        return (noise.uniform((n,), 1)[0] + place).frac().clamp(1e-9, 1 - 1e-9)

    def loss(self, network: nn.Module, pairs: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The mean squared error over a batch of pairs (B, 2, C, H, W); `noise` has B keys, labels are not looked at."""
        x0, y = pairs.unbind(1)
        t = self.times(noise)
        x: Any = self.process.corrupt(x0, t, noise, {"y": y})
        out: Tensor = network(shown(self.process, x, t, y, self.spread), (t * self.clock).to(x)).sample
        return (out - x0).square().mean()

    def about(self) -> dict[str, Any]:
        """The arguments of `denoise.network.Network`, in plain words, and how the state is shown."""
        return {
            "process": {"name": self.process.entry.name, **asdict(self.process)},  # type: ignore[call-overload]
            "predicts": "x0",
            "clock": "scaled",
            "steps_of_clock": self.clock,
            "nulls": {},
            "beside": {"name": "y", "spread": self.spread},
        }


def shown(process: Affine, x: Tensor, t: Tensor, y: Tensor, spread: float) -> Tensor:
    """What the network sees, (B, 2 C, H, W): the state at about the size of pictures, and y."""
    scale = 1 / (process.c(t) ** 2 + spread**2).sqrt()
    return torch.cat([combine((scale, x)), y], 1)
