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
        if labels is None:
            raise EbbError(
                "a classifier learns from labels: give an .npz with labels, or a folder with a subfolder a class."
            )
        return nn.functional.cross_entropy(network(self.shifted(x0, noise)), labels)

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
