"""The voice of a pipeline: how its denoiser is called, and how what was said to it becomes a condition.

    argument = x | time | the element's own (its first dimension follows the batch) | fixed (everything else)

Shapes   own arguments (B, ...), fixed ones of any shape
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.interop.pipelines.hearing import Said

TIME = "timestep"
JOINED = ("joined",)


def flat(said: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Arguments, and those inside of dictionaries and of lists of tensors, by their paths."""
    if isinstance(said, list | tuple) and said and all(isinstance(v, Tensor) for v in said):
        said = {f"[{k}]": v for k, v in enumerate(said)}
    if not isinstance(said, dict) or not said:
        return {path: said}
    return {k: v for name, inner in said.items() for k, v in flat(inner, (*path, name)).items()}


def nested(leaves: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """The tree of such leaves, lists as dictionaries."""
    out: dict[str, Any] = {}
    for path, value in leaves.items():
        at = out
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = value
    return out


def listed(tree: Any) -> Any:
    """The tree as it was said, with its lists."""
    if not isinstance(tree, dict):
        return tree
    inner = {k: listed(v) for k, v in tree.items()}
    return list(inner.values()) if "[0]" in inner else inner


@dataclass(frozen=True, eq=False)
class Voice:
    """How a denoiser is called.

    x       the name of its first argument, the latents
    told    the time that it is told, of the scheduler's time and the length of its clock
    clock   that length
    own     the paths of the arguments that belong to an element
    fixed   all other arguments
    whole   how times become whole, for a scheduler that tells whole ones
    joined  the number of channels of the latents, where the denoiser is shown more: those are the element's own too
    first   whether the null rows come first where both conditions go into one call
    tokens  how many tokens each unit spans, where units have times of their own
    """

    x: str
    told: Callable[[Any, float], Any]
    clock: float
    own: frozenset[tuple[str, ...]]
    fixed: dict[tuple[str, ...], Any]
    whole: Callable[[Tensor], Tensor] | None = None
    joined: int = 0
    first: bool = True
    tokens: int = 1

    def condition(self, turn: list[Said], n: int) -> dict[str, Any]:
        """The condition that one turn says, for n elements; with the leaf "null" where both were said.

        Raises EbbError where something else was said that should have stayed.
        """
        cond, null = self._rows(turn, n)
        self.check(turn[0])
        out = nested(cond)
        return out if null is None else {**out, "null": nested(null)}

    def _rows(self, turn: list[Said], n: int) -> tuple[dict[tuple[str, ...], Tensor], Any]:
        said = [{k: v for k, v in flat(one).items() if k in self.own} for one in turn]
        if self.joined:
            for mine, one in zip(said, turn, strict=True):
                mine[JOINED] = one[self.x][:, self.joined :]
        rows = len(turn[0][self.x])
        if len(turn) == 1 and rows == n:
            return said[0], None
        if len(turn) == 1 and rows == 2 * n:
            halves = [{k: v[j * n : (j + 1) * n] for k, v in said[0].items()} for j in (0, 1)]
            return (halves[1], halves[0]) if self.first else (halves[0], halves[1])
        if len(turn) == 2 and rows == n:  # one call after the other, the condition's own first
            return said[0], said[1]
        raise EbbError(
            f"this pipeline asks its denoiser {len(turn)} times a step for {rows} rows, which is not read here."
        )

    def check(self, said: Said) -> None:
        """Raise EbbError where a fixed argument is another than when the pipeline was first heard."""
        for path, value in flat(said).items():
            if path in self.own or path in ((self.x,), (TIME,)):
                continue
            if path not in self.fixed or not equal(value, self.fixed[path]):
                raise EbbError(
                    f"the argument {'.'.join(path)!r} of this denoiser is not what it was when the pipeline was first "
                    "heard; where it depends on the prompt, give this one a model of its own: ebb.load(..., prompt=...)."
                )

    def __call__(self, module: Any, x: Tensor, clock: Tensor, cond: dict[str, Any]) -> Tensor:
        """Ask the denoiser: x (B, ...), the scheduler's time (B,) or of every unit, the condition as `condition` gives it."""
        if clock.ndim > 1:
            clock = clock.flatten(1).repeat_interleave(self.tokens, 1)
        t = clock if self.whole is None else self.whole(clock)
        said = self._rest(x, cond)
        shown = torch.cat([x, said.pop("joined").to(x)], 1) if self.joined else x
        said |= {self.x: shown, TIME: self.told(t, self.clock)}
        answer = module(**said)
        out: Tensor = answer[0] if isinstance(answer, tuple) else answer.sample
        return out

    @functools.cached_property
    def _plain(self) -> dict[str, Any] | None:
        """The fixed arguments, where no argument is a dictionary; otherwise None."""
        paths = (*self.own, *self.fixed)
        return {k[0]: v for k, v in self.fixed.items()} if all(len(k) == 1 for k in paths) else None

    def _rest(self, x: Tensor, cond: dict[str, Any]) -> dict[str, Any]:
        """All that the denoiser is told besides x and the time."""
        needed = self.own | {JOINED} if self.joined else self.own
        own = {k: v.to(x.device) for k, v in flat(cond).items() if k in needed}
        missing = needed - own.keys()
        if missing:
            raise EbbError(f"this denoiser needs {'.'.join(min(missing))!r}; give a prompt, or all that it is told.")
        if self._plain is not None:
            return {**self._plain, **{k[0]: v for k, v in own.items()}}
        made: dict[str, Any] = listed(nested({**self.fixed, **own}))
        return made


def equal(a: Any, b: Any) -> bool:
    """Whether two arguments are the same."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a is not b:
        return a.shape == b.shape and bool((a == b).all())
    return a is b or bool(type(a) is type(b) and a == b)
