"""Small exact worlds around every part of the registry: what the contract tests run on.

A world is a part, a plan around it, a denoiser whose every answer is known, and four elements. It is made from what the
part declares: its needs choose the process and the companions, so a new part is covered by its registration alone.

The denoisers here are written apart from those of `ebbtide.denoise`, so that they can serve as oracles for both.
"""

from __future__ import annotations

import functools
import itertools
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.loop import Loop
from ebbtide.core.parts import Denoiser
from ebbtide.core.plan import MANY, Plan, features
from ebbtide.core.registry import Entry
from ebbtide.core.state import Pred, State, Step
from ebbtide.core.tree import Tree, tree_map
from ebbtide.denoise.model import Model

CONTRACTS = {
    "shapes": 1,
    "order": 2,
    "law": 3,
    "needs": 4,
    "off": 5,
    "batch": 6,
    "take": 7,
    "resume": 8,
    "pure": 9,
    "plan": 10,
    "calls": 11,
    "ends": 12,
    "card": 13,
}
STEPS = 4
ELEMENTS = 4

# ---------------------------------------------------------------- the parts


def parts(slot: str | None = None) -> list[Entry]:
    """The package's own parts: those that a test registered by itself are its own business."""
    return [e for e in registry.entries(slot) if e.cls.__module__.startswith("ebbtide.")]


def title(entry: Entry) -> str:
    """slot/name."""
    return f"{entry.slot}/{entry.name}"


def each(contract: str, *slots: str) -> pytest.MarkDecorator:
    """Parametrise over the parts of some slots (all by default); one that declares an exemption is skipped visibly."""
    found = [e for e in parts() if not slots or e.slot in slots]
    return pytest.mark.parametrize("entry", [marked(contract, e, e, title(e)) for e in found])


def marked(contract: str, entry: Entry, value: Any, id: str) -> Any:
    """One parameter of a test, skipped visibly where the part declares an exemption."""
    reason = entry.exempt.get(contract)
    marks = [pytest.mark.skip(reason=f"exempt: {reason}")] if reason else []
    return pytest.param(value, id=id, marks=marks)


# ---------------------------------------------------------------- parameters


def build(slot: str, params: Mapping[str, Any]) -> Any:
    """The part, or None where these parameters are refused."""
    try:
        return registry.make(slot, params)
    except EbbError:
        return None


def examples(entry: Entry) -> list[dict[str, Any]]:
    """Parameter sets to begin with: the defaults where they stand alone, and the part's own examples."""
    plain: dict[str, Any] = {"name": entry.name}
    named = [{**plain, **params} for params in entry.cls.examples]
    alone = build(entry.slot, plain) is not None and not hasattr(entry.cls, "calibrated")  # it must learn from a model
    out = [*([plain] if alone else []), *named]
    if not out or any(build(entry.slot, spec) is None for spec in out):
        raise TypeError(
            f"{title(entry)} cannot be built from its defaults or its examples: give it `examples = ({{...}},)`"
        )
    return out


@functools.cache
def _variants(slot: str, name: str) -> list[dict[str, Any]]:
    entry = registry.find(slot, name)
    given = examples(entry)
    out = list(given)
    known = typing.cast(Any, entry.cls).__pydantic_fields__
    for key, info in known.items():
        at = getattr(build(slot, given[0]), key)
        for value in _others(info.annotation, at):
            spec = {**given[0], key: value}
            if build(slot, spec) is not None and getattr(build(slot, spec), key) != at:
                out.append(spec)
                if not _is(info.annotation, Literal):
                    break
    if entry.off is not None:
        out.append({**given[0], **entry.off})
    return [s for k, s in enumerate(out) if s not in out[:k]]


def variants(entry: Entry) -> list[dict[str, Any]]:
    """Specs that differ from the defaults in one parameter each, and the part switched off."""
    return _variants(entry.slot, entry.name)


def _is(annotation: Any, origin: Any) -> bool:
    return typing.get_origin(annotation) is origin


