"""RED-diff: Adam as torch has it, fixed points in closed form, no gradient through the network, its own leaves its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.denoise.exact import Gaussian
from ebbtide.process.flow import Flow
from ebbtide.process.gaussian import VPCosine

MASK = torch.tensor([0.0, 0, 1, 0, 1], dtype=torch.float64)


class Watching(Denoiser):
    """A Gaussian that notes what it is told."""

    def __init__(self, process: Any) -> None:
        self.process, self.law = process, Gaussian(process, torch.zeros(5, dtype=torch.float64), 1.0)
        self.seen: list[tuple[bool, bool, tuple[str, ...]]] = []

    def __call__(self, x: Any, t: Tensor, cond: dict[str, Any]) -> Pred:
        self.seen.append((torch.is_grad_enabled(), x.requires_grad, tuple(cond)))
        return self.law(x, t, cond)


def sampled(law: Any, y: Tensor, n: int = 1, steps: int = 60, **solve: Any) -> Tensor:
    plan = ebb.Plan(solve={"name": "red-diff", "spread": 0.0, **solve}, grid={"name": "linear", "steps": steps})
    cond = {"measured": y.expand(n, 5).clone(), "mask": MASK.expand(n, 5).clone(), "extra": torch.zeros(n)}
    out: Tensor = ebb.sample(ebb.load(law, like=torch.zeros(5, dtype=torch.float64)), plan, cond=cond, n=n).x
    return out


def test_without_a_pull_it_is_torchs_adam_on_the_misfit() -> None:
    y = torch.tensor([1.0, -2.0, 9.0, 0.5, 9.0], dtype=torch.float64)
    law = Gaussian(Flow(), torch.zeros(5, dtype=torch.float64), 1.0)
    everything = {"name": "clip", "low": -9, "high": 9}
    adam_of = {"rate": 0.05, "beta1": 0.8, "beta2": 0.95}
    out = sampled(law, y, steps=25, pull=0.0, begin="start", operator=everything, **adam_of)
    plan = ebb.Plan(grid={"name": "linear", "steps": 25})
    start = ebb.api.begin(ebb.load(law, like=torch.zeros(5, dtype=torch.float64)), plan)[1].x
    mu = start.clone().requires_grad_()
    adam = torch.optim.Adam([mu], lr=0.05, betas=(0.8, 0.95))
    for _ in range(25):
        adam.zero_grad()
        ((mu - y) ** 2).sum().mul(0.5).backward()
        adam.step()
    assert torch.allclose(out, mu.detach(), atol=1e-9)


@pytest.mark.parametrize("process", [VPCosine(), Flow()], ids=["vp", "flow"])
def test_near_one_time_seen_numbers_settle_between_measurement_and_mean(process: Any) -> None:
    """(mu - m) (1 + pull R) = y - m for what is seen, R = c^2 / (a^2 S + c^2); what is hidden comes to m."""
    mean, var, pull = torch.tensor([0.5, -0.5, 1.0, 0.0, -1.0], dtype=torch.float64), 0.4, 2.0
    y = torch.tensor([1.5, -1.5, 0.0, 1.0, 0.0], dtype=torch.float64)
    times = [0.6 + 1e-4 * (1 - k / 300) for k in range(300)] + [0.0]
    plan = ebb.Plan(solve={"name": "red-diff", "pull": pull, "rate": 0.02}, grid={"name": "explicit", "times": times})
    cond = {"measured": y.expand(512, 5).clone(), "mask": MASK.expand(512, 5).clone()}
    model = ebb.load(Gaussian(process, mean, var), like=torch.zeros(5, dtype=torch.float64))
    x = ebb.sample(model, plan, cond=cond, n=512).x.mean(0)
    t = torch.tensor(0.6, dtype=torch.float64)
    r = process.c(t) ** 2 / (process.a(t) ** 2 * var + process.c(t) ** 2)
    expected = torch.where(MASK == 1, mean, mean + (y - mean) / (1 + pull * r))
    assert torch.allclose(x, expected, atol=0.01)


def test_no_gradient_reaches_the_network_and_it_hears_only_what_is_its_own() -> None:
    law = Watching(Flow())
    sampled(law, torch.ones(5, dtype=torch.float64), steps=3)
    assert law.seen == [(False, False, ("extra",))] * 3


def test_it_begins_at_the_first_guess_and_goes_by_at_most_the_rate() -> None:
    y = torch.tensor([1.0, -2.0, 9.0, 0.5, 9.0], dtype=torch.float64)
    law = Gaussian(Flow(), torch.zeros(5, dtype=torch.float64), 1.0)
    x = sampled(law, y, steps=1, rate=0.01, pull=1.0)[0]
    assert bool(((x - y * (1 - MASK)).abs() <= 0.01 + 1e-12).all())


def test_bad_input_is_told_before_the_work() -> None:
    law = Gaussian(Flow(), torch.zeros(5, dtype=torch.float64), 1.0)
    model = ebb.load(law, like=torch.zeros(5, dtype=torch.float64))
    with pytest.raises(EbbError, match="needs a mask"):
        ebb.sample(model, ebb.Plan(solve="red-diff"), cond={"measured": torch.zeros(1, 5)})
    with pytest.raises(EbbError, match="no operator"):
        ebb.Plan(solve={"name": "red-diff", "operator": "musk"})
