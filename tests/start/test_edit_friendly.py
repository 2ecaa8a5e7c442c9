"""Reading a picture's noise: it comes back under its own condition, whatever solver draws once a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model, process

MEANS = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]], dtype=torch.float64)
GRID = {"name": "linear", "steps": 12}
START = {"name": "edit-friendly", "strength": 0.75}


def model(name: str = "flow") -> Model:
    g = GaussianMixture(process(name), [1, 1, 2], MEANS, 0.04, labels=[0, 1, 2])
    return ebb.load(g, like=torch.zeros(2, dtype=torch.float64), labels=3)


def source(n: int) -> Tensor:
    return torch.linspace(-1, 1, 2 * n, dtype=torch.float64).reshape(n, 2)


def plan(solve: Any = "ancestral", **slots: Any) -> ebb.Plan:
    return ebb.Plan(**{"solve": solve, "grid": GRID, "start": START, "correct": ["residual"], **slots})


ONCE: list[Any] = [
    "ancestral",
    {"name": "euler", "eta": 0.4},
    "ddpm",
    {"name": "ddpm", "variance": "fixed-large"},
    {"name": "ddpm", "variance": "optimal"},
    "dpmpp-2m-sde",
    "dpmpp-3m-sde",
    "er-sde",
    "lcm",
]


@pytest.mark.parametrize("name", ["flow", "vp-cosine", "ve"])
@pytest.mark.parametrize("solve", ONCE, ids=str)
def test_a_source_comes_back_under_its_own_condition(solve: Any, name: str):
    """Under guidance too, though the source is none that the model would draw; without the residual it does not."""
    x, cond = source(4), {"label": torch.tensor([0, 1, 2, 1])}
    own = plan(solve, guide={"name": "cfg", "scale": 3.0})
    out = ebb.sample(model(name), own, cond={**cond, "source": x}, n=4)
    assert float((out.x - x).abs().max()) < 1e-12
    bare = ebb.sample(model(name), own.replace(correct=[]), cond={**cond, "source": x}, n=4)
    assert float((bare.x - x).abs().max()) > 1e-3


def test_another_condition_edits_and_the_own_one_named_does_not():
    x, label = MEANS[:1].expand(50, 2) + 0.1, torch.zeros(50, dtype=torch.int64)
    told = {"source": x, "from": {"label": 0}}
    same = ebb.sample(model(), plan(), cond={"label": label, **told}, n=50)
    assert float((same.x - x).abs().max()) < 1e-12
    other = ebb.sample(model(), plan(start={**START, "strength": 1.0}), cond={"label": label + 1, **told}, n=50).x
    assert bool((torch.cdist(other, MEANS).argmin(1) == 1).all())


def test_its_own_guidance_reads_the_source():
    """Read under guidance 1 and drawn under guidance 1 it comes back; drawn under 3 it does not."""
    x = source(4)
    start = {**START, "scale": 1.0}
    for scale, small in ((1.0, True), (3.0, False)):
        own = plan(start=start, guide={"name": "cfg", "scale": scale})
        if scale == 1.0:
            own = own.replace(guide=[])
        out = ebb.sample(model(), own, cond={"label": 1, "source": x}, n=4)
        assert (float((out.x - x).abs().max()) < 1e-12) == small


def test_the_maps_are_larger_than_noise_and_neighbours_oppose_each_other():
    """Copies of a source know nothing of each other, so what leads from one to the next must undo the first's noise."""
    n = 400
    x = MEANS[torch.arange(n) % 3]
    own = plan(start={**START, "strength": 1.0}, grid={"name": "linear", "steps": 20})
    state = begin(model(), own, cond={"label": torch.arange(n) % 3, "source": x}, n=n)[1]
    z = state.memory["noise"]["x"][:, 1:-1]
    assert float(z.var()) > 1.2
    assert float((z[:, 1:] * z[:, :-1]).mean() / z.var()) < -0.1


@pytest.mark.parametrize("solve", ["dpmpp-2s-sde", {"name": "langevin", "eta": 1.0}], ids=str)
def test_a_solver_that_draws_otherwise_is_refused(solve: Any):
    """Under no label the prediction bends, so a stage that is asked after the draw is not affine in it."""
    with pytest.raises(EbbError, match="draws once a step, such as 'ancestral'") as told:
        ebb.sample(model(), plan(solve, correct=[]), cond={"source": source(2)}, n=2)
    assert "\n" not in str(told.value)


def test_a_solver_without_noise_is_refused_before_anything_runs():
    with pytest.raises(EbbError, match="'edit-friendly' needs 'stochastic'"):
        plan("euler")


def test_a_map_of_zeros_is_none():
    """An element that has no maps, and a step that has none, draw afresh; the others replay."""
    key, i, like = keys([1, 2, 3]), torch.tensor([0, 1, 2]), torch.zeros(3, 5)
    maps = torch.zeros(3, 2, 5)
    maps[0, 0], maps[2, 1] = 7.0, 9.0
    fresh, told = Noise(key, i, 1).normal(like), Noise(key, i, 1, maps).normal(like)
    assert bool((told[0] == 7).all())
    assert torch.equal(told[1:], fresh[1:])  # zeros for the second, and the third is past its last map


def test_elements_with_maps_and_without_go_on_together():
    own = plan(correct=[])
    loop, one = begin(model(), own, cond={"label": 0, "source": source(2)}, n=2)
    _, two = begin(model(), own.replace(start="prior"), cond={"label": 1}, n=2, seed=9)
    both = one.cat(two)
    for _ in range(len(GRID) * 6):
        if loop.done(both):
            break
        both = loop.step(both).state
    for some, state in ((slice(0, 2), one), (slice(2, 4), two)):
        while not loop.done(state):
            state = loop.step(state).state
        assert torch.equal(both.x[some], state.x)
