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

from collections.abc import Mapping

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.time import right
from ebbtide.core.tree import Tree, tree_map
from ebbtide.denoise.bank import Average, Bank, fours
from ebbtide.denoise.exact_gaussian import Gaussian
from ebbtide.process.affine import Affine

_FLOOR = 1e-6


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

        def look(x0: Tensor, live: int) -> list[Average]:
            square = x0.square()
            return [Average.of(linear @ x0 - half @ square, live, x0, square)]

        (average,) = self.bank.averages(span, torch.float64, look)
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

    @staticmethod
    def _turn(m: Tensor, z: Tensor) -> Tensor:
        """m z as a product: rows come one at a time here, so how one is rounded cannot depend on another."""
        return (m @ z[..., None])[..., 0]

    def __call__(self, x: Tree, t: Tensor, cond: Mapping[str, Tree]) -> Pred:
        """E[x0 | x_t] and Var[x0 | x_t], row by row: P^2 numbers at a time are enough."""
        one = [tree_map(lambda v, r=r: v[r : r + 1], {"x": x, "cond": dict(cond)}) for r in range(len(t))]
        preds = [super(Wiener, self).__call__(v["x"], t[r : r + 1], v["cond"]) for r, v in enumerate(one)]
        return preds[0].map(lambda *v: torch.cat(v), *preds[1:])
