"""SuperDiff: what a path says of densities is Bayes' rule, OR of points is their mixture, AND keeps densities equal."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred, Query
from ebbtide.core.tree import Tree
from ebbtide.denoise.exact import GaussianMixture, Product
from ebbtide.denoise.superposition import gains
from ebbtide.process.bridge import Bridge
from ebbtide.process.flow import Flow
from ebbtide.process.gaussian import VPCosine, VPLinear
from ebbtide.process.masked import Masked
from ebbtide.process.mean_reverting import MeanReverting

N, D = 30, 3
POINTS = [[1.0, -1.0, 0.5], [-0.5, 1.5, 1.0], [0.2, 0.3, -2.0]]
GRID = {"name": "linear", "steps": 7}


def draw(*shape: int, seed: int = 3) -> Tensor:
    noise = Noise(keys([seed]), torch.zeros(1, dtype=torch.int64))
    return noise.normal(torch.zeros(1, *shape, dtype=torch.float64))[0]


def points(process: Any, weights: Any = (1.0, 1.0, 1.0)) -> GaussianMixture:
    """Data that is one of three points, a label each."""
    return GaussianMixture(process, list(weights), POINTS, 0.0, [0, 1, 2])


def label(i: int, n: int = N) -> dict[str, Tree]:
    return {"label": torch.full((n,), i)}


@pytest.mark.parametrize(
    "process", [VPLinear(), VPCosine(), Flow(), Bridge(), MeanReverting()], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("units", [(), (D,)], ids=["element", "tokens"])
def test_gains_of_points_are_exact_at_any_length_of_step(process: Any, units: tuple[int, ...]) -> None:
    """What is drawn from a point is Gaussian at all times, so the posterior's kernel is Bayes' rule to the bit."""
    g, cond = points(process), {"y": draw(N, D, seed=9)} if process.ended else {}
    shape = (N, *units)
    t = torch.full(shape, 0.9, dtype=torch.float64) - 0.1 * torch.rand(
        shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    s = t * 0.4
    if units:
        s[:, 1] = t[:, 1]  # a token that waits
    x, y = draw(N, D, seed=1), draw(N, D, seed=2)
    if units:
        y[:, 1] = x[:, 1]
    conds = [{**label(i), **cond} for i in range(3)]
    found = gains(process, x, t, y, s, [g(x, t, c).mean for c in conds], cond)
    true = torch.stack([g.log_prob(y, s, c) - g.log_prob(x, t, c) for c in conds], 1)
    assert torch.allclose(found, true, rtol=1e-9, atol=1e-9)


def test_gains_are_those_of_ito_as_steps_shorten() -> None:
    """d f h - g^2 |s|^2 h / 2 + <dx + f x h, s> with f = (log a)', g^2 = 2 c^2 (log c/a)', along steps of one noise."""
    process, t = VPLinear(), torch.full((2000,), 0.5, dtype=torch.float64)
    g = GaussianMixture(process, [1.0, 1.0], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 0.3)
    x, z = draw(2000, D, seed=4), draw(2000, D, seed=5)
    mean, score = g(x, t, {}).mean, g.score(x, t)
    a, c = process.a(t), process.c(t)
    da, dc, _ = process.rates(t)
    f = (da / a)[:, None]
    g2 = (2 * c**2 * (dc / c - da / a))[:, None]
    errors = []
    for h in (0.02, 0.005, 0.00125):
        w = process.weights(t, t - h, 1.0)
        y = w.x * x + w.x0 * mean + w.noise * z
        ito = (f * h - g2 * score**2 * h / 2 + (y - x + f * x * h) * score).sum(1)
        errors.append(float((gains(process, x, t, y, t - h, [mean], {})[:, 0] - ito).square().mean().sqrt()))
    assert errors[-1] < 0.1 * float(ito.square().mean().sqrt())
    assert all(a / b > 3.5 for a, b in itertools.pairwise(errors))  # of order h, where the gain is of order sqrt(h)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 3.0, 0.5)])
def test_or_of_points_is_their_mixture_step_by_step(weights: tuple[float, ...]) -> None:
    """Flow's prior knows no data, so densities are equal at the start; those of points are exact, so the weights are too."""
    model = ebb.load(points(Flow(), weights), like=torch.zeros(D, dtype=torch.float64), labels=3)
    bias = torch.tensor(weights, dtype=torch.float64).log().tolist()
    spec = {"name": "superdiff-or", "others": [{"label": 1}, {"label": 2}], "bias": bias}
    either = ebb.sample(model, ebb.Plan(solve="ancestral", grid=GRID, guide=[spec]), cond=0, n=N, trace=True)
    true = ebb.sample(model, ebb.Plan(solve="ancestral", grid=GRID), n=N, trace=True)
    for a, b in zip(either.trace, true.trace, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)
    assert either.calls == 3 * true.calls


