"""Jumps: exact at any length for a denoiser that knows the way, told the right time in any process and behind guidance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.time import combine
from ebbtide.denoise.model import Model, process
from ebbtide.process.affine import Affine

MEAN, VAR = 0.7, 0.3


class Way(Denoiser):
    """One Gaussian that knows its own flow: x_s = a_s m + sqrt(V_s / V_t) (x_t - a_t m), V = a^2 v + c^2."""

    jumps = True

    def __init__(self, p: Affine) -> None:
        self.process: Any = p
        self.asked: list[tuple[Tensor, Tensor]] = []

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.full_like(leaf, -1) if name == "label" else None

    def spread(self, t: Tensor) -> Tensor:
        return self.process.a(t) ** 2 * VAR + self.process.c(t) ** 2

    def reach(self, x: Any, t: Tensor, s: Tensor) -> Any:
        k = (self.spread(s) / self.spread(t)).sqrt()
        return combine((k, x), ((self.process.a(s) - k * self.process.a(t)) * MEAN, torch.ones_like(x)))

    def __call__(self, x: Any, t: Tensor, cond: dict[str, Any]) -> Pred:
        s = cond["until"]
        self.asked.append((t, s))
        a, still = self.process.a(t), s == t
        k = a * VAR / self.spread(t)
        mean = combine((k, x), ((1 - k * a) * MEAN, torch.ones_like(x)))
        w = self.process.weights_of(t, torch.where(still, t / 2, s), 0.0)
        away = combine((1 / w.x0, self.reach(x, t, torch.where(still, t / 2, s))), (-w.x / w.x0, x))
        return Pred(mean=torch.where(still[:, None], mean, away))


def model(p: Affine) -> Model:
    return ebb.load(Way(p), like=torch.zeros(2, dtype=torch.float64))


def run(m: Model, solve: Any, steps: int, n: int = 64, **more: Any) -> Tensor:
    return ebb.sample(m, ebb.Plan(solve=solve, grid={"name": "linear", "steps": steps}, **more), n=n, seed=3).x


@pytest.mark.parametrize("name", ["flow", "vp-linear", "vp-cosine", "ve"])
def test_jumps_of_any_number_end_at_the_end_of_the_way(name: str) -> None:
    p: Any = process(name)
    m = model(p)
    start = ebb.api.begin(m, ebb.Plan(solve="jump"), n=64, seed=3)[1]
    exact = m.denoiser.reach(start.x, start.t, start.t * 0)  # type: ignore[attr-defined]
    for steps in (1, 2, 7):
        torch.testing.assert_close(run(m, "jump", steps), exact, rtol=1e-9, atol=1e-9)
    assert float((run(m, "euler", 7) - exact).abs().max()) > 0.01  # the mean alone does not lead there


def test_other_solvers_see_a_denoiser() -> None:
    """Who does not say where it goes is answered with E[x0 | x_t]."""
    m = model(process("flow"))  # type: ignore[arg-type]
    run(m, "heun", 3)
    assert all(torch.equal(t, s) for t, s in m.denoiser.asked)  # type: ignore[attr-defined]


def test_the_border_converts_the_time_to_reach() -> None:
    """Sampled in another process the ways are the same: equal noise levels, equal ends."""
    m = model(process("vp-linear"))  # type: ignore[arg-type]
    x = run(m, "jump", 3, process="flow")
    known: Any = m.denoiser
    for (t, s), (at, to) in zip(known.asked, [(1, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0)], strict=True):
        flow: Any = process("flow")
        for mine, its in ((t, at), (s, to)):
            level = flow.lam(torch.tensor([float(its)], dtype=torch.float64))
            torch.testing.assert_close(mine[:1], known.process.time(level))
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.2)


def test_guidance_asks_both_branches_for_the_same_time() -> None:
    m = model(process("flow"))  # type: ignore[arg-type]
    plan = ebb.Plan(solve="jump", grid={"name": "linear", "steps": 2}, guide={"name": "cfg", "scale": 2.0})
    ebb.sample(m, plan, cond={"label": torch.zeros(4, dtype=torch.int64)}, n=4)
    asked: Any = m.denoiser
    assert [s.tolist() for _, s in asked.asked] == [[0.5] * 8, [0.0] * 8]


@pytest.mark.parametrize("gamma", [0.3, 0.8, 1.0])
def test_fresh_noise_keeps_the_law(gamma: float) -> None:
    """Whatever the share of fresh noise, and in long steps, samples have the law of the data."""
    x = run(model(process("flow")), {"name": "jump", "gamma": gamma}, 3, n=40_000)  # type: ignore[arg-type]
    assert float(x.mean()) == pytest.approx(MEAN, abs=4 * (VAR / 80_000) ** 0.5)
    assert float(x.var()) == pytest.approx(VAR, rel=4 * (2 / 80_000) ** 0.5)


def test_a_model_that_does_not_jump_makes_the_step_of_ddim() -> None:
    from ebbtide.denoise.exact import Gaussian

    m = ebb.load(Gaussian(process("flow"), [0.1, 0.9], 0.4), like=torch.zeros(2, dtype=torch.float64))  # type: ignore[arg-type]
    assert torch.equal(run(m, "jump", 5), run(m, "euler", 5))
