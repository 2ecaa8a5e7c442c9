"""The local data denoiser: every pixel averages the pictures by how well they fit inside its own receptive field.

    M_t = |W_t| >= threshold max_n |W_t|,  row by row;   W_t the Wiener filter of the data at that time
    D_ki = sum_n M_in (x_n - a x0_kn)^2 / (2 c^2 temperature)
    x0_i = sum_k softmax_k(-D_ki) x0_ki

The window narrows as the noise falls, so strokes of many pictures are put together into new ones. M = 1 (threshold 0) is
the exact posterior mean, which repeats the data.

Shapes   as in `denoise.data`; tiles of `tile` x `tile` pixels, all channels, share one window and one set of weights
Cost     2 R N sum_tiles |window| operations a call: one matrix product for each patch of neighbouring tiles
Paper    Lukoianov et al. 2025, "Locality in image diffusion models emerges from data statistics" (arXiv 2509.09672)
Differs  the threshold is relative to the largest entry of each row. The public code takes the largest of the whole
         matrix, which on digits is set by one corner pixel that hardly varies (32 times its diagonal) and shuts every
         window, reads columns for rows, and gives each batch of pictures one vote in place of one softmax over all.
         Tiles (1 is the paper) trade exactness for speed; a window always holds its own pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.denoise.data import Average, OfData, Wiener
from ebbtide.process.affine import Affine

_PATCH = 4
_SHARP = 0.03


class Patch(NamedTuple):
    """Neighbouring tiles that are worked out together.

    give   (G,) the pixels they answer
    tile   (G,) which of the T tiles each belongs to
    mask   (T, P) what each tile reads, boolean
    see    (U,) the pixels that any of them reads
    """

    give: Tensor
    tile: Tensor
    mask: Tensor
    see: Tensor


class Local(OfData):
    """The local data denoiser.

        Local(process, data, labels=None, tile=2, mask_threshold=0.02, temperature=1.0, block=2048)

    Windows come from the covariance of all pictures, whatever the label. Rows at one time are answered in one pass.
    """

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
        super().__init__(process, data, labels, block)
        if tile < 1 or not 0 <= mask_threshold <= 1 or temperature <= 0:
            raise EbbError("a tile is at least 1 pixel wide, a mask threshold in 0 to 1, a temperature above 0.")
        self.mask_threshold, self.temperature = mask_threshold, temperature
        self.wiener = Wiener(process, self.bank.mean.reshape(self.bank.shape), self.bank.covariance())
        self.tiles = self._tiles(tile, max(1, _PATCH // tile) * tile)

    def _tiles(self, tile: int, patch: int) -> list[list[Tensor]]:
        """The pixels of every tile of every patch; tiles that never vary in the data are left out."""
        place = torch.arange(len(self.bank.mean), device=self.bank.mean.device).reshape(self.bank.shape)
        alive = self.wiener.covariance.diagonal() > 0
        out = []
        for row in place.split(patch, 1):
            for square in row.split(patch, 2):
                tiles = [part.flatten() for line in square.split(tile, 1) for part in line.split(tile, 2)]
                out.append([pixels for pixels in tiles if bool(alive[pixels].any())])
        return [tiles for tiles in out if tiles]

    def mask(self, a: Tensor, c: Tensor) -> Tensor:
        """M, (P, P) boolean, for a and c of one picture, (P,): row i is the receptive field of pixel i."""
        w = self.wiener.gain(a, c).abs()
        return (w >= self.mask_threshold * w.amax(1, keepdim=True)).fill_diagonal_(True)

    def patches(self, mask: Tensor) -> list[Patch]:
        """The patches under this mask: a tile reads what any of its pixels reads."""
        out = []
        for tiles in self.tiles:
            size = torch.tensor([len(pixels) for pixels in tiles], device=mask.device)
            reads = torch.stack([mask[pixels].any(0) for pixels in tiles])
            out.append(
                Patch(
                    torch.cat(tiles),
                    torch.arange(len(tiles)).to(size).repeat_interleave(size),
                    reads,
                    reads.any(0).nonzero()[:, 0],
                )
            )
        return out

    def answer(self, y: Tensor, a: Tensor, c: Tensor, span: tuple[int, int]) -> dict[str, Tensor]:
        mean = torch.zeros_like(y)
        times, which = torch.cat([a, c], 1).unique(dim=0, return_inverse=True)
        for k, one in enumerate(times):
            own = (which == k).nonzero()[:, 0]
            mean = mean.index_copy(0, own, self._at(y[own], *one.chunk(2), span))
        return {"mean": mean}

    def _at(self, y: Tensor, a: Tensor, c: Tensor, span: tuple[int, int]) -> Tensor:
        """The answer (R, P) to rows that share a and c (P,)."""
        precision = a**2 / (c**2 * self.temperature)
        patches = self.patches(self.mask(a, c))
        sharp = float(precision.max()) * torch.finfo(torch.float32).eps
        dtype = torch.float64 if sharp > _SHARP else torch.float32
        linear = torch.where(precision > 0, precision / a, 0) * y
        squares = torch.cat([p.mask for p in patches]).to(dtype) * (precision / 2).to(dtype)
        queries, averages = [], []
        for p in patches:
            read = linear[:, p.see] * p.mask[:, None, p.see]  # (T, R, U)
            minus = -torch.eye(len(p.mask)).to(read)[:, None].expand(-1, len(y), -1)
            queries.append(torch.cat([read, minus], 2).flatten(0, 1).to(dtype))
            averages.append(Average())
        for x0 in self.bank.blocks(span, dtype):
            norms = squares @ x0.square()
            start = 0
            for p, query, average in zip(patches, queries, averages, strict=True):
                norm = norms[start : start + len(p.mask)]
                start += len(norm)
                average.add(query @ torch.cat([x0[p.see], norm]), x0[p.give])
        out = torch.zeros_like(y)
        for p, average in zip(patches, averages, strict=True):
            mean = average.mean.reshape(len(p.mask), len(y), -1)  # (T, R, G)
            out[:, p.give] = mean[p.tile, :, torch.arange(len(p.give))].T.to(out)
        return out
