"""The few functions that users call: load a model, sample it, watch a run, go on with one."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core import registry
from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.loop import Loop
from ebbtide.core.parts import Denoiser, Process
from ebbtide.core.plan import Plan
from ebbtide.core.state import State, Step
from ebbtide.core.tree import Tree, leaves, tree_map
from ebbtide.denoise.model import Model, seeds_of
from ebbtide.journal import Journal
from ebbtide.samples import Failure, Samples, finite_rows

_LOOK_EVERY = 8
TENSORS = "tensors, not written"
"""What a plan says of a condition that it does not hold."""


def load(
    source: str | os.PathLike[str] | Denoiser | nn.Module | Callable[..., Any],
    *,
    process: Process | str | Mapping[str, Any] | None = None,
    like: Tree | None = None,
    **border: Any,
) -> Model:
    """A model from nearly anything.

    source   the name of a shipped model ("digits"); a folder that `ebb train` left; a diffusers pipeline or the folder of
             one, together with what its call takes (height, width, num_frames; units=1 for video whose frames are to have
             times of their own); a network of diffusers or the folder of one, with its process or scheduler; a single
             file of weights with `config=FOLDER`; a masked language model of transformers or the folder of one, or any
             module that gives logits of tokens together with `mask=ID`, and what `interop.transformers.load` takes
             (tokenizer, length, shift); a folder or .npz of pictures, for the closed-form denoisers of your own data
             (`denoiser="local"`, "exact" or "wiener"); a `Denoiser`; or a torch module or callable
             `f(x, clock, **cond)` together with
    process  the process that it was trained on, "flow" or {"name": "vp-linear", "beta_max": 12}, say, and
    like     one element of its data, zeros of the right shape and dtype.
    border   for networks: what `denoise.network.Network` takes (predicts, clock, steps, nulls, call), and what
             `Model` takes (name, units, labels, medium)

    Raises EbbError when the source cannot be found or read.
    """
    from ebbtide.interop import networks, pipelines, transformers

    if pipelines.is_pipeline(source):
        return pipelines.load(source, **border)
    if networks.is_network(source):
        return networks.load(source, process=process, like=like, **border)
    if transformers.is_language(source, {"process": process, **border}):
        return transformers.load(source, **border if like is None else {"like": like, **border})
    if isinstance(source, str | os.PathLike):
        return _load_path(source, **border)
    about = {k: border.pop(k) for k in ("name", "units", "labels", "medium", "digest", "decode") if k in border}
    if not isinstance(source, Denoiser):
        from ebbtide.denoise.network import Network

        if process is None:
            raise EbbError("a network needs the process that it was trained on: give process='flow', say.")
        if not isinstance(process, Process):
            process = registry.make("process", {"name": process} if isinstance(process, str) else process)
        source = Network(source, process, **border)
    if like is None:
        raise EbbError("give like=torch.zeros(shape): one element of the data that the model makes.")
    return Model(denoiser=source, like=like, **{"name": type(source).__name__.lower(), **about})


def _load_path(source: str | os.PathLike[str], **options: Any) -> Model:
    from ebbtide import zoo

    if isinstance(source, str) and source in zoo.names():
        return zoo.load(source, **options)
    path = Path(source)
    if (path / "recipe.json").exists():
        return zoo.load(path, **options)
    if path.exists():
        return zoo.from_data(path, **options)
    raise EbbError(f"{source} is neither a shipped model nor a path that exists; {nearest(str(source), zoo.names())}")


def begin(
    model: Model,
    plan: Plan,
    cond: Any = None,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    group: int = 1,
) -> tuple[Loop, State]:
    """The bound plan and its first state. Raises EbbError where plan, model and condition do not fit."""
    _check_counts(n, None, group)
    conds = model.condition(cond, n)
    _check_requests(conds, group)
    if device is not None:
        conds = tree_map(lambda v: v.to(device), conds)
    loop = model.loop(plan, conds)
    like = model.batch(n, None if device is None else torch.device(device), dtype)
    state = loop.begin(like, conds, seeds_of(seed, n), model.unit_shape(), torch.arange(n) // group)
    bad = (~finite_rows(state.x)).nonzero()[:, 0].tolist()
    if bad:
        raise EbbError(f"the start holds values that are not finite, in element {bad[0]}; nothing was run.")
    return loop, state


def _check_counts(n: int, batch: int | None, group: int) -> None:
    if n < 1:
        raise EbbError(f"n is the number of samples, at least 1, not {n}.")
    if group < 1:
        raise EbbError(f"a group holds at least one sample, not {group}.")
    if batch is not None and batch < 1:
        raise EbbError(f"a batch holds at least one sample, not {batch}.")
    for name, count in (("n", n), ("batch", batch or n)):
        if count % group:
            up = count + group - count % group
            raise EbbError(f"groups of {group} do not divide {name} = {count}: give {name}={up}, say.")


def _check_requests(cond: dict[str, Tree], group: int) -> None:
    """Samples of one request are asked for the same: one that is copied over another takes its condition with it."""
    for name, leaf in leaves(cond).items() if group > 1 else ():
        each = leaf.unflatten(0, (-1, group))
        odd = (each != each[:, :1]).flatten(1).any(1).nonzero()[:, 0].tolist()
        if odd:
            first = odd[0] * group
            raise EbbError(
                f"samples {first} to {first + group - 1} are one request, and must be asked for the same: they differ in "
                f"{name!r}."
            )


def run(
    model: Model,
    plan: Plan | None = None,
    *,
    cond: Any = None,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    group: int = 1,
) -> Iterator[Step]:
    """The steps of a run, one at a time: wrap the iterator for progress, a preview or an early stop.

    Every `Step` holds the new state, the prediction in data space, and the number of network evaluations. Arguments
    and errors as for `sample`.
    """
    loop, state = begin(model, plan or Plan(), cond, n, seed, device, dtype, group)
    yield from loop.run(state)


def resume(model: Model, plan: Plan, state: State | str | os.PathLike[str]) -> Iterator[Step]:
    """The rest of a run, from a state that `run` yielded or that `State.save` wrote.

    Raises EbbError when the file holds no state.
    """
    if not isinstance(state, State):
        loaded = Journal.load(state)[0].state
        assert loaded is not None
        state = loaded
    yield from model.loop(plan, state.cond).run(state)


def sample(
    model: Model | str,
    plan: Plan | None = None,
    *,
    cond: Any = None,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    batch: int | None = None,
    group: int = 1,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    trace: bool = False,
    watch: Callable[[Step, list[int]], None] | None = None,
    journal: Journal | None = None,
) -> Samples:
    """Draw samples.

    model   from `load`, or its name
    plan    how; by default 20 Euler steps
    cond    a label, a list of n labels, or a dict of tensors (n, ...)
    n       how many
    seed    element j has seed + j; or a list of n seeds
    batch   how many at a time (default: all)
    group   how many consecutive samples are one request: where a plan steers, they compete with each other and with no
            one else, and all of them are given back; it divides n and batch
    device, dtype   where the state lives and what it is made of; the network's own stay as they are
    trace   keep x after every step
    watch   called with every step and the places of its elements
    journal kept up to date as the call goes; the journal of a call that was stopped, given to the same call again, makes
            it go on from there, to the same samples

    Raises EbbError where plan, model and condition do not fit, and for a technique that was switched on but did
    nothing. An element that becomes infinite or not a number is reported in `failed`; the others go on.
    """
    model = load(model) if isinstance(model, str) else model
    plan = plan or Plan()
    seeds = seeds_of(seed, n)
    _check_counts(n, batch, group)
    conds = model.condition(cond, n)
    journal = Journal() if journal is None else journal
    started = time.perf_counter() - journal.seconds
    size = batch or n
    for first in range(journal.finished, n, size):
        places = list(range(first, min(first + size, n)))
        if journal.state is None:
            index = torch.tensor(places)
            own = tree_map(lambda v, index=index: v[index.to(v.device)], conds)
            loop, state = begin(model, plan, own, len(places), [seeds[j] for j in places], device, dtype, group)
            journal.begin(state, trace)
        else:
            state = journal.state
            loop = model.loop(plan, state.cond)
        for count, step in enumerate(loop.run(state), 1):
            state = journal.add(step, trace)
            journal.seconds = time.perf_counter() - started
            if watch is not None:
                watch(step, places)
            if count % _LOOK_EVERY == 0 and not bool(finite_rows(state.x).any()):
                break
        journal.close(_failures(model, plan, conds, places, seeds, finite_rows(state.x), device, dtype, group))
    require_effect(plan, journal.notes)
    return Samples(
        x=tree_map(lambda *v: torch.cat(v), *journal.batches),
        model=model,
        plan=record(model, plan, cond, n, seed, batch, dtype, group),
        seeds=seeds,
        calls=journal.calls,
        seconds=time.perf_counter() - started,
        failed=journal.failed,
        remarks=[r for slot in registry.SLOTS for p in plan.parts(slot) for r in p.remarks(journal.notes)],
        trace=_join(journal.frames),
    )


def _join(frames: list[list[Tree]]) -> list[Tree]:
    """Traces of several batches as one; a batch that ended early stands still."""
    longest = max(map(len, frames), default=0)
    return [tree_map(lambda *v: torch.cat(v), *(f[min(k, len(f) - 1)] for f in frames)) for k in range(longest)]


def _failures(
    model: Model,
    plan: Plan,
    conds: dict[str, Tree],
    places: list[int],
    seeds: list[int],
    good: Tensor,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    group: int,
) -> list[Failure]:
    """Replay each element that is not finite, alone but for its group, to find the step at which it ceased to be."""
    out = []
    for row in (~good).nonzero()[:, 0].tolist():
        place, mine = places[row], row % group
        with_it = places[row - mine : row - mine + group]
        index = torch.tensor(with_it)
        own = tree_map(lambda v, index=index: v[index.to(v.device)], conds)
        loop, state = begin(model, plan, own, group, [seeds[p] for p in with_it], device, dtype, group)
        found = 0
        for count, step in enumerate(loop.run(state), 1):
            found = count
            if not bool(finite_rows(step.state.x)[mine]):
                break
        out.append(Failure(place, seeds[place], found))
    return out


def require_effect(plan: Plan, notes: Counter[str]) -> None:
    """A technique that is switched on but did nothing is an error, never a silent no-op."""
    for slot in ("guide", "network", "correct"):
        for p in plan.parts(slot):
            if p.entry.off is not None and p.on and not notes[p.entry.name]:
                raise EbbError(f"{slot} {p.entry.name!r} is switched on but did nothing in this run; leave it out.")


def record(
    model: Model,
    plan: Plan,
    cond: Any,
    n: int,
    seed: Any,
    batch: int | None,
    dtype: torch.dtype | None,
    group: int = 1,
) -> Plan:
    """The plan with `run:` filled in: what `sample` was asked for, in plain data, enough to ask for it again."""
    import ebbtide

    plain = cond.tolist() if isinstance(cond, Tensor) else cond
    if isinstance(plain, dict) and any(isinstance(v, Tensor) for v in plain.values()):
        plain = TENSORS
    about = {
        "model": model.name,
        "digest": model.digest,
        **dict(model.info),
        "cond": plain,
        "n": n,
        "seed": list(seed) if not isinstance(seed, int) else seed,
        "batch": batch,
        "group": None if group == 1 else group,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "versions": {"ebbtide": ebbtide.__version__, "torch": torch.__version__.split("+")[0]},
    }
    return plan.replace(run={k: v for k, v in about.items() if v not in (None, "")})
