"""Metrics: how good samples are, in one place.

    of any samples   frechet_distance kernel_distance energy_distance energy_test sliced_w2 nearest_distance  (distances)
                     manifold: precision, recall, density, coverage; spread, vendi                            (manifolds)
    of pictures      psnr ssim; reads agreement prompt_agreement inception_score                              (pictures)
    of text          nll pseudo_nll perplexity accuracy rate; exact_match distinct entropy                    (text)
    as intervals     bootstrap, bootstrap_each                                                                (certainty)

Give distances and manifolds features rather than pixels, and sets of one size where figures are to be compared: most fall
as sets grow. Every figure comes with an interval by the one helper, `bootstrap(metric, *samples)`.
"""

from __future__ import annotations

from ebbtide.measure.certainty import Interval, bootstrap, bootstrap_each
from ebbtide.measure.distances import (
    TwoSample,
    energy_distance,
    energy_test,
    frechet,
    frechet_distance,
    kernel_distance,
    moments,
    nearest_distance,
    sliced_w2,
)
from ebbtide.measure.manifolds import Manifold, manifold, spread, vendi
from ebbtide.measure.pictures import agreement, inception_score, prompt_agreement, psnr, reads, ssim
from ebbtide.measure.text import (
    Scores,
    accuracy,
    asked_of,
    distinct,
    entropy,
    exact_match,
    nll,
    perplexity,
    pseudo_nll,
    rate,
)

__all__ = [
    "Interval",
    "Manifold",
    "Scores",
    "TwoSample",
    "accuracy",
    "agreement",
    "asked_of",
    "bootstrap",
    "bootstrap_each",
    "distinct",
    "energy_distance",
    "energy_test",
    "entropy",
    "exact_match",
    "frechet",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "manifold",
    "moments",
    "nearest_distance",
    "nll",
    "perplexity",
    "prompt_agreement",
    "pseudo_nll",
    "psnr",
    "rate",
    "reads",
    "sliced_w2",
    "spread",
    "ssim",
    "vendi",
]
