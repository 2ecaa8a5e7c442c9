"""Learning a voice: what a pipeline that was heard says of how its denoiser is called.

    time told = t | t / N | 1 - t / N | N - t,   t in the scheduler's clock of N steps, whole where the scheduler's are

One element and two elements tell own arguments from fixed ones; two steps tell what the time is, and that nothing else
changes on the way; guidance on and off tells which rows are the null condition. In the middle of a call there is one turn
alone, and an element's own is what has as many rows as there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.interop.pipelines.hearing import Heard, Said
from ebbtide.interop.pipelines.voice import TIME, Voice, equal, flat

_SHARED = frozenset({"img_ids", "txt_ids"})  # places of tokens, which have no batch
_TOLD: tuple[Callable[[Any, float], Any], ...] = (
    lambda t, n: t,
    lambda t, n: t / n,
    lambda t, n: 1 - t / n,
    lambda t, n: n - t,
)


def voice(one: Heard, two: Heard, clock: float, flow: bool) -> Voice:
    """The voice of a pipeline that was heard with one element for two turns, and guided with two elements for one.

    Raises EbbError that names the argument which cannot be given, or how the latents are changed on the way.
    """
    said, again = flat(one.turns[0][0]), flat(one.turns[1][0])
    x = next(iter(one.turns[0][0]))
    if (TIME,) not in said:
        raise EbbError(f"this denoiser has no argument {TIME!r} (it takes {', '.join(one.turns[0][0])}): unknown here.")
    told = _told([(t, said_[TIME,]) for (t, _), said_ in zip(one.samples, (said, again), strict=True)], clock)
    rest = {k: v for k, v in said.items() if k not in ((x,), (TIME,))}
    for path, value in rest.items():
        if path not in again or not equal(value, again[path]):
            raise EbbError(
                f"the argument {'.'.join(path)!r} of this denoiser changes from step to step: unknown here, so the "
                "pipeline cannot be loaded as a model."
            )
    wide = flat(two.turns[0][0])
    own = frozenset(k for k, v in rest.items() if isinstance(v, Tensor) and v.shape[:1] != wide[k].shape[:1])
    fixed = {k: v for k, v in rest.items() if k not in own}
    whole, joined = whole_of(one.scheduler, flow), _joined(said[x,], one.samples[0][1])
    return Voice(x, told, clock, own, fixed, whole, joined, _null_first(rest, wide, own))


def timed(spoken: Voice, module: Any, latents: Tensor, cond: dict[str, Any]) -> tuple[Voice, tuple[int, ...]]:
    """The voice that tells a time for every frame of latents (1, C, F, H, W) or token (1, L, C), and the shape of units.

    Raises EbbError for a denoiser that wants one time for an element: asked with equal times, it answers otherwise.
    """
    kind = type(module).__name__
    units: tuple[int, ...] = (latents.shape[1],)
    tokens = 1
    if latents.ndim == 5:
        size = getattr(module.config, "patch_size", 1)
        deep, high, wide = size if isinstance(size, list | tuple) else (1, size, size)
        if deep != 1:
            raise EbbError(f"{kind} has {deep} frames in one token, so they share a time; leave units out.")
        units, tokens = (1, latents.shape[2]), latents.shape[3] // high * (latents.shape[4] // wide)
    elif latents.ndim != 3:
        raise EbbError("only frames and tokens have times of their own, and this makes pictures; leave units out.")
    each, t = replace(spoken, tokens=tokens), torch.full((1,), 0.5 * spoken.clock, device=latents.device)
    try:
        with torch.no_grad():
            one = spoken(module, latents, t, cond)
            many = each(module, latents, t.reshape(1, *(1 for _ in units)).expand(1, *units), cond)
        same = bool((one - many).abs().max() <= 1e-2 * one.abs().max())
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        same = False
    if not same:
        raise EbbError(f"{kind} is told one time for an element, not one for each of {units[-1]}; leave units out.")
    return each, units


def overheard(said: Said, t: float, latents: Tensor, clock: float, whole: Any, first: bool) -> Voice:
    """The voice of a pipeline in the middle of a call, of one turn alone: an element's own is what has as many rows.

    Raises EbbError as `voice` does.
    """
    x = next(iter(said))
    if TIME not in said:
        raise EbbError(f"this denoiser has no argument {TIME!r} (it takes {', '.join(said)}): unknown here.")
    rest = {k: v for k, v in flat(said).items() if k not in ((x,), (TIME,))}
    rows = len(said[x])
    own = frozenset(
        k for k, v in rest.items() if isinstance(v, Tensor) and v.shape[:1] == (rows,) and k[-1] not in _SHARED
    )
    fixed = {k: v for k, v in rest.items() if k not in own}
    return Voice(x, _told([(t, said[TIME])], clock), clock, own, fixed, whole, _joined(said[x], latents), first)


def whole_of(scheduler: Any, flow: bool) -> Callable[[Tensor], Tensor] | None:
    """How a scheduler's times become whole, or None where they do not."""
    return None if scheduler.timesteps.is_floating_point() else _truncated if flow else torch.round


def _truncated(clock: Tensor) -> Tensor:
    """Flow schedulers cut the fraction off; what rounding left below a whole number is that number."""
    return (clock + 5e-4).floor()


def _null_first(said: dict[Any, Any], wide: dict[Any, Any], own: frozenset[Any]) -> bool:
    """Whether the second half of the guided rows is nearer to what was said without guidance than the first."""
    near = [0.0, 0.0]
    for path in own:
        rows = wide[path]
        for j, half in enumerate(rows.chunk(2) if len(rows) > 2 else (rows, rows)):
            near[j] += float((half[:1].double() - said[path].double()).abs().sum())
    return near[1] <= near[0]


def _joined(x: Tensor, latents: Tensor) -> int:
    """The channels of the latents, where others are joined to them; 0 where none are."""
    shown, own = x.shape[1:], latents.shape[1:]
    if shown == own:
        return 0
    if len(shown) == len(own) and shown[1:] == own[1:] and shown[0] > own[0]:
        return int(own[0])
    raise EbbError(f"this denoiser is shown {tuple(shown)} where the sample is {tuple(own)}, which is not read here.")


def _told(pairs: list[tuple[float, Any]], clock: float) -> Callable[[Any, float], Any]:
    """The rule by which the times were told, to within what bfloat16 rounds twice."""
    listed = [(t, torch.as_tensor(said).double().reshape(-1)) for t, said in pairs]
    if any(bool((said != said[0]).any()) for _, said in listed):
        raise EbbError("this denoiser is told a time for every token or frame, which is not read here.")
    for rule in _TOLD:
        if all(abs(float(said[0]) - rule(t, clock)) <= 1.2e-2 * abs(float(said[0])) + 1e-6 for t, said in listed):
            return rule
    raise EbbError(f"this denoiser is told {float(listed[0][1][0]):.4g} at time {listed[0][0]:.4g}: an unknown clock.")
