"""Denoisers of a data set itself: the exact posterior mean over given pictures, and the best linear one.

    Empirical   E[x0 | x_t] = sum_k w_k x0_k,   w = softmax_k(-|x_t - a x0_k|^2 / (2 c^2))
    Wiener      E[x0 | x_t] = m + S A (A S A + C^2)^-1 (x_t - a m),   m, S the mean and covariance of the data

The first is what a network trained to perfection on these pictures would answer; sampled to the end it repeats them. The
second is the best answer that is linear in x_t, exact for Gaussian data. A = diag(a), C = diag(c): units may differ in t.

Shapes   data (N, C, H, W), P = C H W numbers each; x (R, C, H, W); t (R,) or (R, *units), any mix of times
Paper    Karras et al. 2022 (arXiv 2206.00364), appendix B.3: the ideal denoiser of a finite data set;
         Lukoianov et al. 2025 (arXiv 2509.09672), section 4: the Wiener filter as a denoiser
Differs  noise is never taken below 1e-6, so at c = 0 the first answers the nearest picture; equally near ones share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred, Tree, tree_map
from ebbtide.core.time import right
from ebbtide.denoise.exact_gaussian import Gaussian
from ebbtide.process.affine import Affine

_FLOOR = 1e-6
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

        The last block is filled up with zeros to a multiple of 16: see `fours`.
        """
        level = (self.mean + self.shift).to(dtype)[:, None]
        for k in range(*span, self.block):
            y = self.rows[:, k : min(k + self.block, span[1])].to(dtype, copy=True).mul_(self.scale).sub_(level)
            yield pad(y, (0, -y.shape[1] % _ALIGN)), y.shape[1]

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

    def add(self, logits: Tensor, values: Tensor, live: int) -> None:
        """Take in a block: logits (M, K) of M weightings, values (G, K), of which only the first `live` columns count."""
        if live < logits.shape[1]:
            logits[:, live:] = -torch.inf
        p = logits.softmax(-1)
        # log sum exp without a second pass of exponentials: the largest weight is exp(largest - it)
        log, mean = logits.amax(-1) - p.amax(-1).log(), p @ values.T
        if self.mean.ndim:
            total = torch.logaddexp(self.log, log)
            mean = self.mean * (self.log - total).exp()[:, None] + mean * (log - total).exp()[:, None]
            log = total
        self.log, self.mean = log, mean


class OfData(Denoiser):
    """What denoisers of a data set share: rows in, classes told apart, pixels in one row, the mean picture removed.

    one_time   whether the rows that are answered together must share their times
    """

    one_time = False

    def __init__(self, process: Affine, data: Tensor, labels: Tensor | None = None, block: int = 2048) -> None:
        self.process: Affine = plain(process)
        self.bank = Bank(data, labels, block)

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        """-1, any class, for the condition "label" of data that has labels."""
        return torch.full_like(leaf, -1) if name == "label" and self.bank.classes else None

    def __call__(self, x: Tree, t: Tensor, cond: Mapping[str, Tree]) -> Pred:
        """E[x0 | x_t] at each row's own time, among the pictures of its label if `cond` has one.

        Raises EbbError for a label that no picture has and for x of another shape.
        """
        y, a, c = rows(self.process, x, t, self.bank.shape, self.bank.mean)
        assert isinstance(x, Tensor)
        label = cond.get("label")
        label = label.reshape(len(y)) if isinstance(label, Tensor) else torch.full((len(y),), -1)
        kind = [label.to(y)[:, None], *((a, c) if self.one_time else ())]
        kinds, which = torch.cat(kind, 1).unique(dim=0, return_inverse=True)
        answer: dict[str, Tensor] = {}
        for k, one in enumerate(kinds):
            own = (which == k).nonzero()[:, 0]
            all_four = fours(own)
            for name, part in self.answer(y[all_four], a[all_four], c[all_four], self.bank.span(int(one[0]))).items():
                answer[name] = answer.get(name, torch.zeros_like(y)).index_copy(0, own, part[: len(own)])
        answer["mean"] = answer["mean"] + self.bank.mean
        return Pred(**{k: v.reshape(x.shape).to(x) for k, v in answer.items()})

    def answer(self, y: Tensor, a: Tensor, c: Tensor, span: tuple[int, int]) -> dict[str, Tensor]:
        """The fields of a `Pred`, all (R, P) float64, for y = x - a m; the mean less m."""
        raise NotImplementedError