class Networks(Denoiser):
    """Two networks as one denoiser, which the condition chooses."""

    def __init__(self) -> None:
        self.process = Flow()
        self.each = [points(self.process), GaussianMixture(self.process, [1.0], [[2.0, 2.0, 2.0]], 0.0)]

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        which = cond["network"] == 1
        plain = {k: v for k, v in cond.items() if k == "label"}
        one, two = self.each[0](x, t, plain).mean, self.each[1](x, t, {}).mean
        return Pred(mean=torch.where(which[:, None], two, one))


def test_models_are_named_by_leaves_of_the_condition() -> None:
    """A point of one network or that of another: the mixture of two points."""
    model = ebb.load(Networks(), like=torch.zeros(D, dtype=torch.float64))
    plan = ebb.Plan(solve="ancestral", grid=GRID, guide=[{"name": "superdiff-or", "others": [{"network": 1}]}])
    found = ebb.sample(model, plan, cond={"label": 1, "network": 0}, n=N).x
    pair = GaussianMixture(Flow(), [1.0, 1.0], [POINTS[1], [2.0, 2.0, 2.0]], 0.0)
    true = ebb.sample(ebb.load(pair, like=torch.zeros(D, dtype=torch.float64)), plan.replace(guide=[]), n=N).x
    assert torch.allclose(found, true, rtol=0, atol=1e-9)


def bells(process: Any) -> GaussianMixture:
    return GaussianMixture(process, [1.0, 1.0, 1.0], POINTS, [0.3, 0.2, 0.5], [0, 1, 2])


@pytest.mark.parametrize("process", [VPLinear(), Flow(), Bridge()], ids=lambda p: type(p).__name__)
def test_and_lets_all_densities_grow_alike(process: Any) -> None:
    g = bells(process)
    model = ebb.load(g, like=torch.zeros(D, dtype=torch.float64), labels=3)
    cond = {"label": 0, **({"y": draw(N, D, seed=9)} if process.ended else {})}
    spec = {"name": "superdiff-and", "others": [{"label": 1}, {"label": 2}]}
    states = [s.state for s in ebb.run(model, ebb.Plan(solve=spec, grid=GRID), cond=cond, n=N)]
    for a, b in itertools.pairwise(states[:-1]):
        conds = [{**a.cond, "label": torch.full((N,), i)} for i in range(3)]
        grown = gains(process, a.x, a.t, b.x, b.t, [g(a.x, a.t, c).mean for c in conds], a.cond)
        assert float((grown - grown[:, :1]).abs().max()) < 1e-9
        assert float(grown.abs().max()) > 0.1


def test_and_weighs_units_by_the_noise_of_their_own_steps() -> None:
    process, spec = VPLinear(), {"name": "superdiff-and", "others": [{"label": 1}, {"label": 2}]}
    g = bells(process)
    model = ebb.load(g, like=torch.zeros(D, dtype=torch.float64), labels=3, units=1)
    loop = model.loop(ebb.Plan(solve=spec, grid=GRID), label(0))
    state = loop.begin(torch.zeros(N, D, dtype=torch.float64), label(0), range(N), (D,))
    t = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64).expand(N, D).contiguous()
    s = t * torch.tensor([0.8, 0.3, 1.0], dtype=torch.float64)  # the last waits
    state = replace(state, t=t)
    move, _ = loop.solve.step(state, {}, s, loop.ask(state, "solve"), process)
    means = [g(state.x, t, label(i)).mean for i in range(3)]
    grown = gains(process, state.x, t, move.x, s, means, {})
    assert float((grown - grown[:, :1]).abs().max()) < 1e-12 * float(grown.abs().max())
    assert torch.equal(move.x[:, 2], state.x[:, 2])


def test_and_shares_its_noise_and_prediction_with_ancestral_across_the_models() -> None:
    """What it adds to an ancestral step lies along the differences of predictions, and undoes the noise there."""
    g = bells(Flow())
    model = ebb.load(g, like=torch.zeros(D, dtype=torch.float64), labels=3)
    spec = {"name": "superdiff-and", "others": [{"label": 1}]}
    plan = ebb.Plan(solve=spec, grid=GRID)
    state = next(iter(ebb.run(model, plan, cond=0, n=N))).state
    s = state.t - 1 / GRID["steps"]
    mine, plain = (model.loop(p, state.cond).step(state).state.x for p in (plan, plan.replace(solve="ancestral")))
    w = Flow().weights(state.t, s, 1.0)
    mu = [w.x * state.x + w.x0 * g(state.x, state.t, label(i)).mean for i in (0, 1)]
    way = (mu[1] - mu[0]) / (mu[1] - mu[0]).norm(dim=1, keepdim=True)
    moved = mine - plain
    assert torch.allclose(moved, way * (moved * way).sum(1, keepdim=True), rtol=0, atol=1e-9)
    middle = (mu[0] + mu[1]) / 2
    assert float(((mine - middle) * way).sum(1).abs().max()) < 1e-9  # on the plane half way between
    assert float(((plain - middle) * way).sum(1).abs().max()) > 0.1


