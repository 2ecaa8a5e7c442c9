"""The border: the innermost layer, and the only place that knows what a network wants to be told and what it says.

`Border` turns the queries of a step into as few calls as their shapes allow: it finds each row's owner and condition,
converts from the process sampled in to the one the denoiser knows (at equal a / c, where both see the same posterior),
and counts rows. `Network` is the denoiser that stands for a torch module: clock, scaling, prediction type, dtype, device.

    (x, t) of the process sampled in  ->  (x', t') with A/C = a/c,  x' = x |(A, C)| / |(a, c)|

Source   Karras et al. 2022 (arXiv 2206.00364), section 2, for the equivalence; Kingma et al. 2021 (2107.00630), section 5.1
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Denoiser, Inner, Layer, Process
from ebbtide.core.state import NULL, OWN, Pred, Query, State
from ebbtide.core.time import Weight, combine, shared
from ebbtide.core.tree import Memory, Tree, leaves, merge_rows, tree_map, write_rows
from ebbtide.network.patch import Bound, Patch, Rows
from ebbtide.network.rewrite import Rewrite, bound


@dataclass(frozen=True, eq=False)
class Border(Layer):
    """The innermost layer: queries in, predictions out, each answered for its owner's condition.

    denoiser  what answers
    process   the process sampled in (the denoiser's own, or another Gaussian one)
    patches   what is changed inside the network during a call
    rewrites  the names of those that changed it as a whole, before; see `of`
    """

    denoiser: Denoiser
    process: Process
    patches: tuple[Bound, ...] = ()
    rewrites: tuple[str, ...] = ()
    _memo: dict[float, tuple[float, float]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for process in (self.process, self.denoiser.process):
            if self.converts and "gaussian" not in process.gives | getattr(process, "entry", process).gives:
                raise EbbError(
                    f"this model knows {self.denoiser.process.called!r} and cannot be sampled in "
                    f"{self.process.called!r}: only Gaussian processes convert into one another."
                )

    @classmethod
    def of(cls, denoiser: Denoiser, process: Process, parts: Sequence[Patch | Rewrite]) -> Border:
        """The border with the parts of the slot `network`: rewrites are done now, once, patches in every call.

        Raises EbbError for a rewrite that this denoiser does not admit.
        """
        own = getattr(denoiser, "module", None)
        module, patches, rewrites = bound(own, parts)
        return cls(denoiser if module is own else denoiser.over(module), process, patches, rewrites)

    @functools.cached_property
    def converts(self) -> bool:
        """Whether the process sampled in is another than the denoiser's."""
        return self.process is not self.denoiser.process and self.process != self.denoiser.process

    def init(self, state: State, ask: Ask) -> Memory:
        made = {str(j): patch.init(state, ask) for j, (patch, _) in enumerate(self.patches)}
        return {k: v for k, v in made.items() if v}

    def many(
        self, queries: Sequence[Query], memory: Memory, inner: Inner, ask: Ask, before: Memory
    ) -> tuple[list[Pred], Memory]:
        state = ask.state
        n = len(state)
        for name in self.rewrites:
            ask.note(name, sum(len(q.t) for q in queries))
        if len(queries) == 1 and not self.patches and queries[0].of is None:
            (q,) = queries  # the common case, with nothing to sort or join
            ask.calls += n
            return [self._answer(q.x, q.t, self._told(q, state.cond, ask.loop.reads))], memory
        ask.calls += sum(len(q.t) for q in queries)
        pieces = self._pieces(queries, state, memory)
        conds = [self._told(p.query, state.cond, ask.loop.reads) for p in pieces]
        groups: dict[Any, list[int]] = {}
        for k, (piece, cond) in enumerate(zip(pieces, conds, strict=True)):
            groups.setdefault((piece.modes, *_signature(piece.query.x), *_signature(cond)), []).append(k)
        answers = [Pred()] * len(pieces)
        for group in groups.values():
            some = [pieces[k].query for k in group]
            x, t = _cat([q.x for q in some]), _cat([q.t for q in some])
            cond = _cat([conds[k] for k in group])
            if self.patches:
                rows = Rows(some, state, memory)
                with ExitStack() as stack:
                    for j, (patch, seen) in enumerate(self.patches):
                        note = functools.partial(ask.note, patch.called)
                        stack.enter_context(patch.enter(seen, rows.of(str(j), pieces[group[0]].modes[j], note)))
                    pred = self._answer(x, t, cond)
                memory = rows.memory
            else:
                pred = self._answer(x, t, cond)
            start = 0
            for k, q in zip(group, some, strict=True):
                end = start + len(q.t)
                answers[k] = pred if len(group) == 1 else pred.map(lambda v, a=start, b=end: v[a:b])
                start = end
        return _whole(queries, pieces, answers), memory

    def _pieces(self, queries: Sequence[Query], state: State, memory: Memory) -> list[Piece]:
        """The queries, each cut into rows that the patches compute in the same way."""
        if not self.patches:
            return [Piece(k, None, q, ()) for k, q in enumerate(queries)]
        out: list[Piece] = []
        for k, q in enumerate(queries):
            rows = Rows((q,), state, memory)
            modes = torch.stack([p.mode(seen, rows.of(str(j))) for j, (p, seen) in enumerate(self.patches)], 1)
            kinds = modes.unique(dim=0)
            for kind in kinds:
                index = None if len(kinds) == 1 else (modes == kind).all(1).nonzero()[:, 0]
                out.append(Piece(k, index, q if index is None else q.rows(index), tuple(kind.tolist())))
        return out

    def _told(self, query: Query, cond: dict[str, Tree], hidden: frozenset[str]) -> dict[str, Tree]:
        """The condition of each row, and for a denoiser that jumps the time to reach."""
        told = self._condition(query, cond, hidden)
        if not self.denoiser.jumps:
            return told
        until = query.t if query.until is None else query.until
        return {**told, "until": self._convert(until)[0] if self.converts else until}

    def _condition(self, query: Query, cond: dict[str, Tree], hidden: frozenset[str]) -> dict[str, Tree]:
        """The condition that each row of a query is asked under: its owner's, none, or one of its own.

        What parts read themselves (`hidden`) is left out of all.
        """
        own = query.of
        if query.cond is OWN or query.cond is NULL:
            cond = _without(hidden, cond)
            cond = {k: v for k, v in cond.items() if k != "null"} if query.cond is OWN else self._null(cond)
            return cond if own is None else tree_map(lambda v: v[own.to(v.device)], cond)
        return _without(hidden, query.cond)

    def _null(self, cond: dict[str, Tree]) -> dict[str, Tree]:
        """The condition's leaf "null" where it is given, else the model's own null, leaf by leaf."""
        given = cond.get("null", {})
        out, found = {}, False
        for name, leaf in cond.items():
            if name == "null":
                continue
            null = given.get(name) if isinstance(given, dict) else None
            if null is None and isinstance(leaf, Tensor):
                null = self.denoiser.null(name, leaf)
            found = found or null is not None
            out[name] = leaf if null is None else null
        if not found:
            raise EbbError(
                "guidance needs a condition that can be taken away: this model has no null condition; "
                "give cond={..., 'null': {...}} or leave guidance out (scale 1)."
            )
        return out

    def _answer(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        if not self.converts:
            return self.denoiser(x, t, cond)
        time, scale = self._convert(t)
        return self.denoiser(combine((scale, x)), time, cond)

    def _convert(self, t: Tensor) -> tuple[Tensor, Weight]:
        """The denoiser's time and the input scale at equal a / c."""
        one = shared(t)
        if one is None:
            return self._match(t)
        if one not in self._memo:
            if len(self._memo) > 8192:
                self._memo.clear()
            time, scale = self._match(torch.tensor([one], dtype=torch.float64))
            self._memo[one] = (time.item(), scale.item())
        time_, scale_ = self._memo[one]
        return torch.full_like(t, time_), scale_

    def _match(self, t: Tensor) -> tuple[Tensor, Tensor]:
        here: Any = self.process
        there: Any = self.denoiser.process
        time = there.time(here.lam(t))
        # the square root, not hypot, which rounds by the length of the tensor
        scale = ((there.a(time) ** 2 + there.c(time) ** 2) / (here.a(t) ** 2 + here.c(t) ** 2)).sqrt()
        return time, scale


def _without(hidden: frozenset[str], cond: dict[str, Tree]) -> dict[str, Tree]:
    return {k: v for k, v in cond.items() if k not in hidden} if hidden else cond


class Piece(NamedTuple):
    """Some rows of the k-th query, all where `rows` is None, and the mode in which each patch computes them."""

    k: int
    rows: Tensor | None
    query: Query
    modes: tuple[int, ...]


def _whole(queries: Sequence[Query], pieces: Sequence[Piece], answers: Sequence[Pred]) -> list[Pred]:
    """The predictions of queries, put together from those of their pieces."""
    preds: list[Pred] = [Pred()] * len(queries)
    for piece, answer in zip(pieces, answers, strict=True):
        if piece.rows is None:
            preds[piece.k] = answer
            continue
        write = write_rows(piece.rows, len(queries[piece.k].t))
        old = preds[piece.k]
        preds[piece.k] = Pred(
            *(None if v is None else merge_rows(write, v, w) for v, w in zip(answer, old, strict=True))
        )
    return preds


def _signature(tree: Any) -> tuple[Any, ...]:
    return tuple((k, v.shape[1:], v.dtype) for k, v in leaves(tree).items())


def _cat(trees: list[Any]) -> Any:
    return trees[0] if len(trees) == 1 else tree_map(lambda *v: torch.cat(v), *trees)


# -------------------------------------------------------------------- clocks


def _train_index(process: Any, t: Tensor, steps: float) -> Tensor:
    return (t * steps - 1).clamp_min(0)


def _sigma(process: Any, t: Tensor, steps: float) -> Tensor:
    return (-process.lam(t)).exp()


CLOCKS: dict[str, Callable[[Any, Tensor, float], Tensor]] = {
    "time": lambda process, t, steps: t,
    "scaled": lambda process, t, steps: t * steps,
    "reversed": lambda process, t, steps: 1 - t,
    "train-index": _train_index,
    "sigma": _sigma,
    "log-sigma/4": lambda process, t, steps: _sigma(process, t, steps).log() / 4,
    "log-snr": lambda process, t, steps: 2 * process.lam(t),
}
"""What networks want to be told instead of t: itself, t * steps, 1 - t, the index of a discrete training schedule,
sigma = c / a, EDM's log(sigma) / 4, the log-SNR."""

TIMES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "time": lambda told, steps: told,
    "scaled": lambda told, steps: told / steps,
    "reversed": lambda told, steps: 1 - told,
    "train-index": lambda told, steps: (told + 1) / steps,
}
"""The inverse of those clocks that need no process: t of what was told, where the clock did not clamp it."""


@dataclass(frozen=True, eq=False)
class Network(Denoiser):
    """A torch module as a denoiser.

    module    called as `call(module, x, clock, cond)`
    process   the process it was trained on
    predicts  "x0", "eps", "v", "flow", "score", "logits", or "edm" for the raw output of a preconditioned network; the
              second half of twice as many channels, a learned variance, is set aside
    clock     what it is told instead of t, a name of CLOCKS
    steps     of a discrete or scaled clock
    nulls     the value of a condition's leaf that stands for none, by name (a label's extra class)
    call      how the module is called; by default `module(x, clock, **cond)`
    jumps     whether it is told where a step leads to: `call` then finds that time on the same clock in cond["until"]

    Raises EbbError where it predicts numbers of a process over tokens, or the other way round.
    """

    module: nn.Module | Callable[..., Any]
    process: Any
    predicts: str = "flow"
    clock: str = "scaled"
    steps: float = 1000.0
    nulls: dict[str, int | float] = field(default_factory=dict)
    call: Callable[..., Any] = lambda module, x, clock, cond: module(x, clock, **cond)
    sigma_data: float = 0.5
    jumps: bool = False

    def __post_init__(self) -> None:
        tokens = "discrete" in self.process.gives
        if tokens != (self.predicts == "logits") and "joint" not in self.process.gives:
            mend = "predicts='logits'" if tokens else "one of x0, eps, v, flow and score"
            raise EbbError(f"the process is over {'tokens' if tokens else 'numbers'}, so the network predicts {mend}.")

    @functools.cached_property
    def _home(self) -> dict[str, Any]:
        """Where the module lives and what it is made of; nothing for a plain function."""
        first = next(iter(self.module.parameters()), None) if isinstance(self.module, nn.Module) else None
        return {} if first is None else {"device": first.device, "dtype": first.dtype}

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.full_like(leaf, self.nulls[name]) if name in self.nulls else None

    def over(self, module: Any) -> Network:
        return replace(self, module=module)

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        clock = self._clock(t)
        if "until" in cond and self.jumps:
            cond = {**cond, "until": self._clock(cond["until"])}
        if self.predicts == "logits":
            return Pred(logits=self._unmasked(self.call(self.module, x, clock, cond).to(_device(x))))
        if self.predicts == "edm":
            return Pred(mean=self._edm(x, t, clock, cond))
        out = self.call(self.module, x.to(**self._home), clock, cond)
        if x.ndim > 1 and out.shape[1] == 2 * x.shape[1]:  # a learned variance beside the mean
            out = out[:, : x.shape[1]]
        return Pred(mean=self.process.to_x0(self.predicts, out.to(x), x, t, cond))

    def _clock(self, t: Any) -> Tensor:
        return CLOCKS[self.clock](self.process, t, self.steps).to(self._home.get("device"), torch.float32)

    def _unmasked(self, logits: Tensor) -> Tensor:
        """Logits of x0, which is never a mask, for networks whose vocabulary has one; finite, so guidance can add them."""
        mask = getattr(self.process, "mask", None)
        if mask is None or mask >= logits.shape[-1]:
            return logits
        return logits.index_fill(-1, torch.tensor(mask, device=logits.device), -1e4)

    def _edm(self, x: Tensor, t: Tensor, clock: Tensor, cond: dict[str, Tree]) -> Tensor:
        """D = c_skip x + c_out F(c_in x): Karras et al. 2022, table 1, for x at noise sigma = c / a."""
        sigma, data = _sigma(self.process, t, 1.0), self.sigma_data
        norm = (sigma**2 + data**2).sqrt()
        scaled = combine((1 / (norm * self.process.a(t)), x)).to(**self._home)
        out = self.call(self.module, scaled, clock, cond).to(x)
        skip = data**2 / norm**2 / self.process.a(t)
        return combine((skip, x), (sigma * data / norm, out))


def _device(x: Tree) -> torch.device:
    return next(iter(leaves(x).values())).device


__all__ = ["CLOCKS", "TIMES", "Border", "Network"]
