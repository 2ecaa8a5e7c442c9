"""Pictures in memory, read block by block, and softmax averages over them that neither blocks nor neighbours change.

Pixels lie one a row in the type they came in, so a receptive field is some rows of a block, and one matrix product.

    mean = sum_b e^(L_b - L) mean_b,   L_b = log sum_k e^(logit_k) over block b,   L = log sum_b e^(L_b)

Source   the running softmax: Milakov, Gimelshein 2018, "Online normalizer calculation for softmax" (arXiv 1805.02867)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ebbtide.core.errors import EbbError

_ALIGN = 16
T = TypeVar("T")
V = TypeVar("V")


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
        for span in self.blocks((0, len(data))):
            total += self.read(span)[:, : span[1] - span[0]].sum(1)
        self.mean = total / len(data)

    def blocks(self, span: tuple[int, int]) -> list[tuple[int, int]]:
        """The blocks of a span of columns, each a span itself."""
        return [(k, min(k + self.block, span[1])) for k in range(*span, self.block)]

    def read(self, span: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
        """The pictures of a span of columns less the mean of all, (P, K), filled up with zeros: see `fours`."""
        y = self.rows[:, slice(*span)].to(dtype, copy=True)
        y.mul_(self.scale).sub_((self.mean + self.shift).to(dtype)[:, None])
        spare = -y.shape[1] % _ALIGN
        return pad(y, (0, spare)) if spare else y

    def averages(
        self, span: tuple[int, int], dtype: torch.dtype, work: Callable[[Tensor, int], list[Average]]
    ) -> list[Average]:
        """The averages over a span of what `work` makes of each block, (P, K), of which `live` columns are pictures.

        Blocks are shared out among threads and put together in order, so the bits do not depend on how many there are.
        """
        blocks = self.blocks(span)
        total: list[Average] = []
        for found in spread(lambda block: work(self.read(block, dtype), block[1] - block[0]), blocks):
            total = [old.merge(new) for old, new in zip(total, found, strict=True)] if total else found
        return total

    def covariance(self) -> Tensor:
        """The covariance of all pictures (divided by N), (P, P) float64."""
        total = torch.zeros(len(self.rows), len(self.rows), dtype=torch.float64, device=self.rows.device)
        for span in self.blocks((0, self.rows.shape[1])):
            y = self.read(span)
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


class Average(NamedTuple):
    """M means weighted by softmaxes: `log` (M,), the log of the sum of the weights, and `mean` (M, G)."""

    log: Tensor
    mean: Tensor

    @staticmethod
    def of(logits: Tensor, live: int, *values: Tensor) -> Average:
        """Over a block: logits (M, K), which are written over, and values (G, K); the first `live` columns count."""
        if live < logits.shape[1]:
            logits[:, live:] = -torch.inf
        p = logits.softmax(-1)
        # log sum exp without a second pass of exponentials: the largest weight is exp(largest - it)
        return Average(logits.amax(-1) - p.amax(-1).log(), torch.cat([p @ v.T for v in values], 1))

    def merge(self, other: Average) -> Average:
        """Over what both are over.

        By logsumexp, as logaddexp rounds by the place in a row, and without softmax, which calls all threads however
        small its work.
        """
        both = torch.stack([self.log, other.log], 1)
        log = both.logsumexp(1)
        mine, its = (both - log[:, None]).exp().split(1, 1)
        return Average(log, mine * self.mean + its * other.mean)


def spread(work: Callable[[T], V], items: Sequence[T]) -> Iterator[V]:
    """work(item) for each in order, by as many threads as torch may use, while torch itself uses one.

    Threads within small operations wait for each other at every one of them; where another program holds a core, that
    takes ten times as long (measured). The number of torch's threads is put back at the end.
    """
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    if min(threads, len(items)) < 2:
        yield from map(work, items)
        return
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(min(threads, len(items)), "block", torch.set_grad_enabled, (grad,)) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(threads)


def fours(index: Tensor) -> Tensor:
    """The index, its last entry repeated until the length is a multiple of 4.

    Matrix products choose their inner loop by the size, and odd sizes round differently. Multiples of 4 rows and 16
    columns all take the same one (measured with MKL), so that the bits of a row do not depend on its neighbours.
    """
    return torch.cat([index, index[-1:].expand(-len(index) % 4)])
