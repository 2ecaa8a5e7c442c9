"""Rewards: what makes one sample better than another, by a name or as a function in a Python file.

    "mean"   {"name": "near", "point": [1.0, 0.0]}   "digit"   "vowels"   "judge.py:sharpness"

A reward is a function of samples x (B, ...) in data space (pixels of pictures, tokens of text) that gives scores (B,); each
score depends on its own row alone. It may ask for more by the names of its arguments: `cond`, the conditions of the samples,
and `text`, the samples as strings. All other arguments are parameters, which a plan gives beside the name.

A file is run when a run begins, never when a plan is read. A sample whose reward raises, or gives no finite number, has no
score (NaN); the others have theirs.

Shapes   x (B, ...), or a dict of fields; scores (B,) float64 on the CPU
Source   the interface of Singhal et al. 2025 (arXiv 2501.06848), and the verifiers of Ma et al. 2025 (2501.09732)
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.tree import Tree, leaves, tree_map
from ebbtide.measure.functions import Functions, Spec, line

REWARDS = Functions("reward", asked=("cond", "text"))
reward, names, check, find = REWARDS.register, REWARDS.names, REWARDS.check, REWARDS.find


# -------------------------------------------------------------------- the named ones


@reward("mean")
def mean(x: Tree) -> Tensor:
    """The mean of all numbers of a sample: the brightness of a picture."""
    each = [v.flatten(1).double().mean(1) for v in leaves(x).values()]
    return torch.stack(each).mean(0)


@reward("near")
def near(x: Tensor, point: Any = 0.0) -> Tensor:
    """Minus half the squared distance to a point: the logarithm of a Gaussian around it, for strength 1."""
    away = x.double() - torch.as_tensor(point, dtype=torch.float64, device=x.device)
    return -away.flatten(1).square().sum(1) / 2


@reward("hit")
def hit(x: Tensor, point: Any = 0.0, width: float = 0.1) -> Tensor:
    """exp of minus half the squared distance to a point in units of `width`: 1 at the point, nothing far from it."""
    return (near(x, point) / width**2).exp()


@reward("digit")
def digit(x: Tensor, cond: Mapping[str, Tree], label: int | None = None) -> Tensor:
    """The probability that the shipped classifier reads the digit `label`, or the one each sample was asked to be."""
    from ebbtide.zoo import classifier

    asked = cond.get("label") if label is None else torch.full((len(x),), label)
    if not isinstance(asked, Tensor):
        raise EbbError("the reward 'digit' needs to know which: give it a label, or sample with one.")
    p = classifier.load()(x.float().cpu()).double().softmax(-1)
    if not bool(((asked >= 0) & (asked < p.shape[-1])).all()):
        raise EbbError(f"the reward 'digit' knows the digits 0 to {p.shape[-1] - 1}: give it a label.")
    return p.gather(1, asked.cpu()[:, None])[:, 0]


@reward("vowels")
def vowels(x: Tensor, text: list[str], letters: str = "aeiou") -> Tensor:
    """The share of vowels among the letters of a text; `letters` says which are counted."""
    share = [
        sum(c in letters for c in words) / max(1, sum(c.isalpha() for c in words))
        for words in (t.lower() for t in text)
    ]
    return torch.tensor(share, dtype=torch.float64)


# -------------------------------------------------------------------- asking them


class Scores(NamedTuple):
    """What a reward said: scores (B,), NaN where it said nothing, and for which reasons, with how many samples each."""

    value: Tensor
    unread: Counter[str]


class Seen(NamedTuple):
    """Samples as a reward sees them: in data space, with their conditions, and what makes text of them."""

    x: Tree
    cond: dict[str, Tree]
    text: Callable[[Tree], list[str]]

    def __len__(self) -> int:
        return len(next(iter(leaves(self.x).values())))

    def row(self, k: int) -> Seen:
        """One of them."""
        one = lambda v: v[k : k + 1]  # noqa: E731
        return Seen(tree_map(one, self.x), tree_map(one, self.cond), self.text)


def scores(f: Callable[..., Any], seen: Seen) -> Scores:
    """What a reward says of samples. One that raises is asked of each alone, to find which it cannot read.

    Raises EbbError for scores that are not one number a sample.
    """
    try:
        said = _ask(f, seen)
    except Exception as error:
        if len(seen) > 1:
            each = [scores(f, seen.row(k)) for k in range(len(seen))]
            return Scores(torch.cat([s.value for s in each]), sum((s.unread for s in each), Counter()))
        return Scores(torch.full((1,), torch.nan, dtype=torch.float64), Counter({f"raised {line(error)}": 1}))
    if said.shape != (len(seen),):
        raise EbbError(
            f"a reward gives one score a sample, of shape ({len(seen)},) for {len(seen)} of them, not {tuple(said.shape)}."
        )
    value = said.detach().double().cpu()
    lost = int((~value.isfinite()).sum())
    return Scores(value.where(value.isfinite(), torch.nan), Counter({"gave no finite number": lost} if lost else {}))


def trial(spec: Spec, seen: Seen) -> None:
    """Ask a reward once, before any work. Raises EbbError for wrong shapes and for what it lacks; else nothing."""
    f = find(spec)
    try:
        _ask(f, seen)
    except EbbError:
        raise
    except Exception:  # it may read real samples: then those that it cannot are told at the end
        return
    scores(f, seen)


def _ask(f: Callable[..., Any], seen: Seen) -> Tensor:
    wanted = inspect.signature(f).parameters
    extra: dict[str, Any] = {"cond": seen.cond} if "cond" in wanted else {}
    if "text" in wanted:
        extra["text"] = seen.text(seen.x)
    return torch.as_tensor(f(seen.x, **extra))
