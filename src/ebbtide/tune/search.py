"""Search: whole runs are candidates, a verifier scores them, and compute is spent on looking for good noise.

    random       N seeds, the best goes on
    zero-order   n' = keep n + sqrt(1 - keep^2) eps     neighbours of the best noise so far, `width` a round
    paths        N paths down to a level; then each is noised `width` times by `back` steps and brought down by `down` > `back`,
                 x0-hat is judged, the best N go on; at the data the best of N

Compute is network evaluations, those for judging too, for each sample that is asked for. The first candidate is the plain
sample, so a search with a budget of one run gives what `sample` gives. What comes back repeats without the search: the plan
names the winners' seeds, or holds the noise they begin from (`start/saved`).

Paper    Ma et al. 2025, "Inference-time scaling for diffusion models beyond scaling denoising steps" (arXiv 2501.09732),
         section 3
Differs  levels, `back` and `down` of paths are counted in steps of the plan's grid; scores of several verifiers are not
         averaged.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ebbtide import api
from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.key import Noise
from ebbtide.core.loop import Loop
from ebbtide.core.plan import Plan
from ebbtide.core.state import State, Step
from ebbtide.core.time import combine
from ebbtide.core.tree import Tree, leaves, tree_map
from ebbtide.denoise.model import Model, seeds_of
from ebbtide.measure import rewards
from ebbtide.samples import Samples, finite_rows
from ebbtide.start import table
from ebbtide.steer import judge

METHODS = ("random", "zero-order", "paths")
Method = Literal["random", "zero-order", "paths"]
_UP = 77  # the salt of the noise that lifts paths


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    samples   the winners; their plan repeats them without the search, `calls` are those of all that was tried
    scores    of the winners, (n,); NaN where no candidate could be judged
    tried     of every candidate in order, (candidates, n): of paths, those at the end
    """

    samples: Samples
    scores: Tensor
    tried: Tensor


