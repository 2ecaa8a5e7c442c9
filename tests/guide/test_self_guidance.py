"""Self-guidance against closed forms on Gaussian data; what is unknown is left alone, levels are an element's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.denoise.exact import Gaussian
from ebbtide.denoise.model import process
from ebbtide.guide.self_guidance import SelfGuidance

LIKE = torch.zeros(4, dtype=torch.float64)
VAR = 0.6
MODEL = ebb.load(Gaussian(process("vp-linear", beta_max=10.0), LIKE, VAR), like=LIKE)
OBSERVED = torch.tensor([[1.0, -2.0, math.nan, math.nan]], dtype=torch.float64).repeat(3, 1)


def answered(cond: dict[str, Any], **params: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the guide answers at the second step, the plain mean there, its slope k in x, and c^2 / a."""
    plan = ebb.Plan(grid={"name": "linear", "steps": 4}, guide=[{"name": "self-guidance", **params}])
    loop = MODEL.loop(plan, cond)
    state = loop.step(loop.begin(LIKE.expand(3, 4), cond, [1, 2, 3])).state
    a, c = (f(state.t)[:, None] for f in (loop.process.a, loop.process.c))  # type: ignore[attr-defined]
    slope = a * VAR / (a**2 * VAR + c**2)
    with torch.no_grad():
        mean = loop.ask(state)(state.x, state.t).mean
    return mean, slope * state.x, slope, c**2 / a


def test_squares_pull_as_the_closed_form_says():
    found, mean, slope, weight = answered({"observed": OBSERVED}, loss="mse", scale=2.0)
    miss = torch.where(OBSERVED.isnan(), 0.0, OBSERVED.nan_to_num() - mean)
    assert torch.allclose(found, mean + 2.0 * weight * slope * miss, atol=1e-12)


def test_quantiles_pull_by_their_level_whichever_side_is_missed():
    level = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    found, mean, slope, weight = answered({"observed": OBSERVED, "level": level}, scale=0.5)
    q = level[:, None]
    pull = torch.where(mean < OBSERVED, q, q - 1)
    expected = torch.where(OBSERVED.isnan(), mean, mean + 0.5 * weight * slope * pull)
    assert torch.allclose(found, expected, atol=1e-12)


def test_levels_of_elements_are_their_own_and_spread_evenly():
    n = 400
    cond = {"observed": OBSERVED[:1].expand(n, 4)}
    plan = ebb.Plan(guide=["self-guidance"])
    loop = MODEL.loop(plan, cond)
    state = loop.begin(LIKE.expand(n, 4), cond, list(range(n)))
    later = loop.step(state).state
    one, two = (SelfGuidance()._levels(loop.ask(s)) for s in (state, later))
    assert torch.equal(one, two)
    assert torch.equal(SelfGuidance()._levels(loop.ask(state.take(torch.tensor([7])))), one[7:8])
    gap = (one.sort().values - (torch.arange(n) + 0.5) / n).abs().max()
    assert gap < 1.63 / math.sqrt(n)  # Kolmogorov's 1% bound


def test_samples_end_on_what_is_known_and_the_rest_keeps_its_law():
    """With numbers independent of one another, nothing is learnt of those unknown."""
    plan = ebb.Plan(
        solve="euler",
        grid={"name": "linear", "steps": 40},
        guide=[{"name": "self-guidance", "loss": "mse", "scale": 60}],
    )
    plan_free = ebb.Plan(solve="euler", grid={"name": "linear", "steps": 40})
    out = ebb.sample(MODEL, plan, cond={"observed": OBSERVED[:1].expand(200, 4)}, n=200, seed=0).x
    free = ebb.sample(MODEL, plan_free, n=200, seed=0).x
    assert torch.allclose(out[:, 2:], free[:, 2:], atol=1e-9)
    assert float((out[:, :2] - OBSERVED[:1, :2]).square().mean()) < 0.1 * float(
        (free[:, :2] - OBSERVED[:1, :2]).square().mean()
    )


def test_without_what_is_known_it_says_so():
    with pytest.raises(EbbError, match="observed"):
        ebb.sample(MODEL, ebb.Plan(guide=["self-guidance"]), n=2)


def test_no_network_hears_of_what_is_observed():
    class Strict(Gaussian):
        def __call__(self, x: Any, t: Tensor, cond: dict[str, Any]) -> Any:
            assert not cond, "the network was told"
            return super().__call__(x, t, cond)

    model = ebb.load(Strict(process("vp-cosine"), LIKE, VAR), like=LIKE)
    plan = ebb.Plan(grid={"name": "linear", "steps": 3}, guide=["self-guidance"])
    ebb.sample(model, plan, cond={"observed": OBSERVED, "level": torch.tensor([0.2, 0.5, 0.8])}, n=3)