def _others(annotation: Any, at: Any) -> list[Any]:
    """Values that this annotation may take other than `at`; the first that pydantic accepts is used."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _others(args[0], at)
    if origin is Literal:
        return [v for v in args if v != at]
    if annotation is bool:
        return [not at]
    if annotation is int:
        return [*([at + 1, at - 1] if at else []), 2, 3, 1]
    if annotation is float:
        return [*([at * 0.75, at * 1.25] if at else []), 0.5, 0.25, 2.0]
    if args and type(None) in args:
        return [None] if at is not None else [v for a in args if a is not type(None) for v in _others(a, None)]
    if origin in (list, tuple) and args and args[0] is float and at:
        return [[v * 0.9 for v in at]]
    return []


def ident(spec: Mapping[str, Any]) -> str:
    """The parameters of a spec as a test's name."""
    return ",".join(f"{k}={v}" for k, v in spec.items() if k != "name").replace(" ", "")[:60] or "default"


# ---------------------------------------------------------------- exact denoisers


def styled(label: Tensor, cond: Mapping[str, Tree]) -> Tensor:
    """Which of the four laws: the label's, shifted by a second condition, the style, where there is one; -1 is none of each."""
    return (label + cond["style"] + 1) % 4 if "style" in cond else label


class Bell(Denoiser):
    """Numbers that are independent of each other, each a mixture of Gaussians which the element's label chooses.

    One component makes the flow linear; two make it bend. Label -1 is the null: a law of its own.
    """

    LAWS = (
        ((1.0, 0.5, 0.6), (0.6, 0.9, 0.3)),
        ((1.0, -1.0, 0.3), (0.5, -0.4, 0.5)),
        ((1.0, 0.2, 0.8), (0.3, 1.1, 0.4)),
        ((1.0, 0.0, 1.0), (0.8, -0.7, 0.7)),
    )

    def __init__(self, process: Any, modes: int = 1) -> None:
        self.process, self.modes = process, modes

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.full_like(leaf, -1) if name in ("label", "style") else None

    def law(self, t: Tensor, cond: Mapping[str, Tree]) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and standard deviations of the clean components, (K, R, 1...) against t."""
        label = cond.get("label")
        rows = torch.full((len(t),), 0 if label is None else -1) if not isinstance(label, Tensor) else label
        rows = styled(rows, cond)
        table = torch.tensor([row[: self.modes] for row in self.LAWS], dtype=torch.float64)[rows]  # (R, K, 3)
        table = table.movedim(1, 0).reshape(self.modes, len(t), *(1,) * (t.ndim - 1), 3)
        w, m, s = table.unbind(-1)
        return w / w.sum(0), m, s

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        w, m, s = self.law(t, cond)
        a, c = self.process.a(t), self.process.c(t)
        v = a**2 * s**2 + c**2
        gain = torch.where(v == 0, torch.zeros_like(v), a * s**2 / torch.where(v == 0, torch.ones_like(v), v))
        rest = x
        b = self.process.b(t)
        if b is not None:
            rest = x - wide(b, x) * cond["y"]
        each = [wide(g, x) * rest + wide(mk * (1 - g * a), x) for g, mk in zip(gain, m, strict=True)]
        left = [wide(sk**2 * (1 - g * a), x) + 0 * x for g, sk in zip(gain, s, strict=True)]
        if self.modes == 1:
            return Pred(mean=each[0], var=left[0])
        safe = torch.where(v == 0, torch.ones_like(v), v)
        logs = torch.stack(
            [
                wide(w[k].log() - safe[k].log() / 2, x) - (rest - wide(a * m[k], x)) ** 2 / wide(2 * safe[k], x)
                for k in range(self.modes)
            ]
        )
        share, means = logs.softmax(0), torch.stack(each)
        mean = (share * means).sum(0)
        return Pred(mean=mean, var=(share * (torch.stack(left) + (means - mean) ** 2)).sum(0))

    def cdf(self, x: Tensor, t: Tensor, cond: Mapping[str, Tree]) -> Tensor:
        """P(x_t <= x) of every number."""
        w, m, s = self.law(t, cond)
        a, c, b = self.process.a(t), self.process.c(t), self.process.b(t)
        rest = x if b is None else x - wide(b, x) * cond["y"]
        scale = (a**2 * s**2 + c**2).sqrt()
        terms = [
            wide(w[k], x) * torch.special.ndtr((rest - wide(a * m[k], x)) / wide(scale[k], x))
            for k in range(self.modes)
        ]
        return torch.stack(terms).sum(0)

    def quantile(self, p: Tensor, t: Tensor, cond: Mapping[str, Tree]) -> Tensor:
        """Where x_t lies at its p-th quantile: in one dimension the probability flow keeps p, whatever the process."""
        low, high = torch.full_like(p, -60.0), torch.full_like(p, 60.0)
        for _ in range(64):
            mid = (low + high) / 2
            below = self.cdf(mid, t, cond) < p
            low, high = torch.where(below, mid, low), torch.where(below, high, mid)
        return (low + high) / 2


class Units:
    """Normal draws replaced by units: the j-th draw of a run is 1 for element j + 2 and 0 for all others.

    The law of a solver that is affine in its draws is then known from one run. What is drawn again, by the same key, at the
    same step, with the same salt, is the same draw.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], int] = {}

    @property
    def draws(self) -> int:
        """How many there were."""
        return len(self.known)

    def __call__(self, key: Tensor, i: Tensor, like: Tensor, salt: int = 0) -> Tensor:
        out = torch.zeros_like(like)
        j = self.known.setdefault((salt, int(key[0].sum()), *i.flatten().tolist()), len(self.known))
        if j + 2 < len(out):
            out[j + 2] = 1.0
        return out


