"""The local data denoiser: every pixel averages the pictures by how well they fit inside its own receptive field.

    M_in = 1 where |W_in| >= threshold max_n |W_in|,   W the Wiener filter of the data at that time
    D_ki = sum_n M_in (x_n - a x0_kn)^2 / (2 c^2 temperature)
    x0_i = sum_k softmax_k(-D_ki) x0_ki

Windows narrow as the noise falls, so that parts of many pictures are put together into new ones. Threshold 0 opens them
all: that is the exact posterior mean, which repeats the data.

Shapes   as in `denoise.data`; `tile` x `tile` pixels with all their channels may share one window and its weights
Cost     2 R N multiplications for every pixel that a tile reads and its neighbours do not: see `Group`
Paper    Lukoianov et al. 2025, "Locality in image diffusion models emerges from data statistics" (arXiv 2509.09672)
Differs  the threshold is relative to the largest entry of each row. The public code takes the largest of the matrix,
         which in digits is set by one corner pixel that hardly ever varies (32 times its diagonal) and shuts all other
         windows; it also reads columns for rows, and lets each batch of pictures vote alike in place of one softmax.
         A pixel always sees itself. Tiles wider than 1 are ours: cheaper, not exact (see `Local`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.denoise.bank import Average
from ebbtide.denoise.data import OfData, Wiener
from ebbtide.process.affine import Affine

_SIDES = (4, 2, 1)
# Where rounding moves logits by more than this for every unit of squared distance, float64 takes over: c < 0.11 a.
# Below it pixels of digits are off by 7e-5 at the very most and 5e-6 in the mean (1/100 and 1/1500 of a grey level).
_SHARP = 5e-6


class Group(NamedTuple):
    """Neighbours: T tiles, or T groups again, and what some of them read while others do not.

    Windows of neighbours are much alike. What all members read is left to the group above, to be read once for all of
    them: on digits a pixel then costs a third of its window.

    parts    the members, if groups
    tiles    the members, if tiles: the pixels (G,) of each
    see      (U,) the pixels that any member reads
    query    (T R, U) a x_n / (c^2 temperature) where it does, 0 elsewhere
    norm     (T, U) a^2 / (2 c^2 temperature) likewise
    """

    parts: list[Group]
    tiles: list[Tensor]
    see: Tensor
    query: Tensor
    norm: Tensor

    @staticmethod
    def of(reads: Tensor, parts: list[Group], tiles: list[Tensor], linear: Tensor, half: Tensor) -> Group:
        """A group whose members read these pixels, (T, P), for rows with these factors, (R, P) and (P,)."""
        see = reads.any(0).nonzero()[:, 0]
        reads = reads[:, see]
        query = (linear[:, see] * reads[:, None]).flatten(0, 1)
        return Group(parts, tiles, see, query, half[see] * reads)

    @staticmethod
    def tree(tiles: list[Any], windows: Tensor, linear: Tensor, half: Tensor) -> tuple[Group, Tensor]:
        """The group of lists of lists of ... tiles, and what all of it reads, (P,)."""
        parts: list[Group] = []
        if isinstance(tiles[0], Tensor):
            # most, not any: that would be twice the cost, and farther from single pixels
            reads = torch.stack([(2 * windows[tile].sum(0) > len(tile)).index_fill(0, tile, True) for tile in tiles])
        else:
            below = [Group.tree(part, windows, linear, half) for part in tiles]
            parts, reads, tiles = [group for group, _ in below], torch.stack([core for _, core in below]), []
        core = reads.all(0)
        return Group.of(reads & ~core, parts, tiles, linear, half), core

    def read(self, x0: Tensor, square: Tensor, live: int, above: Tensor) -> list[Average]:
        """The averages (T R, G) of all groups of tiles, over a block of pictures and their squares (P, K).

        above   the logits (R, K) of what was read above
        """
        logits = (self.query @ x0.index_select(0, self.see)).unflatten(0, (len(self.norm), -1))
        logits.sub_((self.norm @ square.index_select(0, self.see))[:, None]).add_(above)
        if self.tiles:
            return [Average.of(logits.flatten(0, 1), live, x0.index_select(0, torch.cat(self.tiles)))]
        below = [part.read(x0, square, live, one) for part, one in zip(self.parts, logits, strict=True)]
        return [average for part in below for average in part]

    def answers(self, averages: Iterator[Average]) -> Iterator[tuple[Tensor, Tensor]]:
        """The pixels (G,) of every tile, and their means (R, G), from what was read."""
        for part in self.parts:
            yield from part.answers(averages)
        if self.tiles:
            means = next(averages).mean.unflatten(0, (len(self.tiles), -1))
            own = means.split([len(tile) for tile in self.tiles], -1)
            yield from ((tile, own[k][k]) for k, tile in enumerate(self.tiles))


class Local(OfData):
    """The local data denoiser.

        Local(process, data, labels=None, tile=2, mask_threshold=0.02, temperature=1.0, block=2048)

    Windows come from the covariance of all pictures, whatever the label. Rows at one time are answered in one pass.

    A tile of `tile` x `tile` pixels reads itself and what most of its pixels read. 1 is the paper, 2 takes a third of the
    time. Against 60,000 digits, at t = 0.7, 0.5, 0.3, 0.1 of a flow, tiles of 2 differ from single pixels by 0.15, 0.13,
    0.08, 0.03 (root mean square, pixels in -1 to 1), while both are 0.34, 0.23, 0.12, 0.04 from the clean picture and
    neither is nearer; tiles of 4 are farther from it below t = 0.5.

    Raises EbbError for parameters out of range, and what `OfData` raises.
    """

    one_time = True

    def __init__(
        self,
        process: Affine,
        data: Tensor,
        labels: Tensor | None = None,
        tile: int = 2,
        mask_threshold: float = 0.02,
        temperature: float = 1.0,
        block: int = 2048,
    ) -> None:
        if tile < 1 or not 0 <= mask_threshold <= 1 or temperature <= 0:
            raise EbbError("a tile is at least 1 pixel wide, a mask threshold in 0 to 1, a temperature above 0.")
        super().__init__(process, data, labels, block)
        self.mask_threshold, self.temperature = mask_threshold, temperature
        covariance = self.bank.covariance()
        self.wiener = Wiener(process, self.bank.mean.reshape(self.bank.shape), covariance)
        spread = covariance.diagonal()
        self.alive = spread > 1e-12 * spread.max()
        place = torch.arange(len(spread), device=spread.device).reshape(self.bank.shape)
        self.tiles = self._tiles(place, [side * tile for side in _SIDES])

    def _tiles(self, place: Tensor, sides: list[int]) -> list[Any]:
        """Squares of squares of ... tiles: the pixels of each. Those that never vary in the data are left out."""
        squares = [square for row in place.split(sides[0], 1) for square in row.split(sides[0], 2)]
        if len(sides) > 1:
            return [part for square in squares if (part := self._tiles(square, sides[1:]))]
        deep = 1 if sides[0] == 1 else len(place)
        tiles = [tile.flatten() for square in squares for tile in square.split(deep)]
        return [tile for tile in tiles if bool(self.alive[tile].any())]

    def windows(self, a: Tensor, c: Tensor) -> Tensor:
        """M, (P, P) boolean, for a and c of one picture, (P,): row i is the receptive field of pixel i."""
        w = self.wiener.gain(a.cpu(), c.cpu()).abs().to(a.device)
        return (w >= self.mask_threshold * w.amax(1, keepdim=True)).fill_diagonal_(True)

    def answer(self, y: Tensor, a: Tensor, c: Tensor, span: tuple[int, int]) -> dict[str, Tensor]:
        mean = torch.zeros_like(y)
        if self.tiles:
            noise = c[0] ** 2 * self.temperature
            linear, half = a * y / noise, a[0] ** 2 / (2 * noise)
            sharp = float(half.max()) * torch.finfo(torch.float32).eps > _SHARP
            dtype = torch.float64 if sharp else torch.float32
            linear, half = linear.to(dtype), half.to(dtype)
            top, core = Group.tree(self.tiles, self.windows(a[0], c[0]), linear, half)
            root = Group.of(core[None], [top], [], linear, half)
            start = torch.zeros((), dtype=dtype, device=y.device)
            averages = self.bank.averages(span, dtype, lambda x0, live: root.read(x0, x0.square(), live, start))
            for pixels, own in root.answers(iter(averages)):
                mean = mean.index_copy(1, pixels, own.to(mean))
        return {"mean": mean}
