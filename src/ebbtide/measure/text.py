"""Text: how likely a reference language model finds it, and how much of it repeats.

    perplexity          exp(-sum log p(token | those before) / number of tokens)     of a causal model
    pseudo-perplexity   the same with log p(token | all others), one mask at a time  of a masked model
    accuracy            share of tokens that a masked model names right where a given share is hidden
    exact_match         share of sequences that are equal, token for token
    distinct            different n-grams / n-grams, over all sequences
    entropy             -sum f log f over the n-grams of each sequence, f their frequencies; mean over sequences, nats

What a model says is scored by sequence, so that sequences can be resampled: `bootstrap(perplexity, *nll(lm, x), paired=True)`.
`distinct` counts what occurs once and needs `repeat=False`. Models are callables, x (B, L) int64 to log p or logits
(B, L, V), which are normalised here; `asked_of` makes one of a masked diffusion model.

Shapes   tokens (N, L) int64, one sequence a row; `pad` is a token that ends or fills rows and never counts
Source   Salazar et al. 2020, "Masked language model scoring" (arXiv 1910.14659), eq. 1 and 2; Li et al. 2016, "A
         diversity-promoting objective function" (1510.03055), section 5.2, for distinct-n; entropy as in Zheng et al. 2024,
         "Masked diffusion models are secretly time-agnostic" (2409.02908), section 5
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.time import invert
from ebbtide.denoise.model import Model
from ebbtide.measure.certainty import stream

LM = Callable[[Tensor], Tensor]


class Scores(NamedTuple):
    """What was summed over the tokens of each sequence, and how many they were: (N,) float64 each."""

    total: Tensor
    tokens: Tensor


def rate(total: Tensor, tokens: Tensor) -> float:
    """The mean over all tokens of all sequences. Raises EbbError where there is no token."""
    if not float(tokens.sum()):
        raise EbbError("no token was scored: sequences are empty, or hold padding alone.")
    return float(total.sum() / tokens.sum())


def perplexity(total: Tensor, tokens: Tensor) -> float:
    """exp of the mean surprise of a token, from `nll` or `pseudo_nll`."""
    return float(torch.tensor(rate(total, tokens), dtype=torch.float64).exp())


# -------------------------------------------------------------------- under a model


def _said(lm: LM, x: Tensor, wanted: Tensor) -> Tensor:
    """log p that a model gives to tokens `wanted` (B, L), float64."""
    with torch.no_grad():
        answer = lm(x).double().log_softmax(-1)
    if answer.shape[:2] != x.shape:
        raise EbbError(f"a language model answers (B, L, V) for tokens (B, L): {(*answer.shape,)} for {(*x.shape,)}.")
    return answer.gather(-1, wanted.to(answer.device)[..., None])[..., 0].cpu()


def nll(lm: LM, x: Tensor, *, start: int | None = None, pad: int | None = None, batch: int = 64) -> Scores:
    """The surprise -log p of each sequence under a causal model, whose answer at j is about token j + 1.

    start   a token to put before every sequence, so that the first one counts too; without it that one is given
    """
    scores = []
    for rows in x.split(batch):
        seen = rows if start is None else torch.cat([torch.full_like(rows[:, :1], start), rows], 1)
        counts = _counts(seen[:, 1:], pad)
        said = _said(lm, seen[:, :-1], seen[:, 1:])  # a model may rule padding out, so it is no factor of 0
        scores.append((-said.where(counts > 0, 0.0).sum(1), counts.sum(1)))
    return Scores(*(torch.cat(v) for v in zip(*scores, strict=True)))


def pseudo_nll(lm: LM, x: Tensor, mask: int, *, pad: int | None = None, batch: int = 64) -> Scores:
    """The pseudo-surprise of each sequence under a masked model: every token hidden once, all others shown; L calls."""
    place = torch.arange(x.shape[1])
    hidden = [(torch.where(place == j, mask, rows), rows) for rows in x.split(batch) for j in place]
    width = x.shape[1]
    columns = [_said(lm, seen, rows)[:, k % width] for k, (seen, rows) in enumerate(hidden)]
    said = torch.cat([torch.stack(columns[k : k + width], 1) for k in range(0, len(columns), width)])
    counts = _counts(x, pad)
    return Scores(-said.where(counts > 0, 0.0).sum(1), counts.sum(1))


def accuracy(
    lm: LM, x: Tensor, mask: int, share: float, *, pad: int | None = None, seed: int = 0, batch: int = 64
) -> Scores:
    """Right answers where each token is hidden with probability `share`; `rate` is the share of hidden tokens named right.

    The answer is the likeliest token that is not the mask. The same seed hides the same tokens.
    """
    lots = stream(seed).uniform((1, *x.shape))[0]
    hidden = (lots < share) & (_counts(x, pad) > 0)
    right = []
    for rows, gone in zip(x.split(batch), hidden.split(batch), strict=True):
        with torch.no_grad():
            logits = lm(torch.where(gone, mask, rows)).cpu()
        if mask < logits.shape[-1]:
            logits = logits.index_fill(-1, torch.tensor(mask), -torch.inf)
        right.append(((logits.argmax(-1) == rows) & gone).double().sum(1))
    return Scores(torch.cat(right), hidden.double().sum(1))


def asked_of(model: Model, cond: Any = None) -> LM:
    """A masked diffusion model as a callable, asked at the time at which as many tokens are hidden as x hides.

    Raises EbbError for a model of another process.
    """
    process: Any = model.process
    if "masked" not in process.gives:
        raise EbbError(f"{model.name} is no model of masked tokens, so it cannot fill in what is hidden.")

    def lm(x: Tensor) -> Tensor:
        shown = (x != process.mask).double().mean(1).cpu()
        t = invert(process.alpha, shown).reshape(-1, *(1,) * len(model.unit_shape())).expand(-1, *model.unit_shape())
        logits: Tensor = model.denoiser(x, t, model.condition(cond, len(x))).logits
        return logits

    return lm


def _counts(x: Tensor, pad: int | None) -> Tensor:
    """1 for a token that counts, 0 for padding, float64 on the CPU."""
    return torch.ones(x.shape, dtype=torch.float64) if pad is None else (x != pad).double().cpu()


# -------------------------------------------------------------------- by itself


def exact_match(made: Tensor | Sequence[str], wanted: Tensor | Sequence[str]) -> float:
    """The share of sequences equal to those wanted, tensors (N, L) or strings. Raises EbbError for other numbers of them."""
    if len(made) != len(wanted) or not len(made):
        raise EbbError(f"give one wanted sequence for each, not {len(wanted)} for {len(made)}.")
    if isinstance(made, Tensor) and isinstance(wanted, Tensor):
        return float(0.0 if made.shape != wanted.shape else (made == wanted).flatten(1).all(1).double().mean())
    return sum(a == b for a, b in zip(made, wanted, strict=True)) / len(made)


def _grams(x: Tensor, n: int, pad: int | None) -> list[Tensor]:
    """The n-grams (K, n) of each sequence, without those that hold padding. Raises EbbError where n is not within 1 to L."""
    if x.ndim != 2 or not 1 <= n <= x.shape[1]:
        raise EbbError(f"sequences (N, L) of at least {n} tokens have {n}-grams, not {(*x.shape,)}.")
    grams = x.unfold(1, n, 1)
    return [row if pad is None else row[(row != pad).all(1)] for row in grams]


def distinct(x: Tensor, n: int = 2, pad: int | None = None) -> float:
    """Distinct-n: different n-grams over all n-grams, in (0, 1]."""
    grams = torch.cat(_grams(x, n, pad))
    if not len(grams):
        raise EbbError(f"these sequences hold no {n}-gram.")
    return len(grams.unique(dim=0)) / len(grams)


def entropy(x: Tensor, n: int = 1, pad: int | None = None) -> float:
    """The entropy of each sequence's own n-gram frequencies in nats, mean over sequences; log of K if all K differ."""
    found = []
    for grams in _grams(x, n, pad):
        counts = grams.unique(dim=0, return_counts=True)[1].double()
        found.append(torch.special.entr(counts / counts.sum().clamp_min(1)).sum())
    return float(torch.stack(found).mean())