class Words(Denoiser):
    """Tokens whose joint law is a table over all V^L sequences: the posterior by Bayes' rule and enumeration.

    `coupled` sequences depend on their neighbours; the others are independent, place by place. A label chooses the law.
    """

    def __init__(self, process: Any, length: int, coupled: bool = True) -> None:
        self.process, self.length, self.vocab = process, length, process.vocab
        self.states = torch.tensor(list(itertools.product(range(self.vocab), repeat=length)))
        mask = getattr(process, "mask", None)
        self.clean = [v for v in range(self.vocab) if v != mask]
        self.tables = torch.stack([self._table(k, coupled) for k in range(4)])

    def _table(self, k: int, coupled: bool) -> Tensor:
        place = torch.arange(self.length)
        places = self.place_law(k)
        p = places[place, self.states].prod(1)
        if coupled:
            same = (self.states[:, 1:] == self.states[:, :-1]).double().sum(1)
            p = p * (0.7 * (k + 1) * same).exp()
        return p / p.sum()

    def place_law(self, k: int) -> Tensor:
        """(L, V): the law of each place on its own, when places are independent."""
        place, token = torch.meshgrid(torch.arange(self.length), torch.arange(self.vocab), indexing="ij")
        law = 1.0 + ((place * 2 + token * 3 + k) % 5).double()
        mask = getattr(self.process, "mask", self.vocab)
        law = torch.where(token == mask, torch.zeros_like(law), law)
        return law / law.sum(1, keepdim=True)

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.full_like(leaf, -1) if name in ("label", "style") else None

    def evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x0 = v), (R, L, V), up to a factor free of v."""
        alpha = wide(self.process.alpha(t), x).expand(x.shape).flatten(1)[..., None]
        x = x.flatten(1)[..., None]
        hit = (x == torch.arange(self.vocab)).double()
        if "masked" in self.process.gives:
            return torch.where(x == self.process.mask, torch.ones_like(hit), hit)
        if "uniform" in self.process.gives:
            return alpha * hit + (1 - alpha) / self.vocab
        return self.process.evidence(x[..., 0], t)

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        label = styled(cond.get("label", torch.zeros(len(x), dtype=torch.int64)), cond)
        e = self.evidence(x, t)
        p = self.tables[label].clone()  # (R, S)
        for i in range(self.length):
            p = p * e[:, i, self.states[:, i]]
        each = [
            torch.stack([(p * (self.states[:, i] == v)).sum(1) for v in range(self.vocab)], 1)
            for i in range(self.length)
        ]
        law = torch.stack(each, 1)
        law = law / law.sum(-1, keepdim=True).clamp_min(1e-300)
        return Pred(logits=law.clamp_min(1e-300).log().reshape(*x.shape, self.vocab))


class Fields(Denoiser):
    """Fields that are independent of each other, each with its own denoiser."""

    def __init__(self, process: Any, each: dict[str, Denoiser]) -> None:
        self.process, self.each = process, each

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.full_like(leaf, -1) if name in ("label", "style") else None

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        preds = {}
        for name, denoiser in self.each.items():
            own = {k: v[name] if isinstance(v, dict) and name in v else v for k, v in cond.items()}
            preds[name] = denoiser(x[name], t, own)
        means = {k: p.mean for k, p in preds.items() if p.mean is not None}
        logits = {k: p.logits for k, p in preds.items() if p.logits is not None}
        return Pred(mean=means or None, logits=logits or None)


def wide(w: Tensor, x: Tensor) -> Tensor:
    """A weight of the units as a factor of x, in x's dtype."""
    return w.reshape(*w.shape, *(1,) * (x.ndim - w.ndim)).to(x.dtype if x.is_floating_point() else w.dtype)