def fours(index: Tensor) -> Tensor:
    """The index, its last entry repeated until the length is a multiple of 4.

    Matrix products choose their inner loop by the size, and odd sizes round differently. Multiples of 4 rows and 16
    columns all take the same one (measured with MKL), so that the bits of a row do not depend on its neighbours.
    """
    return torch.cat([index, index[-1:].expand(-len(index) % 4)])


def plain(process: Affine) -> Affine:
    """The process, if x_t is data and noise alone. Raises EbbError for one with a far end y."""
    if process.ended:
        raise EbbError("a denoiser of a data set needs a process without a far end: use a Gaussian diffusion or flow.")
    return process


def rows(process: Affine, x: Tree, t: Tensor, shape: torch.Size, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y = x - a m, a and c, all (R, P) float64 on the device of `mean`; c at least 1e-6.

    Raises EbbError when x is not shaped like the pictures.
    """
    if not isinstance(x, Tensor) or x.shape[1:] != shape:
        got = tuple(x.shape[1:]) if isinstance(x, Tensor) else "a dict"
        raise EbbError(f"this denoiser knows pictures of shape {tuple(shape)}, not {got}.")

    def wide(w: Tensor) -> Tensor:
        return right(w, x).expand(x.shape).flatten(1).to(mean.device)

    a, c = wide(process.a(t)), wide(process.c(t).clamp_min(_FLOOR))
    return x.to(mean).flatten(1) - a * mean, a, c


class Empirical(OfData):
    """The exact posterior mean and variance over the pictures, in float64.

        Empirical(process, data, labels=None, block=2048)

    Rows may mix times: all of a label are answered in one pass over the data.
    """

    def answer(self, y: Tensor, a: Tensor, c: Tensor, span: tuple[int, int]) -> dict[str, Tensor]:
        linear, half = a * y / c**2, a**2 / (2 * c**2)
        average = Average()
        for x0, live in self.bank.blocks(span):
            square = x0.square()
            average.add(linear @ x0 - half @ square, torch.cat([x0, square]), live)
        mean, second = average.mean.chunk(2, 1)
        return {"mean": mean, "var": (second - mean**2).clamp_min(0)}


class Wiener(Gaussian):
    """The best linear denoiser of data with this mean (C, H, W) and covariance (P, P), decomposed once.

        Wiener(process, mean, covariance)

    It is the posterior of Gaussian data with these moments; for other data `var` is the error it makes on average.
    """

    @classmethod
    def fit(cls, process: Affine, data: Tensor) -> Wiener:
        """The denoiser of the moments of pictures (N, C, H, W)."""
        return cls.of(process, Bank(data))

    @classmethod
    def of(cls, process: Affine, bank: Bank) -> Wiener:
        """The denoiser of the moments of a bank."""
        return cls(process, bank.mean.reshape(bank.shape).cpu(), bank.covariance().cpu())

    def gain(self, a: Tensor, c: Tensor) -> Tensor:
        """K = S A (A S A + C^2)^-1, (P, P), for a and c of one picture, (P,): E[x0 | x_t] = m + K (x_t - a m)."""
        assert self.axes is not None
        power, axes = self.spread[0], self.axes[0]
        if bool((a == a[0]).all()) and bool((c == c[0]).all()):
            return (axes * (a * power / (a**2 * power + c**2))) @ axes.T
        s = (axes * power) @ axes.T
        return torch.linalg.solve(a[:, None] * s * a + torch.diag(c**2), a[:, None] * s).T

    def __call__(self, x: Tree, t: Tensor, cond: Mapping[str, Tree]) -> Pred:
        """E[x0 | x_t] and Var[x0 | x_t], row by row: P^2 numbers at a time are enough."""
        one = [tree_map(lambda v, r=r: v[r : r + 1], {"x": x, "cond": dict(cond)}) for r in range(len(t))]
        preds = [super(Wiener, self).__call__(v["x"], t[r : r + 1], v["cond"]) for r, v in enumerate(one)]
        return preds[0].map(lambda *v: torch.cat(v), *preds[1:])
