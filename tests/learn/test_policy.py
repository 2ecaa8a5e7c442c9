"""A sampler as a policy: densities of steps against closed forms, ratios of 1, groups, windows, and what is trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.learn import policy
from ebbtide.learn.grpo import Grpo
from ebbtide.measure.rewards import reward
from ebbtide.process.bridge import Bridge
from ebbtide.process.flow import Flow
from ebbtide.process.gaussian import VPLinear

MIX = GaussianMixture(VPLinear(), [0.3, 0.7], [[1.0, 0.0], [-1.0, 0.5]], 0.2)
MODEL = ebb.load(MIX, like=torch.zeros(2, dtype=torch.float64))


def loops(eta: float = 0.7, steps: int = 8, n: int = 4):
    plan = ebb.Plan(grid={"name": "linear", "steps": steps})
    still, state = begin(MODEL, plan, n=n)
    return still, MODEL.loop(plan.replace(solve={"name": "ancestral", "eta": eta})), state


@pytest.mark.parametrize("process", [Flow(), VPLinear(), Bridge()])
@pytest.mark.parametrize("apart", [False, True])
def test_the_law_of_a_step_is_that_of_its_draws(process, apart: bool):
    """Mean and spread of many draws of `process.move` from one point."""
    n, eta = 50_000, 0.6
    x, x0, y = (
        torch.tensor(v, dtype=torch.float64).expand(n, 2).clone() for v in ([0.4, -1.0], [0.9, 0.2], [1.0, 0.5])
    )
    t = torch.full((n,), 0.7, dtype=torch.float64)
    s = torch.full((n,), 0.5, dtype=torch.float64)
    if apart:
        t[0], s[0] = 0.71, 0.52
    noise = Noise(keys(range(n)), torch.zeros(n, dtype=torch.int64))
    moved = process.move(x, Pred(mean=x0), t, s, eta, noise, {"y": y})
    law = policy.law(process, x, x0, t, s, eta, {"y": y})
    assert torch.allclose(moved[1:].mean(0), law.mean[1], atol=5 * float(law.std[1]) / n**0.5)
    assert moved[1:].std(0).tolist() == pytest.approx([float(law.std[1])] * 2, rel=0.02)


def test_log_probabilities_are_those_of_a_normal():
    x = torch.randn(5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    law = policy.Law(0.3 * x.flip(0), torch.linspace(0.2, 1.0, 5, dtype=torch.float64))
    wanted = Normal(law.mean, law.std[:, None, None]).log_prob(x).flatten(1).mean(1)
    assert torch.allclose(policy.log_prob(x, law), wanted, atol=1e-12)


def test_a_step_that_lands_has_no_density():
    t = torch.tensor([0.5], dtype=torch.float64)
    x = torch.zeros(1, 2, dtype=torch.float64)
    for s, eta in ((0 * t, 1.0), (t / 2, 0.0)):
        with pytest.raises(EbbError, match="eta > 0"):
            policy.law(Flow(), x, x, t, s, eta, {})


def test_outside_the_window_steps_draw_nothing():
    still, drawn, state = loops()
    end, actions, calls = policy.walk(still, drawn, 0.7, state, ())
    assert torch.equal(end.x, ebb.sample(MODEL, ebb.Plan(grid={"name": "linear", "steps": 8}), n=4).x)
    assert (actions, calls) == ([], 32)


def test_samples_of_a_group_share_their_way_up_to_the_window():
    still, drawn, state = loops()
    group = state.take(torch.arange(4).repeat_interleave(3))
    before, none, _ = policy.walk(still, drawn, 0.7, group, range(4, 6), stop=4)
    assert not none
    assert torch.equal(before.x[::3], before.x[1::3])
    end, actions, _ = policy.walk(still, drawn, 0.7, group, range(4, 6))
    assert len(actions) == 2
    assert torch.equal(actions[0].state.x, before.x)
    assert len(end.x.unique(dim=0)) == 12


def test_the_ratio_is_1_until_something_is_learnt():
    still, drawn, state = loops()
    _, actions, _ = policy.walk(still, drawn, 0.7, state, range(2, 5))
    for a in actions:
        assert torch.equal(policy.said(drawn, a.state, a.s, a.x, 0.7), a.log_p)


def test_advantages_are_of_groups():
    r = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0, 0.0, torch.nan, 4.0])
    a = policy.advantages(r, 3).reshape(3, 3)
    assert a[0].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert a[1].tolist() == [0, 0, 0]
    assert a[2].tolist() == [-1, 0, 1]
    assert policy.advantages(torch.tensor([0.0] * 99 + [1.0]), 100).max() == 5


def test_the_surrogate_pulls_by_the_advantage_and_lets_go_beyond_the_clip():
    log_p = torch.tensor([0.0, 0.0, 0.3, 0.3, -0.3, -0.3], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([2.0, -1.0, 2.0, -1.0, 2.0, -1.0], dtype=torch.float64)
    loss = policy.surrogate(log_p, torch.zeros(6, dtype=torch.float64), a, 0.1)
    (grad,) = torch.autograd.grad(loss, log_p)
    rho = log_p.detach().exp()
    assert torch.allclose(-6 * grad, torch.stack([a[0], a[1], 0 * a[2], a[3] * rho[3], a[4] * rho[4], 0 * a[5]]))


def test_windows_slide_to_the_end_and_begin_again():
    first = [policy.sliding(10, 4, 2, 3, k)[0] for k in range(15)]
    assert first == [0] * 3 + [2] * 3 + [4] * 3 + [6] * 3 + [0] * 3
    assert list(policy.sliding(5, 4, 3, 1, 1)) == [1, 2, 3, 4]
    assert list(policy.sliding(4, 4, 1, 1, 7)) == [0, 1, 2, 3]


# ---------------------------------------------------------------- training


class Shift(Denoiser, nn.Module):
    """A Gaussian whose mean is learnt."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.process, self.mean = VPLinear(), nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def __call__(self, x: Tensor, t: Tensor, cond: dict) -> Pred:
        a, c = self.process.a(t)[:, None], self.process.c(t)[:, None]
        return Pred(mean=self.mean + 0.5 * a / (0.5 * a**2 + c**2) * (x - a * self.mean))


