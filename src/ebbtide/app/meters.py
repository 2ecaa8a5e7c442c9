"""The figures of `ebb eval`: which there are for a model, and their intervals for its samples.

    frechet    kernel     distance of features to data, of all samples together             the lower the better
    precision  recall     whether samples lie among data, and data among samples            the higher the better
    density    coverage   the same, of dense places
    agreement             share that the classifier reads as the label asked for
    error                 distance of each sample to that of a fine run from the same seed  the lower the better
    perplexity            of text, under a causal judge                                     the lower the better
    distinct   entropy    of text, by itself: n-grams that occur once, letters' variety     the higher the better

Features are the shipped classifier's where the model draws the digits that it reads, or pixels averaged to at most 8 x 8.
Intervals are those of resampled samples (`measure.certainty`); data stands still.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebbtide.core.errors import EbbError, nearest
from ebbtide.denoise.model import Model
from ebbtide.measure import metrics as m
from ebbtide.measure.convergence import distance
from ebbtide.process.affine import Affine
from ebbtide.samples import finite_rows

LOWER = ("frechet", "kernel", "error", "perplexity")
HIGHER = ("precision", "recall", "density", "coverage", "agreement", "distinct", "entropy")
NAMES = (*LOWER, *HIGHER)
MANIFOLD = ("precision", "recall", "density", "coverage")
FEATURES = ("classifier", "pixels")
JUDGE = "shakespeare-causal"
_POOLED = 8


def badness(name: str, value: float) -> float:
    """A figure with its sign turned so that less is better."""
    return value if name in LOWER else -value


def draws_digits(model: Model) -> bool:
    """Whether the model was trained on the pictures that the shipped classifier was trained on."""
    from ebbtide import zoo

    def data(folder: Path) -> Any:
        try:
            return json.loads((folder / "recipe.json").read_text(encoding="utf-8")).get("data")
        except (OSError, ValueError):
            return None

    own = zoo.folder(model.name) if model.name in zoo.names() else Path(model.name)
    known = data(zoo.WEIGHTS / "classifier")
    return known is not None and data(own) == known


@dataclass(frozen=True, eq=False)
class Meters:
    """What is measured of samples, chosen and checked before any is drawn.

    names      of the figures, the first the one that plans are ranked by
    asked      the label of each sample, where that is what was asked for
    features   pixels to features
    data       features of pictures to compare with; their mean and covariance stand for them where they do not ship
    judge      of text
    """

    model: Model
    names: tuple[str, ...]
    asked: Tensor | None = None
    features: Callable[[Tensor], Tensor] = field(default=lambda x: x)
    data: Tensor | None = None
    moments: tuple[Tensor, Tensor] | None = None
    judge: Any = None

    def measure(self, x: Tensor, reference: Tensor | None = None) -> dict[str, m.Interval]:
        """Every figure of samples x (n, ...), as intervals; infinite where a sample is not finite."""
        if not bool(finite_rows(x).all()):
            lost = m.Interval(torch.nan, torch.nan, torch.nan)
            return dict.fromkeys(self.names, lost)
        found: dict[str, m.Interval] = {}
        if "error" in self.names:
            assert reference is not None
            found["error"] = m.bootstrap(distance, x.double(), reference.double(), paired=True)
        if set(self.names) & {"frechet", "kernel", "agreement", *MANIFOLD}:
            found |= self._of_pictures(self.model.pixels(x))
        if set(self.names) & {"perplexity", "distinct", "entropy"}:
            found |= self._of_text(x)
        return {name: found[name] for name in self.names}

    def _of_pictures(self, pixels: Any) -> dict[str, m.Interval]:
        found: dict[str, m.Interval] = {}
        if "agreement" in self.names:
            from ebbtide.zoo import classifier

            assert self.asked is not None
            found["agreement"] = m.bootstrap(
                m.agreement, m.reads(classifier.load(), pixels.float()), self.asked, paired=True
            )
        rows = self.features(pixels.float().cpu()) if set(self.names) - {"agreement", "error"} else pixels
        if "frechet" in self.names:
            assert self.moments is not None
            mean, cov = self.moments
            found["frechet"] = m.bootstrap(lambda x: m.frechet(*m.moments(x), mean, cov), rows)
        if "kernel" in self.names:
            own = self._equal(rows)
            found["kernel"] = m.bootstrap(lambda x: m.kernel_distance(x, own), rows)
        if set(self.names) & set(MANIFOLD):
            own = self._equal(rows)
            found |= m.bootstrap_each(lambda x: m.manifold(x, own, min(5, len(x) - 1)), rows, draws=50, repeat=False)
        return found

    def _equal(self, rows: Tensor) -> Tensor:
        """As many pictures of the data as there are samples, evenly spread over it."""
        assert self.data is not None
        n = min(len(rows), len(self.data))
        return self.data[torch.arange(n) * len(self.data) // n]

    def _of_text(self, x: Tensor) -> dict[str, m.Interval]:
        found: dict[str, m.Interval] = {}
        if "perplexity" in self.names:
            from ebbtide.zoo.text import encode

            show: Any = self.model.decode
            start = self.judge.start
            said = [encode(show(row), self.judge.alphabet) for row in x]
            tokens = nn.utils.rnn.pad_sequence(said, batch_first=True, padding_value=start)
            scores = m.nll(self.judge, tokens, start=start, pad=start)
            found["perplexity"] = m.bootstrap(m.perplexity, *scores, paired=True)
        if "distinct" in self.names:
            found["distinct"] = m.bootstrap(m.distinct, x, repeat=False)
        if "entropy" in self.names:
            found["entropy"] = m.bootstrap(m.entropy, x)
        return found


# -------------------------------------------------------------------- which there are


def meters(
    model: Model,
    cond: dict[str, Any],
    n: int,
    asked: Sequence[str] = (),
    data: str | None = None,
    features: str | None = None,
    judge: str | None = None,
) -> Meters:
    """The meters of a model: those asked for by name, or those that tell most.

    cond      the condition of the n samples
    data      pictures to compare with
    features  "classifier" or "pixels"; by default the former where it reads what the model draws
    judge     a causal model of text, by its name or folder

    Raises EbbError for figures that there are not, or not of this model, and says what they want.
    """
    from ebbtide import zoo

    for name in asked:
        if name not in NAMES:
            raise EbbError(f"there is no figure {name!r}; {nearest(name, NAMES)}")
    text, picture, digits = model.medium == "text", model.medium == "image", draws_digits(model)
    for given, flag, right in ((data, "data", picture), (features, "features", picture), (judge, "judge", text)):
        if given is not None and not right:
            raise EbbError(
                f"--{flag} is for {'text' if flag == 'judge' else 'pictures'}; {model.name} makes other things."
            )
    if features is not None and features not in FEATURES:
        raise EbbError(f"there are no features {features!r}; {nearest(features, FEATURES)}")
    kind = features or ("classifier" if digits else "pixels")
    if kind == "classifier" and not digits:
        raise EbbError(f"the shipped classifier reads digits, and {model.name} was trained on other data: use pixels.")
    labels = cond.get("label")
    judged = judge or (JUDGE if text and JUDGE in zoo.names() else None)
    there = {
        "frechet": picture and (data is not None or digits),
        **dict.fromkeys(("kernel", *MANIFOLD), data is not None),
        "agreement": digits and isinstance(labels, Tensor) and bool((labels < 10).all()),
        "error": isinstance(model.process, Affine),
        "perplexity": judged is not None,
        **dict.fromkeys(("distinct", "entropy"), text),
    }
    for name in asked:
        if not there[name]:
            raise EbbError(f"{name} of {model.name} cannot be measured: {_wants(name)}.")
    usual = ["frechet", "agreement", "kernel", "precision", "recall", "perplexity", "distinct", "entropy"]
    chosen = tuple(asked) or tuple(name for name in usual if there[name]) or (("error",) if there["error"] else ())
    if not chosen:
        raise EbbError(f"nothing can be measured of {model.name} yet: its samples are neither pictures nor text.")
    read, rows, moments = _features(kind), None, None
    if data is not None and set(chosen) & {"frechet", "kernel", *MANIFOLD}:
        rows = read(_pictures(model, data))
        moments = m.moments(rows)
    elif "frechet" in chosen:
        from ebbtide.zoo import reference

        if kind != "classifier":
            raise EbbError("what ships of the digits are features of the classifier; for pixels give --data.")
        held = reference.load()
        moments = held["test.mean"], held["test.cov"]
    made = None
    if "perplexity" in chosen:
        from ebbtide.zoo.language import judge as opened

        assert judged is not None
        made = opened(judged)
    labels = labels if "agreement" in chosen else None
    return Meters(model, chosen, labels, read, rows, moments, made)


def _wants(name: str) -> str:
    if name in ("frechet", "kernel", *MANIFOLD):
        return "it compares pictures with data, so give --data"
    return {
        "agreement": "it wants samples of digits under labels, which the shipped classifier reads",
        "error": "its process draws at every step, so a finer run is no reference",
        "perplexity": "it wants text and a causal model that judges it, so give --judge",
    }.get(name, "it is a figure of text")


def _features(kind: str) -> Callable[[Tensor], Tensor]:
    """Pixels (n, C, H, W) to float64 features (n, D)."""
    if kind == "classifier":
        from ebbtide.zoo.reference import features

        return features

    def pooled(x: Tensor) -> Tensor:
        size = min(_POOLED, x.shape[-2]), min(_POOLED, x.shape[-1])
        return F.adaptive_avg_pool2d(x.double(), size).flatten(1)

    return pooled


def _pictures(model: Model, data: str) -> Tensor:
    """The pictures of a file or folder in the size of the model's, in [-1, 1]."""
    from ebbtide.zoo.data import load_pictures

    shape = model.pixels(model.batch(1)).shape[1:]
    found = load_pictures(data, shape[-1] if shape[-1] == shape[-2] else None).x
    if found.shape[1:] != shape:
        raise EbbError(f"the pictures of {data} are {(*found.shape[1:],)} and those of {model.name} {(*shape,)}.")
    return found
