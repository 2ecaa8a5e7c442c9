"""The local data denoiser: every pixel averages the pictures by how well they fit inside its own receptive field.

    M_in = 1 where |W_in| >= threshold max_n |W_in|,   W the Wiener filter of the data at that time
    D_ki = sum_n M_in (x_n - a x0_kn)^2 / (2 c^2 temperature)
    x0_i = sum_k softmax_k(-D_ki) x0_ki

Windows narrow as the noise falls, so that parts of many pictures are put together into new ones. Threshold 0 opens them
all: that is the exact posterior mean, which repeats the data.

Shapes   as in `denoise.data`; `tile` x `tile` pixels with all their channels may share a window and the weights
Paper    Lukoianov et al. 2025, "Locality in image diffusion models emerges from data statistics" (arXiv 2509.09672)
Differs  the threshold is relative to the largest entry of each row. The public code takes the largest of the matrix,
         which in digits is set by one corner pixel that hardly ever varies (32 times its diagonal) and shuts all other
         windows; it also reads columns for rows, and lets each batch of pictures vote alike in place of one softmax.
         A pixel always sees itself. Tiles wider than 1 are ours: cheaper, not exact (see `Local`).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.denoise.data import Average, OfData, Wiener
from ebbtide.process.affine import Affine

_SIDES = (8, 4, 2, 1)
_SHARP = 0.03

Tiles: TypeAlias = "list[Tensor] | list[Tiles]"


class Group(NamedTuple):
    """Neighbours (T of them: tiles, or groups again), and what they read beyond that which all of them read.

    Windows of neighbours are much alike. What all members of a group read is read once, by the group above, so the cost
    of a tile is what it does not share: on digits a half to a tenth of its window.

    see      (U,) the pixels that some member reads
    query    (T R, U) what to multiply them with, 0 where a member does not read
    norm     (T, U) and what to multiply their squares with
    give     (G,) the pixels that the tiles answer
    average  collects the answers (T R, G)
    """

    see: Tensor
    query: Tensor
    norm: Tensor
    parts: list[Group]
    give: Tensor
    tile: Tensor
    average: Average


class Local(OfData):
    """The local data denoiser.

        Local(process, data, labels=None, tile=1, mask_threshold=0.02, temperature=1.0, block=2048)

    Windows come from the covariance of all pictures, whatever the label. Rows at one time are answered in one pass.
    """

    def __init__(
        self,
        process: Affine,
        data: Tensor,
        labels: Tensor | None = None,
        tile: int = 1,
        mask_threshold: float = 0.02,
        temperature: float = 1.0,
        block: int = 2048,
    ) -> None:
        super().__init__(process, data, labels, block)
        if tile < 1 or not 0 <= mask_threshold <= 1 or temperature <= 0:
            raise EbbError("a tile is at least 1 pixel wide, a mask threshold in 0 to 1, a temperature above 0.")
        self.mask_threshold, self.temperature = mask_threshold, temperature
        self.wiener = Wiener(process, self.bank.mean.reshape(self.bank.shape), self.bank.covariance())
        self.alive = self.wiener.covariance.diagonal() > 0
        place = torch.arange(len(self.alive), device=self.alive.device).reshape(self.bank.shape)
        self.tiles = self._tiles(place, [side * tile for side in _SIDES])

    def _tiles(self, place: Tensor, sides: list[int]) -> Tiles:
        """Squares of squares of ... tiles (pixel numbers); tiles that never vary in the data are left out."""
        if not sides:
            return place.flatten() if bool(self.alive[place].any()) else []
        squares = [square for row in place.split(sides[0], 1) for square in row.split(sides[0], 2)]
        return [part for square in squares if len(part := self._tiles(square, sides[1:]))]

    def mask(self, a: Tensor, c: Tensor) -> Tensor:
        """M, (P, P) boolean, for a and c of one picture, (P,): row i is the receptive field of pixel i."""
        w = self.wiener.gain(a, c).abs()
        return (w >= self.mask_threshold * w.amax(1, keepdim=True)).fill_diagonal_(True)

    def answer(self, y: Tensor, a: Tensor, c: Tensor, span: tuple[int, int]) -> dict[str, Tensor]:
        mean = torch.zeros_like(y)
        times, which = torch.cat([a, c], 1).unique(dim=0, return_inverse=True)
        for k, one in enumerate(times):
            own = (which == k).nonzero()[:, 0]
            mean = mean.index_copy(0, own, self._at(y[own], *one.chunk(2), span))
        return {"mean": mean}

    def _at(self, y: Tensor, a: Tensor, c: Tensor, span: tuple[int, int]) -> Tensor:
        """The answer (R, P) to rows that share a and c (P,)."""
        scale = 1 / (c**2 * self.temperature)
        linear, half = a * scale * y, a**2 * scale / 2
        sharp = float(half.max()) * torch.finfo(torch.float32).eps > _SHARP
        dtype = torch.float64 if sharp else torch.float32
        mask, bottom = self.mask(a, c), []

        def share(tiles: Tiles) -> tuple[Tensor, Group]:
            """A group, and what all of it reads."""
            if isinstance(tiles[0], Tensor):
                reads = torch.stack([mask[pixels].double().mean(0) >= 0.5 for pixels in tiles])
                parts=[]
            else:
                cores, parts = zip(*map(share, tiles), strict=True)
                reads = torch.stack(cores)
            core = reads.all(0)
            group = make(reads & ~core, list(parts), tiles)
            return core, group

        def make(reads, parts, tiles):
            see = reads.any(0).nonzero()[:, 0]
            reads = reads[:, see]
            query = (linear[:, see] * reads[:, None]).flatten(0, 1).to(dtype)
            norm=(reads*half[see]).to(dtype)
            if parts: give=tile=see[:0]
            else:
                give=torch.cat(tiles)
                tile=torch.cat([torch.full_like(p,k) for k,p in enumerate(tiles)])
            group= Group(see, query, norm, parts, give, tile, Average())
            if not parts: bottom.append(group)
            return group

        core, top = share(self.tiles)
        root = make(core[None], [top], None)

        def read(group: Group, above: Tensor, x0: Tensor, square: Tensor) -> None:
            logits = (group.query @ x0.index_select(0,group.see)).unflatten(0, (-1, len(y)))
            logits.sub_((group.norm @ square.index_select(0,group.see))[:, None])
            if above is not None: logits.add_(above)
            if group.parts:
                for part, one in zip(group.parts, logits, strict=True):
                    read(part, one, x0, square)
            else:
                group.average.add(logits.flatten(0, 1), x0[group.give])

        for x0 in self.bank.blocks(span, dtype):
            read(root, None, x0, x0.square())
        out = torch.zeros_like(y)
        for g in bottom:
            mean = g.average.mean.reshape(len(g.norm), len(y), -1)
            out[:, g.give] = mean[g.tile, :, torch.arange(len(g.give))].T.to(out)
        return out
