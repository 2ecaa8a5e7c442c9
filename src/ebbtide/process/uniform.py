"""Uniform diffusion: tokens turn into any token alike, so every token can still be mended until the end.

    q(x_t | x0) = alpha_t [x_t = x0] + (1 - alpha_t) / V
    s < t   p(x_s = j | x_t = i)  prop. to  q(i | j) (alpha_s w_j + (1 - alpha_s) / V sum_v w_v),
            w_v = p(x0 = v) / q(x_t = i | x0 = v),   q(i | j) = r [i = j] + (1 - r) / V,   r = alpha_t / alpha_s

The sum over x0 of the posteriors q(x_s | x_t, x0) p(x0), in O(V) a token: no V x V matrix.

Paper    Austin et al. 2021, "Structured denoising diffusion models in discrete state-spaces" (arXiv 2107.03006),
         section 3.1; Schiff et al. 2024, "Simple guidance mechanisms for discrete diffusion models" (2412.10193)
Differs  continuous time.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from ebbtide.core.key import Noise
from ebbtide.core.registry import part
from ebbtide.process.discrete import _TOKEN, Discrete, Schedule, spread


@part("process", "uniform", paper="2107.03006")
class Uniform(Discrete):
    """Uniform diffusion: tokens turn into any token alike, so every token can still be mended until the end."""

    gives = Discrete.gives | {"uniform"}
    examples = ({"vocab": 4},)
    vocab: Annotated[int, Field(ge=2)]
    schedule: Schedule = "linear"

    def lost(self, like: Tensor, noise: Noise) -> Tensor:
        token = (noise.uniform(like.shape, _TOKEN) * self.vocab).long().clamp_(max=self.vocab - 1)
        return token.to(like)

    def evidence(self, x: Tensor, t: Tensor) -> Tensor:
        return self._mixed(one_hot(x, self.vocab).double(), self.alpha(t))

    def posterior(self, x: Tensor, logits: Tensor, t: Tensor, s: Tensor) -> Tensor:
        here = one_hot(x, self.vocab).double()
        like = self._mixed(here, self.alpha(t))
        w = logits.double().softmax(-1) / torch.where(like == 0, 1.0, like) * (like > 0)
        p = self._mixed(here, self.kept(s, t)) * self._mixed(w, self.alpha(s))
        return p / p.sum(-1, keepdim=True)

    def reversal(self, x: Tensor, logits: Tensor, t: Tensor) -> Tensor:
        w = logits.double().softmax(-1) / self.evidence(x, t).clamp_min(1e-300)
        return self._mixed(w, self.alpha(t)) * spread(self.loss(t), logits) / self.vocab

    def transition(self, t: Tensor, s: Tensor) -> Tensor:
        keep = self.kept(t, s)[..., None, None]
        return keep * torch.eye(self.vocab, dtype=torch.float64) + (1 - keep) / self.vocab

    def _mixed(self, p: Tensor, keep: Tensor) -> Tensor:
        """p (*x.shape, V) after each token was kept with probability `keep`: keep p_v + (1 - keep) / V sum p."""
        keep = spread(keep, p)
        return keep * p + (1 - keep) / self.vocab * p.sum(-1, keepdim=True)