def denoiser(process: Any, like: Tree) -> Denoiser:
    """The exact denoiser of a process, from what the process gives."""
    if "joint" in process.gives:
        return Fields(process, {k: denoiser(p, like[k]) for k, p in process.parts.items()})
    if "discrete" in process.gives:
        return Words(process, math.prod(like.shape[1:]))
    assert "affine" in process.gives, f"worlds.py knows no denoiser for a process that gives {sorted(process.gives)}"
    return Bell(process)


NETS = ("attends", "convolves", "reads")  # in the order in which a part is tried in them
SAYS = torch.tensor([[1, 2, 0], [3, 0, 0], [2, 1, 3], [0, 0, 0]])  # the words of each label


@functools.cache
def _picture_net(kind: str) -> Any:
    from ebbtide.zoo.emoji import Painter
    from ebbtide.zoo.networks import DiT, UNet, draw

    if kind == "reads":
        with torch.random.fork_rng(devices=[]):
            module: Any = Painter(size=8, patch=4, layers=2, heads=2, width=8, told=32, words=3).eval()
    elif kind == "convolves":
        module = UNet(size=8, widths=(8, 16), head=8, classes=3).build()
    else:
        module = DiT(size=8, patch=4, layers=3, heads=2, width=8, classes=3).build()
    draw(module, Noise(keys([5]), torch.zeros(1, dtype=torch.int64)), 0.2)
    return module


def picture_net(process: Any, kind: str = "attends") -> Denoiser:
    """A small diffusion transformer, UNet or painter of words, for parts that change what is computed inside a network.

    One module serves all worlds: that it stays as it was is contract 9.
    """
    from ebbtide.denoise.network import Network

    def call(net: Any, x: Tensor, clock: Tensor, cond: Mapping[str, Any]) -> Tensor:
        if kind == "reads":
            return net(x.expand(-1, 3, -1, -1), clock, SAYS[cond["label"]])[:, :1]
        return net(x, timestep=clock, class_labels=cond["label"]).sample[:, :1]

    return Network(_picture_net(kind), process, predicts="x0", clock="scaled", nulls={"label": 3}, call=call)


@functools.cache
def _text_net() -> Any:
    from torch import nn

    from ebbtide.zoo.language import MaskedLM

    noise = Noise(keys([5]), torch.zeros(1, dtype=torch.int64))
    module = MaskedLM("abc", length=8, layers=2, heads=2, width=8, hidden=16, window=4).build(noise)
    for j, p in enumerate(module.parameters()):  # answers that hang on every token
        p.data = noise.fold(j).normal(p.data[None])[0] * 0.8
    return nn.Module.requires_grad_(module, False)


