"""Annotating: predict what a picture shows, its depth say, in one step at the one time that is ever used.

    f([eps, picture], T, annotate) -> y                 loss = |f - y|^2 + w |f([eps, picture], T, reconstruct) - picture|^2

The target is the clean annotation, not the noise in it: where everything is noise an error in eps is divided by a(T) on its way
to y, which shows as annotations that differ from seed to seed. With the target y nothing is left for further steps to do.
The second term, the detail preserver, asks the same network for its own input under another label, so that fine structure
is not thrown away on the way.

Shapes   pairs (B, 2, C, H, W): y and the picture, in [-1, 1]; f says (B, C, H, W)
Paper    He et al. 2024, "Lotus: diffusion-based visual foundation model for high-quality dense prediction" (arXiv 2409.18124),
         sections 4.1 to 4.4 (G shows noise, D none)
Off      reconstruct = 0 is without the detail preserver.
Differs  trained from nothing, as there is no picture model of this size to start from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebbtide.core.key import Noise
from ebbtide.learn.restoring import Restoring
from ebbtide.process.affine import Affine
from ebbtide.process.flow import Flow
from ebbtide.process.gaussian import VPLinear

ANNOTATE, RECONSTRUCT = 0, 1


@dataclass(frozen=True)
class Annotating:
    """The loss of a one-step predictor.

    shown         whether it is shown noise beside the picture (Lotus-G), or zeros (Lotus-D)
    reconstruct   the weight of the detail preserver
    """

    shown: bool = True
    reconstruct: float = 1.0
    clock: float = 1000.0

    def loss(self, network: nn.Module, pairs: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The mean squared error over a batch of pairs (B, 2, C, H, W); `noise` has B keys, labels are not looked at."""
        y, picture = pairs.unbind(1)
        eps = noise.normal(y) if self.shown else torch.zeros_like(y)
        out = (self.said(network, eps, picture, ANNOTATE) - y).square().mean()
        if self.reconstruct == 0:
            return out
        return out + self.reconstruct * (self.said(network, eps, picture, RECONSTRUCT) - picture).square().mean()

    def said(self, network: nn.Module, eps: Tensor, picture: Tensor, task: int) -> Tensor:
        """What the network answers under a task, (B, C, H, W)."""
        n = len(picture)
        label, at = torch.full((n,), task, device=picture.device), picture.new_full((n,), self.clock)
        out: Tensor = network(torch.cat([eps, picture], 1), at, class_labels=label).sample
        return out

    def about(self) -> dict[str, Any]:
        """A flow that is asked at its first time alone."""
        return {
            "process": {"name": Flow().entry.name},
            "predicts": "x0",
            "clock": "scaled",
            "steps_of_clock": self.clock,
            "nulls": {},
            "beside": {"name": "picture", "once": True, "shown": self.shown, "task": ANNOTATE},
        }


@dataclass(frozen=True)
class Diffusing(Restoring):
    """The many-step way to the same: predict the noise in an annotation from noise, the picture beside it."""

    kind: ClassVar[str] = "eps"
    process: Affine = field(default_factory=VPLinear)
    task: int = ANNOTATE

    def loss(self, network: nn.Module, pairs: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        x0, picture = pairs.unbind(1)
        t = self.times(noise)
        x: Any = self.process.corrupt(x0, t, noise, {})
        label = torch.full((len(x0),), self.task, device=x0.device)
        out: Tensor = network(torch.cat([x, picture], 1), (t * self.clock).to(x), class_labels=label).sample
        return (out - self.process.from_x0(self.kind, x0, x, t, {})).square().mean()

    def about(self) -> dict[str, Any]:
        beside = {"name": "picture", "task": self.task}
        return {**super().about(), "predicts": self.kind, "beside": beside}
