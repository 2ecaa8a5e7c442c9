"""The one loop: a bound plan is a pure function from state to state, and sampling is its fold.

    grid says which times -> layers answer queries -> solver proposes a move -> grid accepts it, unit by unit
    -> corrections put it right;  steering goes around all of this

What is committed. When every unit moved (`accept` is None) nothing is masked. Otherwise x and the solver's memory follow
`accept` unit by unit, the grid's memory is what `settle` returns, and every other slot belongs to the element and follows
`accept.any()` over its units. Only elements with some unit left to move are computed.

Jumps. Where a unit's time went up its history is void: the solver's memory of that unit, and the layers' memory of that
element, start afresh; everything does when a shape changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.core.parts import Correct, Grid, Layer, Process, Solver, Start, Steer
from ebbtide.core.state import OWN, Move, Pred, Query, State, Step
from ebbtide.core.time import right
from ebbtide.core.tree import Memory, Tree, leaves, merge, merge_rows, tree_map

# Salts keep the draws of different parts of one step apart.
SALT = {"solve": 1, "start": 2, "steer": 3, "correct": 256, "guide": 512}


class Ask:
    """The denoiser bound to one state: answers queries through the layers and threads their memory.

    `ask(x, t)` asks one query, `ask.many(queries)` several in as few network calls as their shapes allow. Also here:
    `state`, `process`, `ahead(k)` the times k steps on, `noise` the draws of the part that is asking, `calls` the rows
    computed so far.
    """

    def __init__(self, loop: Loop, state: State, salt: int, given: Pred | None = None) -> None:
        self.loop, self.state, self.process, self.salt = loop, state, loop.process, salt
        self.given = given
        self.calls = 0
        self.notes: dict[str, int] = {}
        self.before = {name: state.memory.get(name, {}) for name in loop.layer_names}
        self.memory = dict(self.before)

    def __call__(
        self,
        x: Tree,
        t: Tensor,
        role: str = "point",
        cond: Any = OWN,
        tag: str = "main",
        of: Tensor | None = None,
        at: Tensor | None = None,
        until: Tensor | None = None,
    ) -> Pred:
        """The prediction at (x, t); see `Query` for the other arguments."""
        return self.many((Query(x, t, cond, tag, role, of, at, until),))[0]

    def many(self, queries: Sequence[Query]) -> list[Pred]:
        """The predictions of several queries. A prediction already paid for answers the state's own point."""
        if self.given is None:
            return self._layer(0, queries)
        own = [
            q.role == "point" and q.of is None and q.tag == "main" and q.cond is OWN and q.until is None
            for q in queries
        ]
        rest = [q for q, mine in zip(queries, own, strict=True) if not mine]
        asked = iter(self._layer(0, rest) if rest else ())
        return [self.given if mine else next(asked) for mine in own]

    def _layer(self, j: int, queries: Sequence[Query]) -> list[Pred]:
        name, outer = self.loop.layer_names[j], self.salt
        self.salt = SALT["guide"] + j
        inner = functools.partial(self._layer, j + 1)
        preds, self.memory[name] = self.loop.layers[j].many(queries, self.memory[name], inner, self, self.before[name])
        self.salt = outer
        return preds

    def note(self, technique: str, count: int) -> None:
        """Report that a technique did something `count` times; one that never does is an error of the run."""
        self.notes[technique] = self.notes.get(technique, 0) + count

    def ahead(self, k: int) -> Tensor:
        """The time of each unit k steps from here."""
        return self.loop.grid.ahead(self.state, self.state.memory.get("grid", {}), k)

    def pixels(self, x: Tree) -> Tree:
        """x in data space as people see it: pixels, where the model makes latents of pictures; else x itself."""
        return self.loop.pixels(x)

    def text(self, x: Tree) -> list[str]:
        """x in data space as text, one string an element. Raises EbbError where the model makes none."""
        return self.loop.text(x)

    @property
    def noise(self) -> Noise:
        """The draws of the part that is asking, for this step of this state; the solver's are replayed where recorded."""
        stored = self.state.memory.get("noise", {}).get("x") if self.salt == SALT["solve"] else None
        return Noise(self.state.key, self.state.i, self.salt, stored)


def _as_they_are(x: Tree) -> Tree:
    return x


def _no_text(x: Tree) -> list[str]:
    raise EbbError("this model makes no text.")