def text_net(process: Any) -> Denoiser:
    """A small masked language model, for parts that change what such a network computes; one module for all worlds."""
    from ebbtide.denoise.network import Network

    def call(net: Any, x: Tensor, clock: Tensor, cond: Mapping[str, Any]) -> Tensor:
        return net(x).logits[..., : process.vocab]

    return Network(_text_net(), process, predicts="logits", clock="time", nulls={"label": 3}, call=call)


# ---------------------------------------------------------------- worlds

KINDS: dict[str, dict[str, Any]] = {
    "flow": {"name": "flow"},
    "vp": {"name": "vp-cosine"},
    "bridge": {"name": "bridge"},
    "masked": {"name": "masked", "vocab": 3},
    "uniform": {"name": "uniform", "vocab": 3},
    "joint": {"name": "joint", "fields": {"image": {"name": "flow"}, "text": {"name": "masked", "vocab": 3}}},
    "pair": {"name": "joint", "fields": {"a": {"name": "vp-cosine"}, "b": {"name": "bridge"}}},
}

# name -> (shape of an element, its units) for numbers and for tokens
FORMS = {
    "element": (((3, 2), ()), ((4,), ())),
    "frames": (((3, 2, 2), (3,)), ((2, 2), (2,))),
    "tokens": (((5,), (5,)), ((4,), (4,))),
    "pixels": (((2, 3, 3), (1, 3, 3)), ((1, 2, 2), (1, 2, 2))),
}


@dataclass(frozen=True, eq=False, repr=False)
class World:
    """A part in its plan, with a denoiser, a condition and four elements."""

    entry: Entry
    spec: dict[str, Any]
    plan: Plan
    model: Model
    like: Tree
    cond: dict[str, Tree]
    units: tuple[int, ...] = ()
    exact: bool = True
    groups: tuple[int, ...] = (0, 1, 2, 3)
    seeds: tuple[int, ...] = (11, 2, 303, 4)
    name: str = ""
    _made: dict[str, Any] = field(default_factory=dict)

    @property
    def loop(self) -> Loop:
        """The bound plan."""
        if "loop" not in self._made:
            self._made["loop"] = self.fresh()
        return self._made["loop"]

    def fresh(self) -> Loop:
        """The plan bound once more: nothing shared with `loop` but the model."""
        return self.model.loop(self.plan, self.cond)

    @property
    def features(self) -> frozenset[str]:
        """All features that the parts of this plan give, with the model's process."""
        built = [p for slot in registry.SLOTS for p in self.plan.parts(slot)]
        return frozenset().union(*(features(p) for p in (*built, self.loop.process)))

    @property
    def part(self) -> Any:
        """The part under test, built."""
        return registry.make(self.entry.slot, self.spec)

    def requests(self) -> list[list[int]]:
        """The rows of each request."""
        return [[r for r in range(ELEMENTS) if self.groups[r] == g] for g in sorted(set(self.groups))]

    def begin(self, rows: list[int] | None = None, loop: Loop | None = None) -> State:
        """The first state of some elements, all by default."""
        rows = list(range(ELEMENTS)) if rows is None else rows
        pick = lambda v: v[torch.tensor(rows)]  # noqa: E731
        seeds = [self.seeds[r] for r in rows]
        group = torch.tensor([self.groups[r] for r in rows])
        like, cond = tree_map(pick, self.like), tree_map(pick, self.cond)
        return (loop or self.loop).begin(like, cond, seeds, self.units, group)

    def run(self) -> State:
        """The end of a run from the start."""
        return finish(self.loop, self.begin())

    def after(self, count: int, rows: list[int] | None = None) -> State:
        """The state after some steps, or at the end where that comes first."""
        state = self.begin(rows)
        for step in itertools.islice(self.loop.run(state), count):
            state = step.state
        return state

    def changed(self, **slots: Any) -> World:
        """The same world under a plan with other parts in some slots."""
        return replace(self, plan=self.plan.replace(**slots), _made={})

    def cast(self, dtype: torch.dtype) -> World:
        """The same world with numbers of another dtype."""
        to = lambda v: v.to(dtype) if v.is_floating_point() else v  # noqa: E731
        return replace(self, like=tree_map(to, self.like), cond=tree_map(to, self.cond), _made={})

    def told(self, wrap: Callable[[Denoiser], Denoiser]) -> World:
        """The same world with its denoiser wrapped."""
        return replace(self, model=replace(self.model, denoiser=wrap(self.model.denoiser)), _made={})

    def same(self, a: State, b: State, what: str = "") -> None:
        """Assert that two states are the same bits (within rounding where a network answers), memory included."""
        __tracebackhide__ = True
        found = differ(a, b, tolerance=0.0 if self.exact else 1e-4)
        if found:
            raise AssertionError(f"{self.name}: {what}: differs in {', '.join(found)}")

    def __repr__(self) -> str:
        return self.name


