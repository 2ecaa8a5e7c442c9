"""Exact denoisers of Gaussian data: one Gaussian, or a mixture of them, under any affine process.

    x_t = a x0 + b y + c eps,  x0 ~ sum_k w_k N(m_k, S_k),   r_k = x_t - b y - a m_k,   V_k = a S_k a + c^2
    log p_t(x_t) = logsumexp_k(log w_k + log N(r_k; 0, V_k)),   g_k = softmax_k(the same)
    E[x0 | x_t] = sum_k g_k M_k,   M_k = m_k + S_k a V_k^-1 r_k
    Var[x0 | x_t] = sum_k g_k (diag(S_k - S_k a V_k^-1 a S_k) + (M_k - E)^2)
    score = -sum_k g_k V_k^-1 r_k

S_k = U_k diag(l_k) U_k^T once and for all: where all units of an element share a time, V_k is diagonal in U_k. Where
they do not (frames, pixels, tokens) and S_k is not diagonal, V_k is decomposed for that element.

Shapes   x (R, *event), t (R,) or (R, *units), mean and var like x; D numbers an element
Source   the conditional of a joint Gaussian; Tweedie's formula ties score and mean (Robbins 1956; Efron 2011)
Differs  variances V are not taken below 1e-60 (1e-12 of the largest where units differ): at c = 0 a component without
         spread is told by the nearest mean. Where a = c = 0 (the far end of a bridge) nothing is learned from x_t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.state import Pred
from ebbtide.core.time import right
from ebbtide.core.tree import Tree
from ebbtide.denoise.components import Components
from ebbtide.process.affine import Affine

_LOG_2PI = math.log(2 * math.pi)


class _Each(NamedTuple):
    """What each component says: log N(r), (R, K); V^-1 r, posterior mean and variance, (R, K, D)."""

    log: Tensor
    pull: Tensor
    mean: Tensor
    var: Tensor


class GaussianMixture(Components):
    """A mixture of Gaussians.

    weights      (K,)
    means        (K, *event)
    covariance   a number or (K,): isotropic variance; (K, *event): diagonal; (K, D, D): full
    labels       (K,) the class of each component, or None

    Raises EbbError for shapes that do not fit and for a covariance that is not one.
    """

    process: Affine

    def __init__(self, process: Affine, weights: Any, means: Any, covariance: Any, labels: Any = None) -> None:
        means = torch.as_tensor(means, dtype=torch.float64)
        if means.ndim < 2:
            raise EbbError(f"means are (K, *event), one element a component, not {tuple(means.shape)}.")
        super().__init__(means.shape[1:], weights, labels)
        self.process = process
        self.means = means.flatten(1)
        k, d = self.means.shape
        cov = torch.as_tensor(covariance, dtype=torch.float64)
        self.axes: Tensor | None = None
        if cov.shape in (torch.Size(()), torch.Size((k,))):
            self.spread = cov.reshape(-1, 1).expand(k, d).contiguous()
        elif cov.shape == means.shape:
            self.spread = cov.reshape(k, d)
        elif cov.shape == (k, d, d) and torch.allclose(cov, cov.mT):
            self.spread, axes = torch.linalg.eigh(cov)
            # laid out for sums along the last axis, each way
            self.axes, self.onto = axes.contiguous(), axes.mT.contiguous()
            floor = self.spread.amax(-1, keepdim=True) * 1e-13
            if bool((self.spread < -floor).any()):
                raise EbbError("a covariance must not have negative eigenvalues.")
            self.spread = torch.where(self.spread.abs() <= floor, 0.0, self.spread)
        else:
            raise EbbError(
                f"a covariance is a number, ({k},), {tuple(means.shape)} or symmetric {(k, d, d)}, "
                f"not {tuple(cov.shape)}."
            )
        if len(self.weights) != k or bool((self.spread < 0).any()):
            raise EbbError(f"give {k} weights and variances that are not negative.")

    def __call__(self, x: Tree, t: Tensor, cond: Mapping[str, Tree]) -> Pred:
        """E[x0 | x_t] and Var[x0 | x_t], both shaped like x."""
        share, each = self._look(x, t, cond)
        g = (share + each.log).softmax(-1)[..., None]
        mean = (g * each.mean).sum(1)
        var = (g * (each.var + (each.mean - mean[:, None]) ** 2)).sum(1)
        return Pred(mean=mean.reshape(x.shape).to(x), var=var.reshape(x.shape).to(x))

    def log_prob(self, x: Tensor, t: Tensor, cond: Mapping[str, Tree] | None = None) -> Tensor:
        """log p_t(x), the density of the noised data, (R,) float64; given y where the process has an end."""
        share, each = self._look(x, t, cond or {})
        return (share + each.log).logsumexp(-1)

    def score(self, x: Tensor, t: Tensor, cond: Mapping[str, Tree] | None = None) -> Tensor:
        """The gradient of `log_prob` with respect to x, shaped and typed like x."""
        share, each = self._look(x, t, cond or {})
        g = (share + each.log).softmax(-1)[..., None]
        return -(g * each.pull).sum(1).reshape(x.shape).to(x)

    def sample(self, n: int, seed: int = 0, label: int | None = None) -> Tensor:
        """Exact data (n, *event), float64; element j has seed + j."""
        k, noise = self.draw(n, seed, label)
        z = noise.normal(self.means[k]) * self.spread[k].sqrt()
        if self.axes is not None:
            z = (self.axes[k] * z[:, None]).sum(-1)
        return (self.means[k] + z).reshape(n, *self.event)

    # ---------------------------------------------------------------- each component

    def _look(self, x: Tree, t: Tensor, cond: Mapping[str, Tree]) -> tuple[Tensor, _Each]:
        flat = self.rows(x).double()

        def wide(w: Tensor) -> Tensor:
            """A weight of the units as one number an element, or as D numbers where units differ: (R, 1, 1 | D)."""
            w = w if t.ndim == 1 else right(w, x).expand(x.shape)
            return w.reshape(len(flat), 1, -1)

        a, c = wide(self.process.a(t)), wide(self.process.c(t))
        rest = flat[:, None] - a * self.means
        b = self.process.b(t)
        if b is not None:
            rest = rest - wide(b) * self.process.end(dict(cond)).cpu().double().flatten(1)[:, None]
        share = self.share(cond, len(flat))
        mixed = ((a != a[..., :1]) | (c != c[..., :1])).flatten(1).any(1)
        if self.axes is None or not bool(mixed.any()):
            return share, self._diagonal(rest, a, c)
        # one row at a time: a row must not depend on how many others come with it
        one = [slice(r, r + 1) for r in range(len(flat))]
        rows = [
            self._full(rest[r][0], a[r][0, 0], c[r][0, 0])
            if mixed[r]
            else self._diagonal(rest[r], a[r][..., :1], c[r][..., :1])
            for r in one
        ]
        return share, _Each(*(torch.cat(v) for v in zip(*rows, strict=True)))

    def _diagonal(self, rest: Tensor, a: Tensor, c: Tensor) -> _Each:
        """Components whose V is diagonal in their own axes; rest (R, K, D), a and c (R, 1, 1 | D)."""
        blind = (a == 0) & (c == 0)
        v = (a**2 * self.spread + c**2).clamp_min(1e-60)
        z = torch.where(blind, 0.0, rest if self.axes is None else self._turn(self.onto, rest))
        log = -torch.where(blind, 0.0, z**2 / v + v.log() + _LOG_2PI).sum(-1) / 2
        var = torch.where(blind, self.spread, self.spread * c**2 / v)
        pull, step = z / v, a * self.spread * z / v
        if self.axes is not None:
            pull, step = self._turn(self.axes, pull), self._turn(self.axes, step)
            var = self._turn(self.axes**2, var)
        return _Each(log, pull, self.means + step, var)

    def _full(self, rest: Tensor, a: Tensor, c: Tensor) -> _Each:
        """Components seen through units at different times, for one element; rest (K, D), a and c (D,)."""
        assert self.axes is not None
        blind = (a == 0) & (c == 0)
        cov = (self.axes * self.spread[:, None]) @ self.axes.mT
        seen = cov * a
        # a blind unit stands apart with variance 1 and no residual
        v, u = torch.linalg.eigh(a[:, None] * seen + torch.diag(torch.where(blind, 1.0, c**2)))
        v = torch.maximum(v, v.amax(-1, keepdim=True) * 1e-12)
        rest = torch.where(blind, 0.0, rest)
        z = (u.mT @ rest[..., None])[..., 0]
        log = -(z**2 / v + v.log() + _LOG_2PI).sum(-1) / 2 + blind.sum() * _LOG_2PI / 2
        pull = (u @ (z / v)[..., None])[..., 0]
        step = (seen @ pull[..., None])[..., 0]
        told = ((seen @ u) ** 2 / v[:, None]).sum(-1)
        var = (cov.diagonal(dim1=-2, dim2=-1) - told).clamp_min(0)
        return _Each(*(w[None] for w in (log, pull, self.means + step, var)))

    @staticmethod
    def _turn(m: Tensor, z: Tensor) -> Tensor:
        """m_k z_k for all rows by plain sums: a matrix product may round a row differently in a larger batch."""
        return (m * z[..., None, :]).sum(-1)


class Gaussian(GaussianMixture):
    """One Gaussian.

    mean         (*event)
    covariance   a number: isotropic variance; (*event): diagonal; (D, D): full
    """

    def __init__(self, process: Affine, mean: Any, covariance: Any) -> None:
        mean, cov = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(covariance, dtype=torch.float64)
        super().__init__(process, [1.0], mean[None], cov if cov.ndim == 0 else cov[None])