@pytest.mark.parametrize("twice", [[{"label": 0}], [{"label": 0}, {"label": 0}]])
def test_identical_models_are_one(twice: list[dict[str, int]]) -> None:
    model = ebb.load(bells(VPLinear()), like=torch.zeros(D, dtype=torch.float64), labels=3)
    plain = ebb.sample(model, ebb.Plan(solve="ancestral", grid=GRID), cond=0, n=N).x
    both = ebb.sample(model, ebb.Plan(solve={"name": "superdiff-and", "others": twice}, grid=GRID), cond=0, n=N).x
    assert torch.equal(both, plain)
    one, more = ([{"label": 1}], [{"label": 1}, {"label": 1}])
    a, b = (
        ebb.sample(model, ebb.Plan(solve={"name": "superdiff-and", "others": o}, grid=GRID), cond=0, n=N).x
        for o in (one, more)
    )
    assert torch.allclose(a, b, rtol=0, atol=1e-7)
    assert not torch.allclose(a, plain, rtol=0, atol=0.1)


def test_clip_bounds_the_weights() -> None:
    model = ebb.load(bells(VPLinear()), like=torch.zeros(D, dtype=torch.float64), labels=3)
    spec = {"name": "superdiff-and", "others": [{"label": 1}], "clip": 1e-9}
    clipped = ebb.sample(model, ebb.Plan(solve=spec, grid=GRID), cond=0, n=N).x
    plain = ebb.sample(model, ebb.Plan(solve="ancestral", grid=GRID), cond=0, n=N).x
    assert 0 < float((clipped - plain).abs().max()) < 1e-6


def test_looks_ahead_read_the_path_and_leave_no_trace() -> None:
    model = ebb.load(points(Flow()), like=torch.zeros(D, dtype=torch.float64), labels=3)
    plan = ebb.Plan(
        solve="ancestral", grid=GRID, guide=[{"name": "superdiff-or", "others": [{"label": 1}, {"label": 2}]}]
    )
    *_, third, _, _, _, _ = ebb.run(model, plan, cond=0, n=N)
    state, loop = third.state, model.loop(plan, third.state.cond)
    ask = loop.ask(state)
    twice = torch.tensor([4, 2, 4])
    look, back = ask.many(
        [Query(state.x, state.t, role="look"), Query(state.x[twice], state.t[twice], role="look", of=twice)]
    )
    assert ask.memory["guide/0"] is ask.before["guide/0"]
    true = points(Flow())(state.x, state.t, label(-1)).mean
    assert torch.allclose(look.mean, true, rtol=0, atol=1e-9)
    assert torch.equal(back.mean, look.mean[twice])
    again = replace(state, memory={k: v for k, v in state.memory.items() if k != "guide/0"})
    assert not torch.allclose(loop.ask(again)(state.x, state.t).mean, true, rtol=0, atol=1e-3)


def test_guidance_goes_inside_or_outside() -> None:
    model = ebb.load(bells(VPLinear()), like=torch.zeros(D, dtype=torch.float64), labels=3)
    both: list[Any] = ["superdiff-or", {"name": "cfg", "scale": 2.0}]
    inside, outside = (
        ebb.sample(model, ebb.Plan(solve="ancestral", grid=GRID, guide=g), cond=0, n=N) for g in (both, both[::-1])
    )
    steps = GRID["steps"]
    assert (inside.calls, outside.calls) == (4 * N * steps, 3 * N * steps)
    spec = {"name": "superdiff-and", "others": [{"label": 1}]}
    each = ebb.sample(model, ebb.Plan(solve=spec, grid=GRID, guide=both[1:]), cond=0, n=N)
    assert each.calls == 4 * N * steps


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        ({"guide": ["superdiff-or"]}, "needs 'stochastic'"),
        ({"solve": "ancestral", "guide": [{"name": "superdiff-or", "bias": [0.0]}]}, "bias is 2 numbers"),
        (
            {"solve": "ancestral", "guide": [{"name": "superdiff-or", "others": [{"prompt": 1}]}]},
            "'prompt'.*they have label",
        ),
        ({"solve": {"name": "superdiff-and", "others": [{"prompt": 1}]}}, "'prompt'.*they have label"),
    ],
)
def test_what_cannot_be(slots: dict[str, Any], said: str) -> None:
    model = ebb.load(bells(VPLinear()), like=torch.zeros(D, dtype=torch.float64), labels=3)
    with pytest.raises(EbbError, match=said):
        ebb.sample(model, ebb.Plan(grid=GRID, **slots), cond=0, n=2)


def test_tokens_have_no_score() -> None:
    law = torch.full((4, 3), 1 / 3, dtype=torch.float64)
    model = ebb.load(Product(Masked(3), law), like=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(EbbError, match="needs 'affine'"):
        ebb.sample(model, ebb.Plan(solve="superdiff-and", grid=GRID), n=2)
