"""Streams: frames at different steps share one batch, so each costs one network call, whatever the number of steps.

    tick k    pool <- cat(pool, begin(frame k));   pool <- step(pool);   what has arrived leaves, in the order of the frames

Every frame has a state of its own, its noise, time and memory with it, so what comes out is what sampling it alone would
give: bit for bit where the denoiser answers rows alike in every batch, else within its rounding. A frame leaves after as many
ticks as it has steps.

    skip with probability max(0, (S - bar) / (1 - bar)),   S = cos(frame, last frame that was sampled)

A frame like the last one need not be sampled: it shows what that one shows. Chance lets slow motion through, and at most
`most` frames in a row are skipped.

Shapes   frames shaped like one sample, cond["source"] (1, ...) of their states
Paper    Kodaira et al. 2023, "StreamDiffusion" (arXiv 2312.12491), sections 3.1 and 3.4
Off      batched = False samples each frame to its end before the next; similar = None samples every frame.
Differs  a skipped frame does not stop the others: those in the pool go on, so a frame never waits for more than its own
         steps, and a pool that is empty costs nothing. Queues of input and output are the caller's iterators.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebbtide.api import require_effect
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.loop import Loop
from ebbtide.core.plan import Plan
from ebbtide.core.state import State
from ebbtide.core.tree import Tree, tree_map
from ebbtide.denoise.model import Model

_SALT = 7001


class Shown(NamedTuple):
    """What a frame shows.

    frame   its number, counted from 0
    x       its sample
    source  the frame that was sampled: itself, or the one that it is like
    tick    when it came out: frame k came in at tick k
    """

    frame: int
    x: Tree
    source: int
    tick: int


@dataclass(frozen=True)
class Similar:
    """When a frame is skipped for being like the last one sampled.

    bar   the cosine from which frames may be skipped, below 1
    most  how many in a row at most
    """

    bar: float = 0.98
    most: int = 10

    def __post_init__(self) -> None:
        if not -1 <= self.bar < 1 or self.most < 0:
            raise EbbError(f"similarity needs a bar in [-1, 1) and most >= 0, not {self.bar} and {self.most}.")

    def chance(self, frame: Tensor, last: Tensor) -> float:
        """The probability of skipping it."""
        a, b = frame.double().flatten(), last.double().flatten()
        size = ((a @ a) * (b @ b)).sqrt()
        cosine = float(a @ b / size) if size else float(torch.equal(a, b))
        return max(0.0, (cosine - self.bar) / (1 - self.bar))


@dataclass
class Stream:
    """Frames in, samples out, in one batch; call it with an iterable of frames.

    A frame is a tensor, cond["source"] of the plan's start, or a mapping of leaves of the condition, each of one element;
    `cond` is what all frames are asked under. Frame k has seed + k.

    batched  whether frames share calls; else each is sampled to its end at once
    similar  when frames are skipped; None: never

    What it did so far: `ticks`, `calls` rows that the network computed, `skipped` frames, and `notes` of its techniques.

    Raises EbbError where plan, model and condition do not fit, and, at the end, for a technique that did nothing.
    """

    model: Model
    plan: Plan
    cond: Any = None
    seed: int = 0
    batched: bool = True
    similar: Similar | None = None
    device: torch.device | None = None
    ticks: int = field(default=0, init=False)
    calls: int = field(default=0, init=False)
    skipped: int = field(default=0, init=False)
    notes: Counter[str] = field(default_factory=Counter, init=False)

    def __call__(self, frames: Iterable[Tensor | Mapping[str, Any]]) -> Iterator[Shown]:
        """What each frame shows, in their order, as soon as it is known."""
        self.ticks = self.calls = self.skipped = 0
        self.notes = Counter()
        loop: Loop | None = None
        pool: State | None = None
        waiting: deque[tuple[int, int]] = deque()  # frames that were not shown yet, and which sample each shows
        arrived: dict[int, Tree] = {}
        last, shown, passed = None, -1, 0
        for k, frame in enumerate(frames):
            cond = self._condition(frame)
            if last is not None and self._skips(k, cond, last, passed):
                passed, self.skipped = passed + 1, self.skipped + 1
            else:
                loop = self.model.loop(self.plan, cond) if loop is None else loop
                fresh = self._begin(loop, cond, k)
                pool = fresh if pool is None else pool.cat(fresh)
                last, shown, passed = cond, k, 0
            waiting.append((k, shown))
            pool = self._tick(loop, pool, arrived)
            yield from self._leaving(waiting, arrived, k)
            self.ticks = k + 1
        while pool is not None:
            pool = self._tick(loop, pool, arrived)
            yield from self._leaving(waiting, arrived, self.ticks)
            self.ticks += 1
        if loop is not None:
            require_effect(self.plan, self.notes)

    def _condition(self, frame: Tensor | Mapping[str, Any]) -> dict[str, Tree]:
        own = dict(frame) if isinstance(frame, Mapping) else {"source": frame}
        common = self.model.condition(self.cond, 1)
        return {**common, **self.model.rows(tree_map(lambda v: torch.as_tensor(v)[None], own), 1)}

    def _begin(self, loop: Loop, cond: dict[str, Tree], k: int) -> State:
        like = self.model.batch(1, self.device)
        if self.device is not None:
            cond = tree_map(lambda v: v.to(self.device), cond)
        return loop.begin(like, cond, [self.seed + k], self.model.unit_shape(), torch.tensor([k]))

    def _skips(self, k: int, cond: dict[str, Tree], last: dict[str, Tree], passed: int) -> bool:
        if self.similar is None or passed >= self.similar.most:
            return False
        if not all(isinstance(c.get("source"), Tensor) for c in (cond, last)):
            raise EbbError('similarity compares what frames are made of: give frames with the leaf "source".')
        u = Noise(keys([self.seed]), torch.tensor([k]), _SALT).uniform((1,))
        return float(u) < self.similar.chance(cond["source"], last["source"])

    def _tick(self, loop: Loop | None, pool: State | None, arrived: dict[int, Tree]) -> State | None:
        """One step of all frames in the pool, or, one by one, all of theirs; gives those that go on."""
        while loop is not None and pool is not None:
            state = pool
            if not loop.done(state):
                step = loop.step(state)
                state, self.calls = step.state, self.calls + step.calls
                self.notes.update(step.info)
            ended = loop.grid.done(state, state.memory.get("grid", {})).reshape(len(state), -1).all(1)
            for row in ended.nonzero()[:, 0].tolist():
                arrived[int(state.group[row])] = tree_map(lambda v, row=row: v[row], state.x)
            left = (~ended).nonzero()[:, 0]
            pool = state if len(left) == len(state) else state.take(left) if len(left) else None
            if self.batched:
                break
        return pool

    def _leaving(self, waiting: deque[tuple[int, int]], arrived: dict[int, Tree], tick: int) -> Iterator[Shown]:
        while waiting and waiting[0][1] in arrived:
            index, source = waiting.popleft()
            yield Shown(index, arrived[source], source, tick)
            for old in [j for j in arrived if j < source]:
                del arrived[old]
