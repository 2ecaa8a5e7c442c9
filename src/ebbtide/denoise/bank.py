"""Pictures in memory, read block by block, and sums over them that no block size and no neighbour changes.

Pixels lie one a row in the type they came in, so a receptive field is some rows of a block and one matrix product.

    mean = sum_b e^(L_b - L) mean_b,   L_b = log sum_k e^(logit_k) of block b,   L = log sum_b e^(L_b)

Source   the running softmax: Milakov, Gimelshein 2018, "Online normalizer calculation for softmax" (arXiv 1805.02867)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from ebbtide.core.errors import EbbError

_ALIGN = 16


class Bank:
    """Pictures kept one pixel a row in the type they came in, sorted by label, read in blocks with their mean removed.

    data     (N, C, H, W): floats, -1 to 1, as they are, or uint8, whose 0 to 255 stands for -1 to 1
    labels   (N,) integers from 0 up, or None
    block    how many pictures are unpacked at once

    Raises EbbError for data that is no set of pictures and for labels that do not fit it.
    """

    def __init__(self, data: Tensor, labels: Tensor | None = None, block: int = 2048) -> None:
        if data.ndim != 4 or not data.numel() or not (data.is_floating_point() or data.dtype == torch.uint8):
            raise EbbError(f"give pictures (N, C, H, W) of floats or uint8, not {tuple(data.shape)} of {data.dtype}.")
        if labels is not None and (labels.shape != data.shape[:1] or labels.is_floating_point() or labels.min() < 0):
            raise EbbError(f"give every one of the {len(data)} pictures a label, an integer from 0 up.")
        if block < 1:
            raise EbbError(f"a block holds 1 picture or more, not {block}.")
        self.shape, self.block = data.shape[1:], block
        marks = torch.zeros(len(data), dtype=torch.int64) if labels is None else labels.cpu().long()
        self.classes = 0 if labels is None else int(marks.max()) + 1
        self.ends = [0, *marks.bincount().cumsum(0).tolist()]
        order = marks.argsort(stable=True).to(data.device)
        self.rows = data.new_empty((data[0].numel(), len(data)))
        for k in range(0, len(data), block):
            self.rows[:, k : k + block] = data[order[k : k + block]].flatten(1).T
        self.scale, self.shift = (1 / 127.5, 1.0) if data.dtype == torch.uint8 else (1.0, 0.0)
        self.mean = torch.zeros(len(self.rows), dtype=torch.float64, device=data.device)
        total = torch.zeros_like(self.mean)
        for y, live in self.blocks((0, len(data))):
            total += y[:, :live].sum(1)
        self.mean = total / len(data)

    def blocks(self, span: tuple[int, int], dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, int]]:
        """The pictures of a span of columns less the mean of all, (P, K) at a time, and how many of the K are pictures.

        K is a multiple of 16, the rest filled with zeros: see `fours`.
        """
        level = (self.mean + self.shift).to(dtype)[:, None]
        for k in range(*span, self.block):
            y = self.rows[:, k : min(k + self.block, span[1])].to(dtype, copy=True).mul_(self.scale).sub_(level)
            spare = -y.shape[1] % _ALIGN
            yield (pad(y, (0, spare)) if spare else y), y.shape[1]

    def covariance(self) -> Tensor:
        """The covariance of all pictures (divided by N), (P, P) float64."""
        total = torch.zeros(len(self.rows), len(self.rows), dtype=torch.float64, device=self.rows.device)
        for y, _ in self.blocks((0, self.rows.shape[1])):
            total.addmm_(y, y.T)
        return total / self.rows.shape[1]

    def span(self, label: int) -> tuple[int, int]:
        """The columns that hold one class; -1 and the number of classes stand for all of them.

        Raises EbbError for a label that no picture has.
        """
        if label == -1 or label == self.classes > 0:
            return 0, self.rows.shape[1]
        if not 0 <= label < self.classes or self.ends[label] == self.ends[label + 1]:
            known = f"0 to {self.classes - 1}, or -1 for any" if self.classes else "leave the label out"
            raise EbbError(f"no picture has the label {label}; {known}.")
        return self.ends[label], self.ends[label + 1]


class Average:
    """A mean weighted by a softmax that is taken block by block; the largest weight so far sets the scale."""

    def __init__(self) -> None:
        self.log = self.mean = torch.zeros(())

    def add(self, logits: Tensor, live: int, *values: Tensor) -> None:
        """Take in a block: logits (M, K) of M weightings, values (G, K), of which only the first `live` columns count."""
        if live < logits.shape[1]:
            logits[:, live:] = -torch.inf
        p = logits.softmax(-1)
        # log sum exp without a second pass of exponentials: the largest weight is exp(largest - it)
        log, mean = logits.amax(-1) - p.amax(-1).log(), torch.cat([p @ v.T for v in values], 1)
        if self.mean.ndim:
            # a softmax over both, as logaddexp rounds an entry by where it stands in the row
            both = torch.stack([self.log, log], 1)
            old, new = both.softmax(1).split(1, 1)
            log, mean = both.logsumexp(1), old * self.mean + new * mean
        self.log, self.mean = log, mean


def fours(index: Tensor) -> Tensor:
    """The index, its last entry repeated until the length is a multiple of 4.

    Matrix products choose their inner loop by the size, and odd sizes round differently. Multiples of 4 rows and 16
    columns all take the same one (measured with MKL), so that the bits of a row do not depend on its neighbours.
    """
    return torch.cat([index, index[-1:].expand(-len(index) % 4)])