@reward("test-policy-right")
def right(x: Tensor, bad: bool = False) -> Tensor:
    if bad:
        return torch.where(x[:, 0] > x[:, 0].median(), torch.nan, 0.0)
    return (x[:, 0] > 0.5).double()


def test_a_reward_without_gradient_is_learnt():
    made = Shift()
    model = ebb.load(made, like=torch.zeros(2, dtype=torch.float64))
    told = list(Grpo(steps=8, window=3, lr=0.05).train(model, made, "test-policy-right", 25))
    assert float(made.mean[0].detach()) > 0.5
    assert sum(u.reward for u in told[-5:]) > sum(u.reward for u in told[:5]) + 1
    assert told[-1].graded == 25 * 2 * 3 * 96
    assert told[-1].sampled == 25 * 8 * 96


def test_rewards_that_say_nothing_teach_nothing():
    made = Shift()
    model = ebb.load(made, like=torch.zeros(2, dtype=torch.float64))
    list(Grpo(steps=6, window=2).train(model, made, {"name": "test-policy-right", "bad": True}, 3))
    assert made.mean.tolist() == [0, 0]


def test_flash_takes_fewer_steps_after_the_window():
    made = Shift()
    model = ebb.load(made, like=torch.zeros(2, dtype=torch.float64))
    (update,) = Grpo(steps=16, window=4, flash=0.4, group=2, prompts=2).train(model, made, "mean", 1)
    assert update.sampled == 4 * (4 + 5)


@pytest.mark.parametrize("wrong", [{"group": 1}, {"window": 0}, {"window": 20}])
def test_what_cannot_be_trained_is_refused(wrong: dict):
    with pytest.raises(EbbError, match="groups of at least 2"):
        Grpo(**wrong)