class Wrapped(Denoiser):
    """A denoiser seen through: counts its rows and calls, and may fail at one of them."""

    def __init__(self, inner: Denoiser, fail_at: int | None = None) -> None:
        self.inner, self.process, self.fail_at = inner, inner.process, fail_at
        self.module = getattr(inner, "module", None)
        self.rows: list[int] = []

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return self.inner.null(name, leaf)

    def over(self, module: Any) -> Wrapped:
        made = Wrapped(self.inner.over(module), self.fail_at)
        made.rows = self.rows
        return made

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        self.rows.append(len(t))
        if self.fail_at is not None and len(self.rows) >= self.fail_at:
            raise RuntimeError("the network failed")
        return self.inner(x, t, cond)


def finish(loop: Loop, state: State, limit: int = 2000) -> State:
    """The state at the end of a run."""
    for count, step in enumerate(loop.run(state)):
        assert count < limit, "the run does not end"
        state = step.state
    return state


def steps(loop: Loop, state: State, limit: int = 2000) -> list[Step]:
    """All steps of a run."""
    return list(itertools.islice(loop.run(state), limit))


def differ(a: State, b: State, *, tolerance: float = 0.0) -> list[str]:
    """The leaves that differ, a missing one being zeros; those of `group` are not looked at."""
    left, right = a.flat(), b.flat()
    names = [k for k in {**left, **right} if k != "group"]
    out = []
    for name in names:
        one, two = left.get(name), right.get(name)
        one = torch.zeros_like(two) if one is None else one
        two = torch.zeros_like(one) if two is None else two
        if one.shape != two.shape or one.dtype != two.dtype:
            out.append(f"{name}: {tuple(one.shape)} {one.dtype} against {tuple(two.shape)} {two.dtype}")
        elif not (torch.equal(one, two) or (tolerance and torch.allclose(one.double(), two.double(), 0, tolerance))):
            gap = (one.double() - two.double()).abs().max()
            out.append(f"{name}: {float(gap):.3g}")
    return out


def _place(slots: dict[str, Any], slot: str, spec: dict[str, Any]) -> None:
    slots[slot] = [*slots.get(slot, []), spec] if slot in MANY else spec


def plan_around(entry: Entry, spec: dict[str, Any], kind: str, given: frozenset[str]) -> Plan:
    """A plan that holds the part: in the process of this kind unless it is one, with companions for what it needs."""
    slots: dict[str, Any] = {"process": KINDS[kind]} if entry.slot != "process" else {}
    slots["grid"] = {"name": "linear", "steps": STEPS}
    _place(slots, entry.slot, spec)
    here = given | features(registry.make("process", slots["process"]))
    wanted, seen = sorted(entry.needs - here), set()
    for need in wanted:
        if need in seen:
            continue
        seen.add(need)
        givers = [
            e
            for e in parts()
            if e.slot not in ("process", entry.slot) and need in e.gives | features(build(e.slot, examples(e)[0]))
        ]
        if not givers:
            raise EbbError(f"worlds.py finds nothing that gives {need!r}; {title(entry)} needs it.")
        giver = givers[0]
        _place(slots, giver.slot, examples(giver)[0])
        wanted += sorted(giver.needs - here)
    return Plan(**slots)


