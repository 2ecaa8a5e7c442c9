"""The bound of masked diffusion: cross-entropy of the tokens that are hidden, weighted by how fast they hide.

    -log p(x0) <= NELBO = integral_0^1 -alpha'_t / (1 - alpha_t) E sum over masked i of -log p(x0_i | x_t) dt

A change of schedule is a change of variable: the bound is the same for all, and equal to the loss averaged over uniformly
random orders of the tokens (any-order autoregression). The network need not be told the time. One uniform number places
all times of a batch on a comb, so every batch covers the whole of time.

Shapes   x0 int64 (B, *event), logits (B, *event, V); bounds in nats an element, the loss in nats a token
Paper    Sahoo et al. 2024, "Simple and effective masked diffusion language models" (arXiv 2406.07524), eq. 11; Shi et al.
         2024 (2406.04329), eq. 5; any order: Ou et al. 2024 (2406.03736), theorem 2; the comb: Kingma et al. 2021
         (2107.00630), appendix I.1
Differs  nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ebbtide.core.key import Noise
from ebbtide.core.time import invert
from ebbtide.process.masked import Masked


def untimed(network: Any, x: Tensor, t: Tensor) -> Tensor:
    """The logits of a masked language model of transformers, which is not told the time."""
    logits: Tensor = network(x).logits
    return logits


@dataclass(frozen=True)
class MaskedNELBO:
    """The bound of a network that predicts tokens, x_t to logits.

    process   which token is the mask, and the schedule
    call      how the network is asked; by default `network(x, t)`, and `untimed` for a module of transformers
    """

    process: Masked
    call: Callable[[Any, Tensor, Tensor], Tensor] = lambda network, x, t: network(x, t)

    def times(self, noise: Noise) -> Tensor:
        """Times of a batch, (B,) float64 in (0, 1)."""
        n = len(noise.key)
        return (torch.arange(n, dtype=torch.float64) + noise.uniform((n,), 2)[0]) / n

    def bounds(self, network: Any, x0: Tensor, noise: Noise) -> Tensor:
        """One unbiased draw of the bound for each row of x0 (B, *event), (B,) float64 in nats; `noise` has B keys."""
        t = self.times(noise)
        x = self.process.corrupt(x0, t, noise, {})
        hidden = (x == self.process.mask) & (x0 != self.process.mask)
        total = torch.where(hidden, self._missed(network, x, t, x0), 0.0).flatten(1).sum(1)
        return self.process.nelbo_weight(t).to(total) * total

    def in_order(self, network: Any, x0: Tensor, order: Sequence[int]) -> Tensor:
        """-sum_k log p(x0_o(k) | x0_o(<k)) of x0 (B, L): (B,) in nats, the loss of autoregression in one order of places.

        The network is told the times at which so many tokens are shown on average.
        """
        x = torch.full_like(x0, self.process.mask)
        total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        for k, i in enumerate(order):
            t = invert(self.process.alpha, torch.full((len(x0),), k / len(order), dtype=torch.float64))
            total += self._missed(network, x, t, x0)[:, i]
            x[:, i] = x0[:, i]
        return total

    def loss(self, network: Any, x0: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The mean bound of a batch, in nats a token."""
        return self.bounds(network, x0, noise).mean() / x0[0].numel()

    def _missed(self, network: Any, x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """-log p(x0_i | x_t) of every token, float64 like x0."""
        logits = self.call(network, x, t)
        if self.process.mask < self.process.vocab:  # a mask is never what stands under a mask
            logits = logits.index_fill(-1, torch.tensor(self.process.mask, device=logits.device), -math.inf)
        return cross_entropy(logits.flatten(0, -2), x0.flatten(), reduction="none").reshape(x0.shape).double()

    def about(self) -> dict[str, Any]:
        """The arguments of `denoise.network.Network`, in plain words."""
        return {"process": {"name": self.process.entry.name, **asdict(self.process)}, "predicts": "logits"}
