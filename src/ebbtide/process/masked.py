"""Masked diffusion: tokens turn into a mask, and come back one by one for good.

    q(x_t | x0) = alpha_t [x_t = x0] + (1 - alpha_t) [x_t = mask]
    s < t       a mask is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t), its token drawn from the logits
    s > t       a token is masked with probability 1 - alpha_s / alpha_t
    NELBO       E_t[ -alpha'_t / (1 - alpha_t) sum over masked tokens of -log p(x0 | x_t) ]

Paper    Sahoo et al. 2024, "Simple and effective masked diffusion language models" (arXiv 2406.07524), section 3;
         Shi et al. 2024, "Simplified and generalized masked diffusion" (2406.04329), sections 2 and 3
Differs  nothing: revealed tokens stay (eta is ignored; remasking is a `correct` part), the mask is never drawn.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot, pad

from ebbtide.core.key import Noise
from ebbtide.core.registry import part
from ebbtide.process.discrete import _TOKEN, Discrete, Schedule, spread


@part("process", "masked", paper="2406.07524")
class Masked(Discrete):
    """Masked diffusion: tokens turn into a mask, and come back one by one for good.

    vocab   how many classes the logits have: tokens 0 ... vocab - 1
    mask    the mask's id: vocab (for which -1 stands), or one of the vocabulary's own (BERT, LLaDA)
    """

    gives = Discrete.gives | {"masked"}
    examples = ({"vocab": 4},)
    vocab: Annotated[int, Field(ge=1)]
    mask: Annotated[int, Field(ge=-1)] = -1
    schedule: Schedule = "linear"

    def __post_init__(self) -> None:
        if self.mask > self.vocab:
            raise ValueError(f"mask must be a token of the vocabulary or the first id after it, at most {self.vocab}")
        if self.mask == -1:
            object.__setattr__(self, "mask", self.vocab)

    @property
    def states(self) -> int:
        return max(self.vocab, self.mask + 1)

    def nelbo_weight(self, t: Tensor) -> Tensor:
        """-alpha'_t / (1 - alpha_t), the weight of the masked tokens' cross-entropy, like t; infinite at t = 0."""
        return self.rate(t) / (1 - self.alpha(t))

    def revealed(self, t: Tensor, s: Tensor) -> Tensor:
        """The probability that a mask at t is a token at s <= t; exactly 1 at s = 0."""
        hidden = 1 - self.alpha(t)
        return (self.alpha(s) - self.alpha(t)) / torch.where(hidden == 0, 1.0, hidden)

    def lost(self, like: Tensor, noise: Noise) -> Tensor:
        return torch.full_like(like, self.mask)

    def evidence(self, x: Tensor, t: Tensor) -> Tensor:
        # a visible token tells itself and a mask tells nothing, at any time: no factor of alpha, which may vanish
        seen = one_hot(x.clamp(max=self.vocab - 1), self.vocab).double()
        return torch.where((x == self.mask)[..., None], 1.0, seen)

    def posterior(self, x: Tensor, logits: Tensor, t: Tensor, s: Tensor) -> Tensor:
        reveal = spread(self.revealed(t, s), logits)
        drawn = pad(self._tokens(logits).double().softmax(-1), (0, self.states - self.vocab)) * reveal
        drawn[..., self.mask] = (1 - reveal)[..., 0]
        return torch.where((x == self.mask)[..., None], drawn, one_hot(x, self.states).double())

    def reversal(self, x: Tensor, logits: Tensor, t: Tensor) -> Tensor:
        clean = self.posterior(x, logits, torch.ones_like(t), torch.zeros_like(t))  # a token that shows is what it is
        return clean * spread(self.nelbo_weight(t), logits)

    def transition(self, t: Tensor, s: Tensor) -> Tensor:
        keep = self.kept(t, s)[..., None, None]
        to_mask = torch.zeros(self.states, self.states, dtype=torch.float64)
        to_mask[:, self.mask] = 1
        return keep * torch.eye(self.states, dtype=torch.float64) + (1 - keep) * to_mask

    def _back(self, x: Tensor, logits: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        # as the posterior says, without a table of probabilities: most vocabularies are large
        reveal = self._chance(self.revealed(t, s), x, noise) & (x == self.mask)
        return torch.where(reveal, noise.categorical(self._tokens(logits), _TOKEN).to(x.dtype), x)

    def _tokens(self, logits: Tensor) -> Tensor:
        """The logits with the mask ruled out, where it is one of the classes."""
        if self.mask >= self.vocab:
            return logits
        return logits.index_fill(-1, torch.tensor(self.mask, device=logits.device), -math.inf)