def _short(entry: Entry, spec: dict[str, Any]) -> dict[str, Any]:
    """Few steps where the part has as many as it likes."""
    known = typing.cast(Any, entry.cls).__pydantic_fields__
    return {"steps": STEPS, **spec} if "steps" in known and entry.slot == "grid" else spec


def make(entry: Entry, spec: dict[str, Any], kind: str = "flow", form: str = "element") -> World:
    """The world of one part with these parameters. Raises EbbError where the part does not go with this kind."""
    spec = _short(entry, spec)
    module = "module" in entry.needs
    given = frozenset({"null", "module"} if module else {"null"})
    plan = plan_around(entry, spec, kind, given)
    process = plan.parts("process")[0]
    like: Tree
    units: tuple[int, ...]
    if module and "masked" in entry.needs:
        like, units = torch.zeros(ELEMENTS, 8, dtype=torch.int64), ()
        model = Model("world", text_net(process), like=torch.zeros(8, dtype=torch.int64))
    elif module:
        if "affine" not in process.gives:
            raise EbbError("the network of these worlds makes pictures.")
        model = Model("world", picture_net(process), like=torch.zeros(1, 8, 8), labels=None)
        plain = plan_around(entry, examples(entry)[0], kind, given)
        for other in NETS[1:]:
            try:
                model.loop(plain.replace(process=None), {"label": torch.tensor([0])})
                break
            except EbbError:  # it may be about convolutions, or words
                model = replace(model, denoiser=picture_net(process, other))
        like = torch.zeros(ELEMENTS, 1, 8, 8)
        units = ()
    else:
        like, units = _like(process, form)
        model = Model("world", denoiser(process, like), like=tree_map(lambda v: v[0], like))
    groups = (0, 0, 1, 1) if entry.slot == "steer" else (0, 1, 2, 3)
    # particles of one request are asked for the same
    cond: dict[str, Tree] = {"label": torch.tensor([0, 0, 2, 2] if entry.slot == "steer" else [0, 1, 2, 0])}
    if entry.slot == "guide" and not module:  # a second condition, for guides that weigh one against the other
        cond["style"] = torch.tensor([1, 0, 2, 0])
    if "end" in process.gives:
        ends = {k: p.gives for k, p in getattr(process, "parts", {}).items()}
        drawn = _ends(like)
        cond["y"] = {k: v for k, v in drawn.items() if "end" in ends[k]} if isinstance(drawn, dict) else drawn
    if entry.slot == "start" or plan.parts("start")[0].called != "prior":  # what a start may be given with an element
        cond |= {name: _ends(like) for name in ("source", "start", "previous")}
        cond["known"] = (torch.arange(ELEMENTS * math.prod(units)) % 3 == 0).reshape(ELEMENTS, *units)
    reads = build(entry.slot, spec).reads
    if "measured" in reads and isinstance(like, torch.Tensor):  # what a restoration is given with an element
        hole = torch.arange(math.prod(like.shape)).reshape(like.shape) % 3 == 0
        cond |= {"mask": hole.to(like), "measured": _ends(like).where(~hole, 0.0)}
    for name in reads:  # what a part reads of an element during the run
        cond.setdefault(name, _ends(like))
    world = World(
        entry, spec, plan.replace(process=None), model, like, cond, units, not module, groups,
        name=f"{title(entry)}[{ident(spec)}] {kind} {form}",
    )  # fmt: skip
    assert world.loop is not None
    return world


