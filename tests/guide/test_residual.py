"""Residual guidance: its formula against the paper's in the noise, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import process
from ebbtide.measure.decoding import Counted

N, STEPS = 5, 4
SOURCE = torch.linspace(-1, 1, 2 * N, dtype=torch.float64).reshape(N, 2)
LABELS = [0, 1, 0, 1, 1]


def model(name: str = "vp-cosine", kind: Any = GaussianMixture) -> Any:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    law = kind(process(name), torch.ones(2), means, 0.3, labels=torch.tensor([0, 1]))
    return ebb.load(Counted(law), like=torch.zeros(2, dtype=torch.float64), labels=2)


def run(one: Any, guide: dict[str, Any] | str, start: Any = "encoded", solve: str = "euler", n: int = N) -> Any:
    grid = {"name": "linear", "steps": STEPS, "first": 0.9}
    start = {"name": "encoded", "last": STEPS} if start == "encoded" else start
    plan = ebb.Plan(grid=grid, start=start, solve=solve, guide=[guide])
    return ebb.sample(one, plan, cond={"label": LABELS[:n], "source": SOURCE[:n]}, n=n, trace=True)


def eps(p: Any, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """The noise that a prediction of the data implies."""
    return (x - p.a(t)[:, None] * x0) / p.c(t)[:, None]


@pytest.mark.parametrize("delta", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["self", "once"])
def test_it_is_the_papers_formula_in_the_noise(kind: str, delta: float) -> None:
    one, w = model(), 1.7
    spec = {"name": "residual-guidance", "scale": w, "delta": delta, "negative": kind}
    grid = {"name": "linear", "steps": STEPS, "first": 0.9}
    plan = ebb.Plan(grid=grid, start={"name": "encoded", "last": STEPS}, guide=[spec])
    p, law = one.process, one.denoiser
    own, null = {"label": torch.tensor(LABELS)}, {"label": torch.full((N,), -1)}
    loop, state = begin(one, plan, {"label": LABELS, "source": SOURCE}, N)
    negative = SOURCE if kind == "self" else law(state.x, state.t, null).mean
    for _ in range(STEPS):
        step = loop.step(state)
        virtual = delta * eps(p, state.x, negative, state.t)
        wanted = virtual + w * (eps(p, state.x, law(state.x, state.t, own).mean, state.t) - virtual)
        torch.testing.assert_close(eps(p, state.x, step.pred.mean, state.t), wanted)
        state = step.state


def test_the_negative_of_once_is_that_of_the_first_step_throughout() -> None:
    """Were it asked for at every step, it would be guidance."""
    once = run(model(), {"name": "residual-guidance", "scale": 2.0, "negative": "once"})
    cfg = run(model(), {"name": "cfg", "scale": 2.0})
    torch.testing.assert_close(once.trace[0], cfg.trace[0])
    assert (once.trace[1] - cfg.trace[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("solve", "queries"), [("euler", STEPS), ("heun", 2 * STEPS - 1)])
def test_it_costs_no_call_or_one(solve: str, queries: int) -> None:
    for guide, more in (
        ({"name": "residual-guidance"}, 0),
        ({"name": "residual-guidance", "negative": "once"}, 1),
        ({"name": "cfg"}, queries),
    ):
        one = model()
        assert run(one, guide, solve=solve).calls == one.denoiser.rows == N * (queries + more)


class Listening(GaussianMixture):
    """A mixture that remembers which leaves it was asked under."""

    heard: set[str]

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        self.heard |= set(cond)
        return super().__call__(x, t, cond)


def test_the_network_is_not_told_of_the_source() -> None:
    one = model(kind=Listening)
    one.denoiser.denoiser.heard = set()
    run(one, "residual-guidance")
    assert one.denoiser.denoiser.heard == {"label"}


def test_elements_of_a_stream_have_negatives_of_their_own() -> None:
    """One that joins later asks for its own, and gives what it gives alone."""
    one, plan = (
        model(),
        ebb.Plan(grid={"name": "linear", "steps": STEPS}, guide=[{"name": "residual-guidance", "negative": "once"}]),
    )
    loop, pool = begin(one, plan, [0], 1, seed=3)
    for _ in range(2):
        pool = loop.step(pool).state
    pool = pool.cat(begin(one, plan, [1], 1, seed=4)[1])
    asked = [loop.step(pool).calls]
    while not loop.done(pool):
        step = loop.step(pool)
        pool = step.state
        asked.append(step.calls)
    assert asked[0] == 3
    for row, (label, seed) in enumerate(((0, 3), (1, 4))):
        assert torch.equal(pool.x[row], ebb.sample(one, plan, cond=[label], n=1, seed=seed).x[0])


def test_without_a_source_it_says_what_to_give() -> None:
    plan = ebb.Plan(grid={"name": "linear", "steps": STEPS}, guide=["residual-guidance"])
    with pytest.raises(EbbError, match="source"):
        ebb.sample(model(), plan, cond=LABELS, n=N)
