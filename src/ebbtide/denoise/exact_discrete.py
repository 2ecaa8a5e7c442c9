"""Exact denoisers of sequences: p(x0_i | x_t) for all places i, under any discrete process.

A token x_t tells of its own clean token alone, through the evidence e_i(v) = q(x_t_i | x0_i = v):

    Product       p(x0) = prod_i p_i(x0_i):                p(x0_i | x_t)  prop. to  p_i e_i
    MarkovChain   p(x0) = p(x0_1) prod_i T(x0_i, x0_i+1):  f_i g_i by the forward-backward recursion
                  f_1 = p e_1,   f_i+1 = (f_i T) e_i+1,   g_L = 1,   g_i = T (e_i+1 g_i+1)
    Table         any p over V^L, by enumeration

Each may be a mixture over classes, sum_k w_k p_k: every parameter then has a leading class axis and `weights` is given.

Shapes   x int64 (R, *event), L places in all; logits (R, *event, V) float64
Source   Rabiner 1989, "A tutorial on hidden Markov models", section III.A; Ou et al. 2024 (arXiv 2406.03736),
         theorem 1, for the masked process: the answer is free of t
Differs  probabilities are not taken below 1e-100, so an x_t that the model rules out is answered too, by what is left;
         log-probabilities not below -708, so that guidance never meets inf - inf.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ebbtide.core.errors import EbbError
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree
from ebbtide.denoise.components import Components
from ebbtide.process.discrete import Discrete

_FLOOR = 1e-100
_TINY = torch.finfo(torch.float64).tiny


class _Sequences(Components):
    """A mixture of laws of sequences over the vocabulary of its process."""

    process: Discrete

    def __init__(self, process: Discrete, event: tuple[int, ...], weights: Any, labels: Any) -> None:
        weights = [1.0] if weights is None else weights
        if labels is None and len(weights) > 1:
            labels = range(len(weights))
        super().__init__(event, weights, None if labels is None else list(labels))
        self.process, self.length = process, math.prod(event)

    def __call__(self, x: Tree, t: Tensor, cond: Mapping[str, Tree]) -> Pred:
        """log p(x0_i = v | x_t), x.shape + (V,)."""
        flat = self.rows(x)
        evidence = self.process.evidence(x.cpu(), t).flatten(1, -2)
        log, each = self.marginals(evidence)
        g = (self.share(cond, len(flat)) + log).softmax(-1)
        p = (g[..., None, None] * each).sum(1)
        return Pred(logits=p.clamp_min(_TINY).log().reshape(*x.shape, -1).to(x.device))

    def log_prob(self, x: Tensor, cond: Mapping[str, Tree] | None = None) -> Tensor:
        """log p(x0) of clean sequences, (R,) float64."""
        log, _ = self.marginals(one_hot(self.rows(x), self.process.vocab).double())
        return (self.share(cond, len(x)) + log).logsumexp(-1)

    def marginals(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        """log sum_x0 p_k(x0) prod_i e_i(x0_i), (R, K), and p_k(x0_i | x_t), (R, K, L, V), for evidence (R, L, V)."""
        raise NotImplementedError

    def _law(self, p: Any, weights: Any, ndim: int) -> Tensor:
        """A parameter of `ndim` axes as probabilities (K, ...), normalised over its last axis and kept off zero."""
        p = torch.as_tensor(p, dtype=torch.float64)
        p = p[None] if weights is None else p
        if (
            p.ndim != ndim + 1
            or p.shape[-1] != self.process.vocab
            or bool((p < 0).any())
            or len(p) != len(self.weights)
        ):
            raise EbbError(
                f"a law of {ndim} axes over {self.process.vocab} tokens was expected"
                f"{'' if weights is None else ', one for each weight'}; the one given is shaped {tuple(p.shape)}."
            )
        return p


class Product(_Sequences):
    """Places that are independent of each other (given the class).

    logits    (L, V), or (K, L, V) with weights
    """

    def __init__(self, process: Discrete, logits: Any, weights: Any = None, labels: Any = None) -> None:
        logits = torch.as_tensor(logits, dtype=torch.float64)
        super().__init__(process, (logits.shape[-2],), weights, labels)
        self.p = self._law(logits.softmax(-1), weights, 2).clamp_min(_FLOOR)

    def marginals(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        both = self.p * evidence[:, None]
        total = both.sum(-1, keepdim=True)
        return total[..., 0].log().sum(-1), both / total

    def sample(self, n: int, seed: int = 0, label: int | None = None) -> Tensor:
        """Exact data (n, L), int64; element j has seed + j."""
        k, noise = self.draw(n, seed, label)
        return noise.categorical(self.p[k].log())


class MarkovChain(_Sequences):
    """A Markov chain along the sequence.

    initial      (V,), or (K, V) with weights: probabilities of the first token
    transition   (V, V), or (K, V, V): row v holds those of the token after v
    length       L
    """

    def __init__(
        self, process: Discrete, initial: Any, transition: Any, length: int, weights: Any = None, labels: Any = None
    ) -> None:
        super().__init__(process, (length,), weights, labels)
        initial, transition = self._law(initial, weights, 1), self._law(transition, weights, 2)
        self.initial = (initial / initial.sum(-1, keepdim=True)).clamp_min(_FLOOR)
        self.transition = (transition / transition.sum(-1, keepdim=True)).clamp_min(_FLOOR)
        self.onto = self.transition.mT.contiguous()

    def marginals(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        e = evidence[:, None].unbind(-2)  # one (R, 1, V) a place
        ahead, log = [self.initial * e[0]], torch.zeros(())
        for i in range(self.length):
            total = ahead[i].sum(-1, keepdim=True)
            log = log + total[..., 0].log()
            ahead[i] = ahead[i] / total
            if i + 1 < self.length:
                ahead.append((self.onto * ahead[i][..., None, :]).sum(-1) * e[i + 1])
        back = [torch.ones_like(ahead[-1])]
        for i in range(self.length - 1, 0, -1):
            g = (self.transition * (e[i] * back[-1])[..., None, :]).sum(-1)
            back.append(g / g.amax(-1, keepdim=True))
        p = torch.stack(ahead, -2) * torch.stack(back[::-1], -2)
        return log, p / p.sum(-1, keepdim=True)

    def sample(self, n: int, seed: int = 0, label: int | None = None) -> Tensor:
        """Exact data (n, L), int64; element j has seed + j."""
        k, noise = self.draw(n, seed, label)
        out = [noise.categorical(self.initial[k].log())]
        for i in range(1, self.length):
            out.append(noise.fold(i).categorical(self.transition[k, out[-1]].log()))
        return torch.stack(out, 1)


class Table(_Sequences):
    """Any law of short sequences.

    p   (V, ..., V), L axes, or (K, V, ..., V) with weights: probabilities of all V^L sequences, up to a factor
    """

    def __init__(self, process: Discrete, p: Any, weights: Any = None, labels: Any = None) -> None:
        axes = torch.as_tensor(p).ndim - (weights is not None)
        super().__init__(process, (axes,), weights, labels)
        law = self._law(p, weights, axes).flatten(1)
        self.p = (law / law.sum(-1, keepdim=True)).clamp_min(_FLOOR)
        vocab = range(self.process.vocab)
        self.states = torch.tensor(list(itertools.product(vocab, repeat=axes)))  # (V^L, L), in the order of the table
        # the states that have token v at place i, (L, V, V^(L-1))
        self.having = torch.argsort(self.states.T, dim=-1, stable=True).reshape(axes, self.process.vocab, -1)

    def marginals(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        each = self.posterior(evidence)
        total = each.sum(-1, keepdim=True)
        p = torch.stack([each[..., having].sum(-1) for having in self.having], -2)
        return total[..., 0].log(), p / total[..., None]

    def posterior(self, evidence: Tensor) -> Tensor:
        """p_k(x0) prod_i e_i(x0_i) of all sequences, (R, K, V^L), for evidence (R, L, V)."""
        out = self.p[None]
        for i in range(self.length):
            out = out * evidence[:, None, i, self.states[:, i]]
        return out

    def sample(self, n: int, seed: int = 0, label: int | None = None) -> Tensor:
        """Exact data (n, L), int64; element j has seed + j."""
        k, noise = self.draw(n, seed, label)
        return self.states[noise.categorical(self.p[k].log())]
