"""Immiscible diffusion: before a batch is noised, its pictures exchange their noises until no two of them gain.

    pi over the rows, with <x_i, e_pi(i)> + <x_j, e_pi(j)>  >=  <x_i, e_pi(j)> + <x_j, e_pi(i)>   for all i, j
    x_t = a(t) x_i + c(t) e_pi(i)                        then the ordinary loss

|x - e|^2 differs from -2 <x, e> by what no permutation changes, so pi makes the total squared distance small. A noise then has
fewer pictures competing for it: at high noise the best answer is no longer the mean of all pictures, and paths cross less.
The rows of noise stay those that were drawn, so over batches each is normal still, and sampling is as it was.

With `nearest` = k each picture first takes the nearest of k noises of its own, which costs k draws and no matrix, and does not
keep the law of the noise: it leans towards the data, much in the plane and little in a thousand dimensions.

Shapes   x0 (B, ...); the matrix of gains is (B, B)
Paper    Li et al. 2024, "Immiscible Diffusion" (arXiv 2406.12303), algorithm 1; the nearest of k: Li et al. 2025, "Improved
         Immiscible Diffusion" (2505.18521)
Off      exchange=False, nearest=1 is flow matching, bit for bit.
Differs  exchanges in rounds, in place of the Hungarian method: 0.9 (pictures) to 0.999 (the plane) of what the best permutation
         gains, in a few dozen passes over the matrix, and no solver to depend on. float32, not float16: no faster here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebbtide.core.key import Noise, fold
from ebbtide.learn.flow_matching import FlowMatching


@dataclass(frozen=True)
class Immiscible(FlowMatching):
    """The loss of pictures that have found a noise near to them.

    exchange   whether the pictures of a batch exchange their noises
    nearest    of how many noises of its own a picture takes the nearest, before that
    """

    exchange: bool = True
    nearest: int = 1

    def paired(self, x0: Tensor, noise: Noise) -> Noise:
        """Where each picture of a batch draws its noise: from the key of the picture it exchanged with."""
        n, k = len(x0), self.nearest
        if k > 1:
            own = noise.take(torch.arange(n).repeat(k))
            noise = replace(own, key=torch.cat([noise.key, *(fold(noise.key, j) for j in range(1, k))]))
            drawn = self.process.draw(x0.repeat(k, *(1,) * (x0.ndim - 1)), noise).reshape(k, *x0.shape)
            best = (drawn - x0).flatten(2).square().sum(2).argmin(0).cpu()
            noise = noise.take(best * n + torch.arange(n))
        if self.exchange:
            drawn = self.process.draw(x0, noise)
            noise = noise.take(exchanged(x0.flatten(1) @ drawn.flatten(1).T))
        return noise


def exchanged(gain: Tensor) -> Tensor:
    """A permutation (B,) int64 under which no exchange of two raises the sum of gain[i, order[i]]; gain (B, B).

    In each round all pairs exchange that are each other's best; the sum rises in every one, so it ends.
    """
    have = gain.detach().cpu().numpy().copy()  # column j: what each row has of the noise that row j holds now
    own = np.arange(len(have))
    order = own.copy()
    least = 1e-6 * np.abs(have).max()  # below it, rounding could raise the sum for ever
    more = _more(have, own)
    while True:
        mate = more.argmax(1)
        swap = np.flatnonzero((more[own, mate] > least) & (mate[mate] == own))
        if not len(swap):
            return torch.from_numpy(order)
        have[:, swap], order[swap] = have[:, mate[swap]], order[mate[swap]]
        more[swap] = _more(have, swap)  # nothing else has changed
        more[:, swap] = more[swap].T


def _more(have: Any, rows: Any) -> Any:
    """What the sum gains when these rows exchange with each row, (rows, B)."""
    now = have.diagonal()
    return have[rows] + have[:, rows].T - now - now[rows][:, None]
