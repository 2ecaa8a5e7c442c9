"""Classification: cross entropy, on pictures shifted by a few pixels.

    loss = -mean log softmax(f(shift(x)))[y],   shift uniform on {-r..r}^2, keyed

Shapes   x (B, C, H, W) in [-1, 1], f(x) (B, classes), y (B,) int64.
Source   Simard, Steinkraus, Platt 2003, "Best practices for convolutional neural networks applied to visual document
         analysis", section 2 (translations)
Off      shift=0 shows the pictures as they are.
Differs  what a shift uncovers repeats the border of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise


@dataclass(frozen=True)
class Classification:
    """The loss of a network that says one logit a class, in nats."""

    shift: int = 2

    def loss(self, network: nn.Module, x0: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The mean cross entropy of a batch; `noise` has B keys. Raises EbbError for data without labels."""
        return nn.functional.cross_entropy(network(self.shifted(x0, noise)), _told(labels))

    def about(self) -> dict[str, Any]:
        """Logits, of clean pictures: no clock."""
        return {"predicts": "class"}

    def shifted(self, x: Tensor, noise: Noise) -> Tensor:
        """x with each row moved by its own whole number of pixels."""
        if self.shift == 0:
            return x
        n, r = len(x), self.shift
        by = (noise.uniform((n, 2), 1) * (2 * r + 1)).long() - r
        rows, cols = (
            (torch.arange(size) - by[:, axis, None]).clamp(0, size - 1) for axis, size in enumerate(x.shape[-2:])
        )
        return x[torch.arange(n)[:, None, None], :, rows[:, :, None], cols[:, None, :]].movedim(-1, 1)


@dataclass(frozen=True)
class Augmented(Classification):
    """The same on pictures that are moved, turned, mirrored, coloured, blurred and made noisy, each row in its own way.

        x(A^-1 p + d),  A a turn by up to `turn`, a zoom by exp(+-zoom), a mirror for half of the rows;  d up to `shift` pixels
        then, around the white that 1 is, a factor 1 +- colour a channel, b blur3(x) + (1 - b) x with b up to `blur`,
        and normal noise of a standard deviation up to `grain`

    A few pictures are learnt by heart otherwise. Targets are softened: the class has 1 - smooth + smooth / classes.

    Source   Simonyan, Zisserman 2014 (arXiv 1409.1556), section 3.1; Szegedy et al. 2015 (1512.00567), section 7 (smooth)
    """

    turn: float = 0.2
    zoom: float = 0.2
    colour: float = 0.15
    blur: float = 0.8
    grain: float = 0.15
    smooth: float = 0.1

    def loss(self, network: nn.Module, x0: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The mean cross entropy of a batch; `noise` has B keys. Raises EbbError for data without labels."""
        said = network(self.changed(x0, noise))
        return nn.functional.cross_entropy(said, _told(labels), label_smoothing=self.smooth)

    def changed(self, x: Tensor, noise: Noise) -> Tensor:
        """x (B, C, H, W) with each row changed by its own draws."""
        n, channels, high, wide = x.shape
        u = (noise.uniform((n, 8), 2) * 2 - 1).to(x)
        angle, scale = u[:, 0] * self.turn, (u[:, 1] * self.zoom).exp()
        mirror = u[:, 2].sign()
        cos, sin = angle.cos() * scale, angle.sin() * scale
        move = u[:, 3:5] * 2 * self.shift / torch.tensor([wide, high]).to(x)
        rows = [torch.stack([cos * mirror, -sin, move[:, 0]], 1), torch.stack([sin * mirror, cos, move[:, 1]], 1)]
        grid = nn.functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        x = nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
        tint = (noise.uniform((n, channels), 3) * 2 - 1).to(x) * self.colour
        x = 1 + (x - 1) * (1 + tint[:, :, None, None])
        soft = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = x.lerp(soft, ((u[:, 5] + 1) / 2 * self.blur)[:, None, None, None])
        return x + noise.normal(x, 4) * ((u[:, 6] + 1) / 2 * self.grain)[:, None, None, None]


def _told(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise EbbError(
            "a classifier learns from labels: give an .npz with labels, or a folder with a subfolder a class."
        )
    return labels