@dataclass(frozen=True, eq=False)
class Loop:
    """A plan bound to a model. `layers` are the guides, outermost first, and last the network's border.

    pixels, text   how the model shows samples, for parts that judge them
    """

    process: Process
    start: Start
    grid: Grid
    layers: tuple[Layer, ...]
    solve: Solver
    correct: tuple[Correct, ...] = ()
    steer: Steer | None = None
    gradients: bool = False
    pixels: Callable[[Tree], Tree] = _as_they_are
    text: Callable[[Tree], list[str]] = _no_text

    @functools.cached_property
    def layer_names(self) -> tuple[str, ...]:
        return (*(f"guide/{j}" for j in range(len(self.layers) - 1)), "network")

    @functools.cached_property
    def reads(self) -> frozenset[str]:
        """Leaves of the condition that parts read during the run, and that no network is told of."""
        parts = (self.grid, *self.layers, self.solve, *self.correct, *(() if self.steer is None else (self.steer,)))
        return frozenset().union(*(p.reads for p in parts))

    def ask(self, state: State, part: str = "steer", given: Pred | None = None) -> Ask:
        """The denoiser of `state`; `part` names who asks, so that its draws are its own."""
        return Ask(self, state, SALT[part], given)

    def _mode(self) -> AbstractContextManager[Any]:
        return torch.enable_grad() if self.gradients else torch.no_grad()

    # ---------------------------------------------------------------- start

    def begin(
        self,
        like: Tree,
        cond: dict[str, Tree],
        seeds: Sequence[int],
        units: Sequence[int] = (),
        group: Tensor | None = None,
    ) -> State:
        """The first state of a run: elements shaped like `like` (B, ...), one seed each; see `Start`.

        group   (B,) which elements belong to one request; by default each is one
        """
        with self._mode():
            blank = State.blank(like, cond, seeds, units)
            blank = blank if group is None else replace(blank, group=group)
            ask = Ask(self, blank, SALT["start"])
            ask.state = blank = blank.remember("grid", self.grid.init(blank, ask))
            state = self.start(like, cond, seeds, ask)
            state = state.remember("grid", {**blank.memory["grid"], **state.memory.get("grid", {})})
            return self._correct(self.fresh(state), None, {})[0]

    def fresh(self, state: State) -> State:
        """The state with fresh memory for solver, layers, corrections and steering."""
        ask = Ask(self, state, SALT["start"])
        owners: list[tuple[str, Any]] = [("solve", self.solve), *zip(self.layer_names, self.layers, strict=True)]
        owners += [(f"correct/{j}", c) for j, c in enumerate(self.correct)]
        if self.steer is not None:
            owners.append(("steer", self.steer))
        made = {name: part.init(state, ask) for name, part in owners}
        return replace(state, memory={**state.memory, **{k: v for k, v in made.items() if v}})

    # ---------------------------------------------------------------- one step

    def step(self, state: State) -> Step:
        """One step of every element: the pure unit of everything. The same state gives the same step."""
        with self._mode():
            if self.steer is None:
                return self.advance(state)
            return self.steer.step(state, state.memory.get("steer", {}), self.advance, self.ask, self.process)

    def advance(self, state: State, given: Pred | None = None) -> Step:
        """One step without steering; `given` is a prediction at the state's own point that is already paid for."""
        memory = state.memory
        s = self.grid.ahead(state, memory.get("grid", {}), 1)
        falling = bool((s < state.t).all())
        rows = None if falling else (s != state.t).reshape(len(state), -1).any(1).nonzero()[:, 0]
        if rows is None or len(rows) == len(state):
            rows, active, target = None, state, s
        else:
            active, target = state.take(rows), s[rows]
            given = None if given is None else given.map(lambda v: v[rows.to(v.device)])

        ask = Ask(self, active, SALT["solve"], given)
        if not len(active):  # every unit waits or has arrived
            still = Move(state.x, memory.get("solve", {}), err=torch.zeros_like(state.t))
            accept, grid_memory = self.grid.settle(state, memory.get("grid", {}), s, still)
            return Step(state.remember("grid", grid_memory), None, 0, accept, {})
        move, pred = self.solve.step(active, active.memory.get("solve", {}), target, ask, self.process)
        layers = ask.memory
        if rows is not None:
            move, layers, pred = _scatter(rows, state, move, layers, pred)

        accept, grid_memory = self.grid.settle(state, memory.get("grid", {}), s, move)
        t = s if move.t is None else move.t
        if accept is None:
            i = state.i + (1 if move.hops is None else move.hops)
            new = {**memory, **layers, "grid": grid_memory, "solve": move.memory}
            after = State(move.x, state.cond, t, i, state.key, state.group, new)
        else:
            after = self._commit(state, accept, move, t, layers, grid_memory)
        if not falling or move.t is not None:
            went_up = after.t > state.t
            after = self._void(after, went_up) if bool(went_up.any()) else after
        if not self.correct:
            return Step(after, pred, ask.calls, accept, ask.notes)
        after, calls = self._correct(after, pred, ask.notes, accept)
        return Step(after, pred, ask.calls + calls, accept, ask.notes)

    def _commit(
        self, state: State, accept: Tensor, move: Move, t: Tensor, layers: dict[str, Memory], grid_memory: Memory
    ) -> State:
        def unit(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(right(accept, new).to(new.device), new, old)

        some = accept.reshape(len(state), -1).any(1)

        def element(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(right(some, new).to(new.device), new, old)

        memory = state.memory
        kept = {k: merge(element, v, memory.get(k, {})) for k, v in layers.items()}
        solve = merge(unit, move.memory, memory.get("solve", {}))
        hops = torch.ones_like(state.i) if move.hops is None else move.hops
        return replace(
            state,
            x=tree_map(unit, move.x, state.x),
            t=torch.where(accept, t, state.t),
            i=state.i + hops * accept,
            memory={**memory, **kept, "grid": grid_memory, "solve": solve},
        )

    def _correct(
        self, state: State, pred: Pred | None, notes: dict[str, int], accept: Tensor | None = None
    ) -> tuple[State, int]:
        """All corrections, of the elements that moved only: one that waits or has arrived stays as it is.

        What they note joins `notes`, the step's.
        """
        if accept is not None:
            rows = accept.reshape(len(state), -1).any(1).nonzero()[:, 0]
            if len(rows) < len(state):
                return self._correct_some(state, pred, notes, rows)
        calls = 0
        for j, correct in enumerate(self.correct):
            name = f"correct/{j}"
            ask = Ask(self, state, SALT["correct"] + j)
            ask.notes = notes
            after, memory = correct(state, state.memory.get(name, {}), pred, ask, self.process)
            after = replace(after, memory={**after.memory, **{k: v for k, v in ask.memory.items() if v}, name: memory})
            calls += ask.calls
            if _shapes(after.x) != _shapes(state.x):
                kept = {k: v for k, v in after.memory.items() if k in ("grid", "steer", name)}
                after = self.fresh(replace(after, memory=kept))
            else:
                went_up = after.t > state.t
                after = self._void(after, went_up) if bool(went_up.any()) else after
            state = after
        return state, calls

    def _correct_some(self, state: State, pred: Pred | None, notes: dict[str, int], rows: Tensor) -> tuple[State, int]:
        if not len(rows):
            return state, 0
        part = state.take(rows)
        given = None if pred is None else pred.map(lambda v: v[rows.to(v.device)])
        after, calls = self._correct(part, given, notes)
        if _shapes(after.x) != _shapes(part.x):
            raise EbbError(
                "a correction changed the shape of some elements of a batch; those that go on must share one."
            )
        return state.put(rows, after), calls

    def _void(self, state: State, units: Tensor) -> State:
        """The state with the history of some units forgotten."""
        kept = {k: v for k, v in state.memory.items() if k in ("grid", "noise")}
        fresh = self.fresh(replace(state, memory=kept))
        some = units.reshape(len(state), -1).any(1)
        memory = dict(state.memory)
        for name in ("solve", *self.layer_names):
            chosen = units if name == "solve" else some

            def pick(new: Tensor, old: Tensor, chosen: Tensor = chosen) -> Tensor:
                return torch.where(right(chosen, new).to(new.device), new, old)

            memory[name] = merge(pick, fresh.memory.get(name, {}), memory.get(name, {}))
        return replace(state, memory=memory)

    def jump(self, state: State, x: Tree, t: Tensor, i: Tensor) -> State:
        """The state put at another point of the grid by who stands above the loop; what parts remember starts afresh."""
        own = {"solve", "steer", *self.layer_names, *(f"correct/{j}" for j in range(len(self.correct)))}
        kept = {k: v for k, v in state.memory.items() if k not in own}
        return self.fresh(replace(state, x=x, t=t, i=i, memory=kept))

    # ---------------------------------------------------------------- the fold

    def done(self, state: State) -> bool:
        """Whether every unit has arrived."""
        return bool(self.grid.done(state, state.memory.get("grid", {})).all())

    def run(self, state: State) -> Iterator[Step]:
        """The steps from `state` to the end of the grid; wrap the iterator for progress, preview or early stop."""
        while not self.done(state):
            step = self.step(state)
            state = step.state
            yield step


def _scatter(
    rows: Tensor, state: State, move: Move, layers: dict[str, Memory], pred: Pred
) -> tuple[Move, dict[str, Memory], Pred]:
    """What was computed for some elements, written back among all of them."""
    n = len(state)

    def put(new: Tensor | None, old: Tensor | None) -> Tensor:
        if old is None:
            assert new is not None
            old = new.new_zeros((n, *new.shape[1:]))
        if new is None:  # let go of: nothing is stored any more
            return old.index_fill(0, rows.to(old.device), 0)
        return old.index_copy(0, rows.to(old.device), new)

    def control(new: Tensor | None, old: Tensor | None) -> Tensor | None:
        return None if new is None else put(new, old)

    whole = Move(
        x=tree_map(put, move.x, state.x),
        memory=merge_rows(put, move.memory, state.memory.get("solve", {})),
        t=control(move.t, state.t),
        hops=control(move.hops, None),
        err=control(move.err, None),
    )
    layers = {k: merge_rows(put, v, state.memory.get(k, {})) for k, v in layers.items()}
    # an element that was not computed shows what it is
    base = Pred(mean=state.x) if pred.mean is not None and _shapes(pred.mean) == _shapes(move.x) else Pred()
    pairs = zip(pred, base, strict=True)
    return whole, layers, Pred(*(None if v is None else merge_rows(put, v, b) for v, b in pairs))


def _shapes(x: Tree) -> list[torch.Size]:
    return [v.shape for v in leaves(x).values()]
