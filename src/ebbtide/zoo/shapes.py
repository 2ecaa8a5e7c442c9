"""Solids on a plane, seen from above: how high they stand, and how they look in a light from the side.

    height    z(p) = max_k h_k(|p - c_k|),   0 where there is none           domes, cones and drums of radius r:
              dome sqrt(r^2 - d^2),  cone r - d,  drum 0.8 r                 a drum has a wall, and so an edge, all around
    picture   albedo_k (0.15 + 0.85 max(0, n . l)),  n the normal of what is on top,  l the light, always the same

Every scene is a function of its number, so there is nothing to download and nothing to keep. Brightness is also paint, so
height cannot be read off a pixel: it takes the whole solid.

Shapes   pairs (n, 2, 1, S, S) float32 in [-1, 1]: the height and the picture
Source   Lambert's law; the task is that of monocular depth, as in Ke et al. 2024, "Marigold" (arXiv 2312.02145)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ebbtide.core.key import Noise, fold, keys

LIGHT = (0.55, -0.35, 0.7586)
TALL = 1.3


@dataclass(frozen=True)
class Shapes:
    """Scenes.

    size     S, pixels a side
    count    how many scenes there are
    solids   how many stand in each
    """

    size: int = 20
    count: int = 100_000
    solids: int = 3
    seed: int = 0

    @property
    def digest(self) -> str:
        """sha256 of what makes them."""
        return hashlib.sha256(repr(("shapes", self.size, self.count, self.solids, self.seed)).encode()).hexdigest()

    @property
    def pixels(self) -> Tensor:
        """A few of the heights, (8, 1, S, S)."""
        return self.rows(torch.arange(8))[0][:, 0]

    def __len__(self) -> int:
        return self.count

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The scenes `index` (n,), heights and pictures; there are no labels."""
        noise = Noise(fold(keys([self.seed]), index), torch.zeros(len(index), dtype=torch.int64))
        u = noise.uniform((len(index), self.solids, 5)).float()
        place, r, kind, paint = (
            u[..., :2] * 1.5 - 0.75,
            0.3 + 0.4 * u[..., 2],
            (u[..., 3] * 3).long(),
            0.45 + 0.55 * u[..., 4],
        )
        line = (torch.arange(self.size) + 0.5) * (2 / self.size) - 1
        off = torch.stack(torch.meshgrid(line, line, indexing="xy")) - place[..., None, None]
        r, paint, kind = (v[..., None, None] for v in (r, paint, kind))
        d = off.square().sum(2).sqrt()
        dome = (r**2 - d**2).clamp_min(1e-6).sqrt()
        height = torch.where(kind == 0, dome, torch.where(kind == 1, r - d, 0.8 * r))
        steep = torch.where(kind == 0, 1 / dome, torch.where(kind == 1, 1 / d.clamp_min(1e-6), 0.0))
        up = 1 / (1 + (steep * d) ** 2).sqrt()
        light = torch.tensor(LIGHT)
        side = (off * light[:2, None, None]).sum(2) * steep
        bright = paint * (0.15 + 0.85 * (up * (side + light[2])).clamp_min(0))
        height = torch.where(d < r, height, -1.0)
        top, which = height.max(1)
        bare = top < 0
        shade = torch.where(bare, 0.7 * (0.15 + 0.85 * light[2]), bright.gather(1, which[:, None])[:, 0])
        both = torch.stack([top.clamp_min(0) * (2 / TALL * 1.8) - 1, shade * 2 - 1], 1)
        return both.clamp(-1, 1)[:, :, None], None


def edges(height: Tensor, step: float = 0.5) -> Tensor:
    """Where heights (n, 1, S, S) change by more than `step` within 3 x 3 pixels: the bands around walls, boolean."""
    pool = torch.nn.functional.max_pool2d
    return pool(height, 3, 1, 1) + pool(-height, 3, 1, 1) > step
