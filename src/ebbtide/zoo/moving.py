"""Moving pictures to learn video from: each clip is a picture that travels through a small square and bounces off its sides.

    p_f = tri(p_0 + f v; d),   tri(u; d) = d - |d - (u mod 2 d)|

A clip is drawn when it is asked for, from its own key: start p_0 uniform over the free way d, direction uniform, speed |v|
uniform in 0.5..2 pixels a frame. Positions are not whole, pixels are interpolated. The outer seventh of a picture, which is
empty in MNIST, may leave the square. The label is the picture's.

Shapes   clips (n, F, C, S, S) float32 in [-1, 1], labels (n,)
Source   Srivastava, Mansimov, Salakhutdinov 2015, "Unsupervised learning of video representations using LSTMs" (arXiv
         1502.04681), where moving digits come from
Differs  one digit, so that a clip has a class, in 24 x 24 pixels where the paper has two in 64 x 64.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, fold, keys
from ebbtide.zoo.data import Pictures, load_pictures

SLOW, FAST = 0.5, 2.0


@dataclass(frozen=True)
class Moving:
    """Clips of travelling pictures.

    pictures   what travels, smaller than the square
    size       S, the side of the square
    frames     F
    repeats    how many clips each picture is shown in; no two move alike
    seed       of all motion
    digest     sha256 of all of these
    """

    pictures: Pictures
    size: int = 24
    frames: int = 16
    repeats: int = 10
    seed: int = 0
    digest: str = field(default="")

    def __post_init__(self) -> None:
        high, wide = self.pictures.pixels.shape[-2:]
        if high != wide or self.way <= 0:
            raise EbbError(f"pictures of {high} x {wide} cannot move in a square of {self.size}: make them smaller.")
        if self.frames < 1 or self.repeats < 1:
            raise EbbError(
                f"clips of {self.frames} frames, {self.repeats} a picture, are none; give at least 1 of each."
            )
        if not self.digest:
            said = repr((self.pictures.digest, self.size, self.frames, self.repeats, self.seed))
            object.__setattr__(self, "digest", hashlib.sha256(said.encode()).hexdigest())

    @property
    def margin(self) -> int:
        """How many pixels of a picture may leave the square."""
        return self.pictures.pixels.shape[-1] // 7

    @property
    def way(self) -> int:
        """How far a picture can travel along each side, in pixels."""
        return self.size - self.pictures.pixels.shape[-1] + 2 * self.margin

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, where the pictures have any."""
        return self.pictures.names

    @property
    def labels(self) -> Tensor | None:
        """Of every clip, (N,)."""
        return None if self.pictures.labels is None else self.pictures.labels.repeat(self.repeats)

    def __len__(self) -> int:
        return len(self.pictures) * self.repeats

    def places(self, index: Tensor) -> Tensor:
        """Where the pictures of the clips `index` (n,) stand: (n, F, 2), x and y of their corners, float64."""
        u = Noise(fold(keys([self.seed]), index), torch.zeros(len(index), dtype=torch.int64)).uniform((len(index), 4))
        turn = 2 * torch.pi * u[:, 2]
        step = torch.stack([turn.cos(), turn.sin()], 1) * (SLOW + (FAST - SLOW) * u[:, 3:])
        gone = u[:, :2] * self.way + torch.arange(self.frames, dtype=torch.float64)[:, None, None] * step
        return (self.way - (self.way - gone.remainder(2 * self.way)).abs()).movedim(0, 1) - self.margin

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The clips `index` (n,), (n, F, C, S, S) float32 in [-1, 1], and their labels."""
        x, labels = self.pictures.rows(index % len(self.pictures))
        n, channels, side = x.shape[:3]
        place = self.places(index).flatten(0, 1).float()
        line = torch.arange(self.size) + 0.5
        across, down = ((line - place[:, axis, None]) * (2 / side) - 1 for axis in (0, 1))
        wide = (self.size, self.size)
        grid = torch.stack([across[:, None].expand(-1, *wide), down[..., None].expand(-1, *wide)], -1)
        moved = grid_sample((x + 1).repeat_interleave(self.frames, 0), grid, align_corners=False)
        return (moved - 1).reshape(n, self.frames, channels, *wide), labels


def load_moving(
    path: str | Path, size: int = 24, frames: int = 16, split: str = "train", *, repeats: int = 10, seed: int = 0
) -> Moving:
    """Clips from pictures that `load_pictures` reads, made five sixths of the square wide: a digit of MNIST is 14 of 24.

    Raises EbbError as `load_pictures` does, and for a square of less than 8 pixels.
    """
    if size < 8:
        raise EbbError(f"pictures cannot be seen to move in {size} x {size} pixels; give at least 8.")
    pictures = load_pictures(path, size * 5 // 6, split)
    return Moving(pictures, size, frames, repeats, seed)
