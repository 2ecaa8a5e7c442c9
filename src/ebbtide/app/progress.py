"""How far a run is: network calls done and expected, calls a second, time left."""

from __future__ import annotations

import time

from ebbtide.core.state import State, Step


def share(state: State) -> float:
    """The part of its grid that a state has walked, 0 to 1, averaged over units.

    Counted in steps where the grid's points are known beforehand, in time where they are not.
    """
    points = state.memory.get("grid", {}).get("points")
    if points is None:
        return float((1 - state.t.double()).mean())
    return min(1.0, float(state.i.double().mean()) / (points.shape[-1] - 1))


class Pace:
    """The figures of a run; `calls` are counted in samples: a call on a batch of 16 is 16.

    n        samples in all, `finished` of them before this call of `sample` and `calls` spent on them
    """

    def __init__(self, n: int, finished: int = 0, calls: int = 0, started: float = 0.0) -> None:
        self.n, self.calls, self.first_calls = n, calls, calls
        self.done = self.first = min(1.0, finished / n + started)
        self.began = time.perf_counter()

    def add(self, step: Step, places: list[int]) -> None:
        """Take in one step of a batch, of whose elements `places` are the places."""
        self.calls += step.calls
        self.done = (places[0] + len(places) * share(step.state)) / self.n

    @property
    def total(self) -> int | None:
        """The calls of the whole run, from those of the part that is done; None before the first step."""
        return None if self.done <= 0 else max(self.calls, round(self.calls / self.done))

    @property
    def rate(self) -> float:
        """Calls a second."""
        return (self.calls - self.first_calls) / max(1e-9, time.perf_counter() - self.began)

    @property
    def left(self) -> float | None:
        """Seconds to go at this pace; None before it is known."""
        return rest(time.perf_counter() - self.began, self.done - self.first, 1 - self.done)


def rest(seconds: float, done: float, more: float) -> float | None:
    """Seconds to go, when so many were spent on what is done and there is so much more of it; None where nothing is done."""
    return None if done <= 0 else seconds * max(0.0, more) / done


def speed(rate: float) -> str:
    """0.52/s, 41.3/s, 1536/s."""
    return f"{rate:.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


def clock(seconds: float | None) -> str:
    """0:07, 12:34, 1:02:03."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
