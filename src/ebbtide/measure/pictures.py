"""Pictures: how near a restored one is to the true one, and whether samples show what was asked for.

    psnr   10 log10(span^2 / mean (x - y)^2)                                        decibels
    ssim   mean over windows of (2 m n + C1)(2 v + C2) / ((m^2 + n^2 + C1)(s + t + C2))

with m, n the means, s, t the variances and v the covariance of both pictures under a Gaussian window of 11 x 11 pixels and
standard deviation 1.5; C1 = 0.01^2, C2 = 0.03^2 for values in [0, 1], into which the span given is mapped first. Windows
lie inside the picture.

    agreement          share of samples that a classifier reads as the class asked for
    prompt_agreement   the same where a prompt was asked for, and each prompt is of a class
    inception_score    exp(E KL(p(y | x) | E p(y | x))): 1 where all are read alike, the number of classes at most

Shapes   pictures (N, ..., H, W), channels and frames each a plane of its own; psnr and ssim are (N,) float64, one for each
         element: `bootstrap(torch.mean, ssim(x, y))` is their mean as an interval
Source   Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", section III.C;
         Salimans et al. 2016, "Improved techniques for training GANs" (arXiv 1606.03498), section 4, for the score
Differs  colours are planes, where the paper turns them into grey; the inception score is taken over all samples at once,
         and by whatever classifier gave the logits
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ebbtide.core.errors import EbbError, nearest

SPAN = (-1.0, 1.0)


def _both(x: Tensor, y: Tensor, span: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Both in float64 with the span mapped to [0, 1]."""
    if x.shape != y.shape or x.ndim < 3:
        raise EbbError(f"two batches of pictures need one shape (N, ..., H, W), not {(*x.shape,)} and {(*y.shape,)}.")
    low, high = span
    return (x.double() - low) / (high - low), (y.double() - low) / (high - low)


def psnr(x: Tensor, y: Tensor, span: tuple[float, float] = SPAN) -> Tensor:
    """The peak signal-to-noise ratio of every picture, (N,) in decibels; infinite where both are the same."""
    x, y = _both(x, y, span)
    return -10 * (x - y).square().flatten(1).mean(1).log10()


def window(size: int = 11, width: float = 1.5) -> Tensor:
    """The weights of one axis of SSIM's window, (size,) float64; they sum to 1."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = (-(place**2) / (2 * width**2)).exp()
    return weights / weights.sum()


def ssim(x: Tensor, y: Tensor, span: tuple[float, float] = SPAN) -> Tensor:
    """The structural similarity of every picture, (N,) at most 1. Raises EbbError for pictures of under 11 pixels."""
    x, y = _both(x, y, span)
    weights = window().to(x.device)
    if min(x.shape[-2:]) < len(weights):
        raise EbbError(f"the window of SSIM is {len(weights)} pixels wide; these pictures are {(*x.shape[-2:],)}.")

    def blur(v: Tensor) -> Tensor:
        planes = v.reshape(-1, 1, *v.shape[-2:])
        return F.conv2d(F.conv2d(planes, weights.reshape(1, 1, -1, 1)), weights.reshape(1, 1, 1, -1))

    m, n = blur(x), blur(y)
    s, t, v = blur(x * x) - m * m, blur(y * y) - n * n, blur(x * y) - m * n
    first, second = 0.01**2, 0.03**2
    light = (2 * m * n + first) / (m * m + n * n + first)
    return (light * (2 * v + second) / (s + t + second)).reshape(len(x), -1).mean(1)


# -------------------------------------------------------------------- what they show


def reads(classifier: Callable[[Tensor], Tensor], x: Tensor, batch: int = 500, top: int = 1) -> Tensor:
    """The classes (N,) that a classifier, x to logits (N, C), reads in samples; the `top` likeliest (N, top) for top > 1."""
    with torch.no_grad():
        logits = torch.cat([classifier(part) for part in x.split(batch)])
    return logits.argmax(-1) if top == 1 else logits.topk(top, -1).indices


def agreement(read: Tensor, asked: Tensor) -> float:
    """The share of samples read as the class asked for, or of which some reading (N, k) is.

    Raises EbbError unless there is one label for each.
    """
    if read.shape[:1] != asked.shape or not len(read):
        raise EbbError(f"give one label for each sample, not {len(asked)} for {len(read)}.")
    return float((read.reshape(len(asked), -1) == asked.to(read)[:, None]).any(1).double().mean())


def inception_score(logits: Tensor) -> float:
    """How sure readings are and how evenly spread over the classes, from logits (N, C): 1 to C."""
    log_p = logits.double().log_softmax(-1)
    mean = log_p.exp().mean(0)
    return float((torch.special.entr(mean).sum() + (log_p.exp() * log_p).sum(-1).mean()).exp())


def prompt_agreement(read: Tensor, prompts: Sequence[str], classes: Mapping[str, int]) -> float:
    """The share of samples read as the class that their prompt is of.

    read      (N,) from `reads`, or (N, k) where any of the k likeliest counts
    prompts   one for each sample
    classes   the class of every prompt

    Raises EbbError for a prompt without a class.
    """
    for prompt in prompts:
        if prompt not in classes:
            raise EbbError(f"no class is known for the prompt {prompt!r}; {nearest(prompt, list(classes))}")
    return agreement(read, torch.tensor([classes[p] for p in prompts]))