@dataclass
class Progress:
    """How far a search is: a fold over rounds. `state` is that of paths under way, `level` where on the grid they are."""

    rounds: int = 0
    calls: int = 0
    cost: float = 0.0
    tried: list[Tensor] = field(default_factory=list)
    best: Tensor | None = None
    x: Tree = None
    start: Tree = None
    seed: Tensor | None = None
    state: State | None = None
    level: int = -1
    left: int | None = None
    unread: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def take(self, score: Tensor, x: Tree, seed: Tensor, start: Tree = None) -> None:
        """Take in one candidate for each sample; equals do not replace what came before."""
        self.tried.append(score)
        if self.best is None:
            self.best, self.x, self.seed, self.start = score, x, seed, start
            return
        assert self.seed is not None
        better = (score > self.best) | (self.best.isnan() & ~score.isnan())
        rows = better.nonzero()[:, 0]
        put = lambda old, new: old.index_copy(0, rows.to(old.device), new[rows.to(new.device)])  # noqa: E731
        self.best, self.seed = put(self.best, score), put(self.seed, seed)
        self.x = tree_map(put, self.x, x)
        self.start = None if start is None else tree_map(put, self.start, start)

    def save(self, path: Path, asked: str) -> None:
        """Write it whole."""
        from safetensors.torch import save_file

        held = {"x": self.x, "start": self.start, "best": self.best, "seed": self.seed}
        held["tried"] = torch.stack(self.tried) if self.tried else None
        flat = leaves({k: v for k, v in held.items() if v is not None})
        flat |= {} if self.state is None else {f"state.{k}": v for k, v in self.state.flat().items()}
        numbers = {k: getattr(self, k) for k in ("rounds", "calls", "cost", "level", "left", "seconds")}
        about = {"asked": asked, "unread": dict(self.unread), **numbers}
        part = path.with_name(path.name + ".part")
        save_file({k: v.cpu().contiguous().clone() for k, v in flat.items()}, part, {"search": json.dumps(about)})
        os.replace(part, path)

    @staticmethod
    def load(path: Path, asked: str) -> Progress:
        """The progress in a file. Raises EbbError for one that holds none, or another search's."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("search", "null"))
                flat = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise EbbError(f"{path} cannot be read as a search: {error}.") from error
        if about is None or about.pop("asked") != asked:
            raise EbbError(f"{path} is of another search: give another journal, or remove it.")
        tree: dict[str, Any] = {}
        for name, v in flat.items():
            *way, leaf = name.split(".")
            node = tree
            for word in way:
                node = node.setdefault(word, {})
            node[leaf] = v
        state, tried = tree.pop("state", None), tree.pop("tried", None)
        if state is not None:
            state = State(**{"cond": {}, "memory": {}, **state})
        listed = [] if tried is None else list(tried.unbind(0))
        return Progress(**{**about, "unread": Counter(about["unread"])}, **tree, state=state, tried=listed)


class Search:
    """One search: its arguments, and how a round goes. See `search`."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        verifier: rewards.Spec,
        budget: int,
        method: str,
        cond: Any,
        n: int,
        seed: int | Sequence[int],
        batch: int | None,
        device: Any,
        dtype: torch.dtype | None,
        ways: Mapping[str, Any],
        watch: Callable[[float, float], None] | None,
    ) -> None:
        self.model, self.plan, self.verifier, self.budget, self.method = model, plan, verifier, budget, method
        self.asked, self.n, self.seeds, self.batch = cond, n, seeds_of(seed, n), batch
        self.device, self.dtype, self.watch = device, dtype, watch
        self.width, self.keep = ways["width"], ways["keep"]
        self.level, self.back, self.down = ways["level"], ways["back"], ways["down"]
        self.cond = model.condition(cond, n)
        self.reward = rewards.find(verifier)
        told = api.record(model, plan, cond, n, seed, None, dtype).to_dict()
        told["run"].pop("versions", None)
        text = json.dumps([told, method, verifier, dict(ways)], sort_keys=True, default=str)
        self.key = hashlib.sha256(text.encode()).hexdigest()

    # ---------------------------------------------------------------- candidates

    def begin(self, seeds: list[int]) -> tuple[Loop, State]:
        """The plan bound, and where it starts from these seeds, a candidate after the other."""
        cond = self.conds(len(seeds))
        return api.begin(self.model, self.plan, cond or None, len(seeds), seeds, self.device, self.dtype)

    def conds(self, rows: int) -> dict[str, Tree]:
        """The conditions of so many rows."""
        times = rows // self.n
        return tree_map(lambda v: v.repeat(times, *(1,) * (v.ndim - 1)), self.cond)

    def seeds_from(self, first: int, count: int) -> list[int]:
        """The seeds of candidates first, first + 1, ...: those of candidate k are k n further on."""
        return [s + k * self.n for k in range(first, first + count) for s in self.seeds]

    def judge(self, p: Progress, x: Tree) -> Tensor:
        """Scores of rows (candidates n), as (candidates, n); NaN where a sample is not finite."""
        rows = len(next(iter(leaves(x).values())))
        said = rewards.scores(self.reward, rewards.Seen(self.model.pixels(x), self.conds(rows), self.model.text))
        p.unread.update(said.unread)
        score = torch.where(finite_rows(x), said.value, torch.nan)
        return score.reshape(-1, self.n)

    def run(self, p: Progress, seeds: list[int], start: Tree = None) -> None:
        """Whole runs, a candidate after the other, and what they are worth."""
        cond, plan = self.conds(len(seeds)), self.plan
        if start is not None:
            cond, plan = {**cond, "start": start}, plan.replace(start="given")

        def watch(step: Step, places: list[int]) -> None:
            self.tell(p, step.calls)

        about = {"batch": self.batch, "device": self.device, "dtype": self.dtype}
        before = p.calls
        out = api.sample(self.model, plan, cond=cond or None, n=len(seeds), seed=seeds, watch=watch, **about)
        p.calls = before + out.calls
        p.cost = max(p.cost, out.calls / len(seeds))
        score = self.judge(p, out.x)
        for k, own in enumerate(score):
            some = slice(k * self.n, (k + 1) * self.n)
            cut = lambda v, some=some: v[some]  # noqa: E731
            p.take(
                own, tree_map(cut, out.x), torch.tensor(seeds[some]), None if start is None else tree_map(cut, start)
            )

    def tell(self, p: Progress, calls: int) -> None:
        """Count the calls of a step, and say how far it is."""
        p.calls += calls
        if self.watch is not None:
            self.watch(p.calls, max(self.budget * self.n, p.calls))

    def room(self, p: Progress) -> int:
        """How many more candidates the budget pays for, a round at the most; the first is always tried."""
        if not p.tried:
            return 1
        return min(self.width, int((self.budget * self.n - p.calls) / self.n / max(p.cost, 1e-9)))

    # ---------------------------------------------------------------- the ways to search

    def rounds(self, p: Progress) -> Iterator[None]:
        """Rounds until the budget is spent; between them all is whole, and can be saved."""
        if self.method == "paths":
            yield from self.paths(p)
            return
        while (count := self.room(p)) > 0:
            seeds = self.seeds_from(len(p.tried), count)
            if self.method == "random":
                self.run(p, seeds)
            else:
                x = self.begin(seeds)[1].x
                if p.tried:
                    pivot = tree_map(lambda v: v.repeat(count, *(1,) * (v.ndim - 1)), p.start)
                    x = combine((self.keep, pivot), (math.sqrt(1 - self.keep**2), x))
                self.run(p, self.seeds * count, x)
            p.rounds += 1
            yield

    def paths(self, p: Progress) -> Iterator[None]:
        """Paths, all at the same step of the grid."""
        loop, state = self.begin(self.seeds_from(0, 1))
        points = state.memory["grid"].get("points")
        if points is None or loop.solve.stochastic:
            raise EbbError(
                "search over paths needs a grid whose times are known beforehand and a solver that draws nothing, such "
                "as 'linear' and 'euler'; or search with method='random'."
            )
        steps = points.shape[-1] - 1
        first, net = min(max(self.back, round(self.level * steps)), steps - 1), self.down - self.back
        rounds = max(0, math.ceil((steps - self.down + self.back - first) / net))
        base, each = steps - rounds * net, rounds * (self.down + 1)  # calls of a path, and of one lift in all rounds
        calls = loop.solve.calls
        width = max(1, min(self.width, int((self.budget / calls - base) // max(1, each))))
        count = max(1, int(self.budget // (calls * (base + each * width))))
        if p.state is None:
            p.state, p.level = self.walk(p, loop, self.begin(self.seeds_from(0, count))[1], first), first
            yield
        while p.level + net < steps:
            low = p.level - self.back
            many = p.state.take(torch.arange(len(p.state)).repeat(width))
            lift = Noise(many.key, many.i, _UP)
            t = points[:1, ..., low].expand(many.t.shape).clone()
            x = loop.process.move(many.x, None, many.t, t, 1.0, lift, many.cond)
            many = loop.jump(many, x, t, torch.full_like(many.i, low)).remember("search", {"from": x})
            many = self.walk(p, loop, many, low + self.down)
            asking = loop.ask(many)
            score = self.judge(p, judge.look(asking, loop.process, 1)).T  # (n, candidates)
            self.tell(p, asking.calls)
            best = torch.stack([judge.best(row) for row in score])[:, :count]
            p.state = many.take((best * self.n + torch.arange(self.n)[:, None]).T.flatten())
            p.level, p.left = low + self.down, steps - low
            p.rounds += 1
            yield
        if not p.tried:
            seeds, end = torch.tensor(self.seeds_from(0, count)), self.walk(p, loop, p.state, steps)
            start = end.memory.get("search", {}).get("from")
            for k, own in enumerate(self.judge(p, end.x)):
                rows = torch.arange(k * self.n, (k + 1) * self.n)
                some = lambda v, rows=rows: v[rows.to(v.device)]  # noqa: E731
                named = torch.tensor(self.seeds) if start is not None else seeds[rows]
                p.take(own, tree_map(some, end.x), named, None if start is None else tree_map(some, start))
            yield

    def walk(self, p: Progress, loop: Loop, state: State, to: int) -> State:
        """Down to a step of the grid."""
        while int(state.i.max()) < to:
            step = loop.step(state)
            state = step.state
            self.tell(p, step.calls)
        return state

    # ---------------------------------------------------------------- what comes of it

    def found(self, p: Progress, noise: Path | None) -> Found:
        """The winners, with the plan that repeats them."""
        assert p.best is not None
        assert p.seed is not None
        seeds, plan = p.seed.tolist(), self.plan
        if p.start is not None:
            kept = {"x": p.start.detach().cpu(), "seed": p.seed}
            held: dict[str, Any] = {k: v.tolist() for k, v in kept.items()} if noise is None else {}
            held = held if noise is None else {**table.write(noise, **kept)}
            left = {} if p.left is None else {"left": p.left}
            plan = plan.replace(start={"name": "saved", "table": held, **left})
        name = self.verifier if isinstance(self.verifier, str) else self.verifier["name"]
        said = [
            f"the reward {name!r} {why}, {n} times; those candidates gave way to others." for why, n in p.unread.items()
        ]
        if p.calls > self.budget * self.n:
            said.append(f"the search took {p.calls / self.n:.0f} calls a sample, over the budget of {self.budget}.")
        lost = int(p.best.isnan().sum())
        if lost:
            said.append(f"of {lost} samples no candidate could be judged: they are those of the plan without search.")
        about = api.record(self.model, plan, self.asked, self.n, _plain(seeds), self.batch, self.dtype)
        samples = Samples(p.x, self.model, about, seeds, p.calls, p.seconds, remarks=said)
        return Found(samples, p.best, torch.stack(p.tried))


def _plain(seeds: list[int]) -> int | list[int]:
    """Seeds in a row as their first."""
    return seeds[0] if seeds == [seeds[0] + j for j in range(len(seeds))] else seeds


def search(
    model: Model | str,
    plan: Plan | None,
    verifier: rewards.Spec,
    budget: int,
    method: Method = "random",
    *,
    cond: Any = None,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    batch: int | None = None,
    width: int = 4,
    keep: float = 0.9,
    level: float = 0.5,
    back: int = 2,
    down: int = 3,
    journal: str | os.PathLike[str] | None = None,
    noise: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    watch: Callable[[float, float], None] | None = None,
) -> Found:
    """Look for samples that a verifier likes, whole runs being the candidates.

    model, plan, cond, n, seed, batch, device, dtype   as for `sample`
    verifier   what scores a sample: see `measure.rewards`
    budget     network evaluations for each of the n samples, those for judging too
    method     "random": other seeds; "zero-order": neighbours of the best noise; "paths": noise up and down again
    width      candidates of a round; of paths, how often each is lifted
    keep       of zero-order, lambda: how much of its pivot a neighbour keeps
    level      of paths, the share of the grid that is walked before the first round; `back` and `down` steps of a round
    journal    a file that is written after every round: the same call goes on from it, with a larger budget too
    noise      where the noise of winners is written that no seed gives; without it the plan holds it itself
    watch      called with calls so far and in all

    Raises EbbError where plan, model, verifier and method do not fit. A candidate whose score cannot be read gives way to
    others, and that is said in the samples' remarks.
    """
    began = time.monotonic()
    model = api.load(model) if isinstance(model, str) else model
    plan = plan or Plan()
    if method not in METHODS:
        raise EbbError(f"there is no search {method!r}; {nearest(method, METHODS)}")
    if budget < 1 or width < 1 or n < 1:
        raise EbbError("a search takes a budget, a width and a number of samples of at least 1.")
    if not 0 <= keep < 1 or not 0 <= level <= 1 or not 1 <= back < down:
        raise EbbError("a search takes keep in [0, 1), level in [0, 1], and fewer steps back, at least 1, than down.")
    if plan.steer is not None:
        raise EbbError("this plan steers already: search with the plan without its steer, or sample with it.")
    ways = {"width": width, "keep": keep, "level": level, "back": back, "down": down}
    own = Search(model, plan, verifier, budget, method, cond, n, seed, batch, device, dtype, ways, watch)
    loop, blank = own.begin(own.seeds)
    if method != "random" and (
        "affine" not in loop.process.gives or "end" in loop.process.gives or not plan_starts(plan)
    ):
        raise EbbError(
            f"search {method!r} moves Gaussian noise, and this plan does not begin with any: use method='random'."
        )
    if not isinstance(blank.x, Tensor) and method != "random":
        raise EbbError(
            f"search {method!r} moves the noise of one tensor, and this model has fields: use method='random'."
        )
    rewards.trial(verifier, rewards.Seen(model.pixels(tree_map(torch.zeros_like, blank.x)), own.cond, model.text))

    path = None if journal is None else Path(journal)
    progress = Progress() if path is None or not path.exists() else Progress.load(path, own.key)
    spent = progress.seconds
    for _ in own.rounds(progress):
        progress.seconds = spent + time.monotonic() - began
        if path is not None:
            progress.save(path, own.key)
    progress.seconds = spent + time.monotonic() - began
    return own.found(progress, None if noise is None else Path(noise))


def plan_starts(plan: Plan) -> bool:
    """Whether a plan begins with noise alone."""
    return plan.parts("start")[0].called == "prior"


__all__ = ["METHODS", "Found", "Progress", "search"]
