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

import functools
import importlib.util
import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.tree import Tree, leaves, tree_map

Spec = str | Mapping[str, Any]
_F = TypeVar("_F", bound=Callable[..., Tensor])
_NAMED: dict[str, Callable[..., Tensor]] = {}
_ASKED = ("cond", "text")


def reward(name: str) -> Callable[[_F], _F]:
    """Register a function of samples as the reward `name`."""

    def register(f: _F) -> _F:
        _NAMED[name] = f
        return f

    return register


def names() -> list[str]:
    """The names of all rewards that need no file."""
    return sorted(_NAMED)


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


# -------------------------------------------------------------------- finding them


def check(spec: Spec) -> None:
    """See that a reward can be meant by this, without running any file. Raises EbbError for what cannot."""
    name, given = _told(spec)
    if name is None:
        raise EbbError("a reward is a name, 'file.py:function', or a mapping with a 'name'.")
    if ".py" not in name:
        _fits(_named(name), name, given)


def find(spec: Spec) -> Callable[..., Tensor]:
    """The function that is meant, its parameters given.

    Raises EbbError for unknown names and parameters, for a file that is missing or fails, and for a function it lacks.
    """
    check(spec)
    name, given = _told(spec)
    assert name is not None
    f = _filed(name) if ".py" in name else _named(name)
    _fits(f, name, given)
    return functools.partial(f, **given)


def _told(spec: Spec) -> tuple[str | None, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    name = spec.get("name")
    return name if isinstance(name, str) else None, {k: v for k, v in spec.items() if k != "name"}


def _named(name: str) -> Callable[..., Tensor]:
    if name not in _NAMED:
        raise EbbError(f"there is no reward {name!r}; {nearest(name, _NAMED)} Your own is 'file.py:function'.")
    return _NAMED[name]


def _fits(f: Callable[..., Any], name: str, given: Mapping[str, Any]) -> None:
    places = inspect.signature(f).parameters
    known = [k for k in list(places)[1:] if k not in _ASKED]
    for key in given:
        if key not in known:
            raise EbbError(f"the reward {name!r} has no parameter {key!r}; {nearest(key, known)}")
    for key in known:
        place = places[key]
        if key not in given and place.default is place.empty and place.kind not in (place.VAR_KEYWORD,):
            raise EbbError(f"the reward {name!r} needs the parameter {key!r}: write {{name: {name}, {key}: ...}}.")


def _filed(name: str) -> Callable[..., Tensor]:
    path, _, function = name.rpartition(":")
    if not path or not function.isidentifier():
        raise EbbError(f"the reward {name!r} names no function: write 'file.py:function'.")
    if not Path(path).is_file():
        raise EbbError(f"the reward {name!r}: there is no file {path}.")
    module = _module(str(Path(path).resolve()), Path(path).stat().st_mtime_ns)
    f = getattr(module, function, None)
    if not callable(f):
        known = [k for k, v in vars(module).items() if inspect.isfunction(v)]
        raise EbbError(f"{path} has no function {function!r}; {nearest(function, known)}")
    found: Callable[..., Tensor] = f
    return found


@functools.lru_cache(16)
def _module(path: str, stamp: int) -> Any:
    spec = importlib.util.spec_from_file_location(f"ebbtide_reward_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise EbbError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise EbbError(f"{path} cannot be run: {_line(error)}.") from error
    return module


def _line(error: Exception) -> str:
    said = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


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
        return Scores(torch.full((1,), torch.nan, dtype=torch.float64), Counter({f"raised {_line(error)}": 1}))
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