def _like(process: Any, form: str) -> tuple[Tree, tuple[int, ...]]:
    numbers, tokens = FORMS[form]
    if "joint" in process.gives:
        if form == "pixels":
            raise EbbError("the fields of a joint state share no pixels.")
        each = {k: _like(p, form)[0] for k, p in process.parts.items()}
        units = {"element": (), "frames": (2,), "tokens": (4,)}[form]
        return {k: v[:, : units[0]] if units else v for k, v in each.items()}, units
    if "discrete" in process.gives:
        return torch.zeros(ELEMENTS, *tokens[0], dtype=torch.int64), tokens[1]
    if "symmetric" in process.gives:
        if form in ("tokens", "pixels"):
            raise EbbError("a matrix that is its own transpose has one time for each pair.")
        numbers = {"element": ((3, 3), ()), "frames": ((3, 2, 2), (3,))}[form]
    return torch.zeros(ELEMENTS, *numbers[0], dtype=torch.float64), numbers[1]


def _ends(like: Tree) -> Tree:
    generator = torch.Generator().manual_seed(3)
    return tree_map(
        lambda v: (
            torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype)
            if v.is_floating_point()
            else torch.zeros_like(v)
        ),
        like,
    )


@functools.cache
def _kinds(slot: str, name: str) -> list[str]:
    entry = registry.find(slot, name)
    if slot == "process":
        return ["own"]
    return [kind for kind in KINDS if goes(entry, examples(entry)[0], kind)]


def kinds(entry: Entry) -> list[str]:
    """The kinds of process that a part goes with."""
    return _kinds(entry.slot, entry.name)


class Case(NamedTuple):
    """Where a world is to be built: only names and numbers, so that tests can be listed without building it."""

    entry: Entry
    spec: dict[str, Any]
    kind: str
    form: str = "element"

    def __repr__(self) -> str:
        return self.id

    @property
    def id(self) -> str:
        """The test's name."""
        return f"{title(self.entry)}-{ident(self.spec)}-{self.kind}-{self.form}"

    def world(self) -> World:
        """The world, built."""
        assert self.kind, (
            f"{title(self.entry)} ({ident(self.spec)}) has no world: {_reason(self.entry)}. "
            f"It must go with one of {', '.join(KINDS)}; what is new in it, worlds.py must be taught."
        )
        return make(*self)


@functools.cache
def _cases(slot: str, name: str) -> tuple[Case, ...]:
    entry = registry.find(slot, name)
    try:
        found = kinds(entry)
    except Exception:  # told by the test of this case, not while tests are listed
        found = []
    if not found:
        return (Case(entry, {"name": name}, ""),)
    out = []
    for spec in variants(entry):
        # a parameter may change what a part needs; it must then go with another kind
        fitting = (k for k in found if goes(entry, spec, k))
        out.append(Case(entry, spec, next(fitting, "")))
    plain = examples(entry)[0]
    out += [Case(entry, plain, kind) for kind in found[1:]]
    # how units are shaped and how data becomes noise are told apart: every form once, in the first kind that takes it
    for kind in found[:1] if "module" not in entry.needs else ():
        out += [Case(entry, plain, kind, form) for form in list(FORMS)[1:] if goes(entry, plain, kind, form)]
    return tuple(out)


def _reason(entry: Entry) -> str:
    try:
        make(entry, examples(entry)[0])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it goes with the default alone"


def goes(entry: Entry, spec: dict[str, Any], kind: str, form: str = "element") -> bool:
    """Whether a part with these parameters goes with a kind of process and a form of units."""
    try:
        make(entry, spec, kind, form)
    except EbbError:
        return False
    return True


def cases(entry: Entry, *, forms: bool = True) -> list[Case]:
    """The worlds of a part: every parameter changed once, every kind of process, every form of units."""
    return [c for c in _cases(entry.slot, entry.name) if forms or c.form == "element"]


def inhabited(contract: str, *slots: str, forms: bool = True) -> pytest.MarkDecorator:
    """Parametrise over the worlds of the parts of some slots, all by default."""
    found = [c for e in parts() if not slots or e.slot in slots for c in cases(e, forms=forms)]
    return pytest.mark.parametrize("case", [marked(contract, c.entry, c, c.id) for c in found])
