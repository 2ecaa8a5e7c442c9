"""Next-token prediction: the likelihood of a text, character by character from the left.

    -log p(x) = sum_i -log p(x_i | start, x_<i)

Shapes   x (B, L) int64; the network sees (start, x_0 ... x_L-2) and answers with logits (B, L, V)
Paper    Bengio et al. 2003, "A neural probabilistic language model", eq. 1
Differs  a start token stands before every window, so the first character has a likelihood too, that of any place of a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ebbtide.core.key import Noise


def nats(network: Any, x: Tensor, start: int) -> Tensor:
    """-log p(x_i | x_<i) of every token of x (B, L), float64; the start itself is ruled out."""
    seen = torch.cat([torch.full_like(x[:, :1], start), x[:, :-1]], 1)
    logits = network(seen).logits.index_fill(-1, torch.tensor(start, device=x.device), -torch.inf)
    return cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").reshape(x.shape).double()


@dataclass(frozen=True)
class NextToken:
    """The loss of a causal language model, in nats a token.

    start   the id that stands before every text
    """

    start: int

    def loss(self, network: Any, x0: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The mean of `nats` over a batch; nothing is drawn."""
        return nats(network, x0, self.start).mean()

    def about(self) -> dict[str, Any]:
        """The next token's logits: no process, so it judges text and does not sample by diffusion."""
        return {"predicts": "next-token", "start": self.start}
