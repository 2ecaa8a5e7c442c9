"""Noised conditions: the law of the noise, what the network is shown, and the off switch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ebbtide.core.key import Noise, keys
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.learn.leakage import NoisedCondition, Shown
from ebbtide.measure.fit import kolmogorov


def rows(n: int) -> Noise:
    return Noise(keys(range(n)), torch.zeros(n, dtype=torch.int64))


def clips(n: int) -> Tensor:
    return torch.randn(n, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Mixer(nn.Module):
    """A network whose answer depends on everything that it is told, and which keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, clock: Tensor, labels: Tensor) -> Tensor:
        self.seen.append(x)
        told = (clock / 1000 + labels).reshape(-1, 1, 1, 1, 1)
        return torch.tanh(x + x.roll(1, 2) * told + x.mean((1, 2, 3, 4), keepdim=True)).to(x)


@pytest.mark.parametrize("t", [0.0, 0.8, 1.0])
def test_the_noise_of_the_picture_has_its_law(t: float) -> None:
    objective = NoisedCondition(beta_max=1.5)
    beta = objective.beta(torch.full((4000,), t, dtype=torch.float64), rows(4000))
    assert float(beta.min()) > 0
    assert float(beta.max()) < 1.5
    location = {0.0: -1.0, 0.8: 2 * 0.32768 - 1, 1.0: 1.0}[t]
    assert kolmogorov(torch.special.ndtr(torch.logit(beta / 1.5) - location)) > 0.01
    assert kolmogorov(torch.special.ndtr(torch.logit(beta / 1.5) - location - 0.2)) < 0.01


def test_late_pictures_are_shown_through_more_noise() -> None:
    x0, net, objective, n = clips(400), Mixer(), NoisedCondition(beta_max=2.0), rows(400)
    objective.loss(net, x0, None, n)
    beside = net.seen[0][:, :, 1:]
    assert torch.equal(beside, beside[:, :1].expand_as(beside)), "one picture for all frames"
    said = (beside[:, 0] - x0[:, 0]).square().mean((1, 2, 3)).sqrt().double()
    beta, t = objective.beta(objective.times(n), n), objective.times(n)
    assert float(((said / beta) ** 2).mean()) == pytest.approx(1, abs=5 * (2 / (400 * 16)) ** 0.5)
    assert float(said[t > 0.9].mean()) > 1.3 * float(said[t < 0.5].mean())


def test_without_noise_it_is_flow_matching_of_the_picture_as_it_is() -> None:
    class Plain(FlowMatching):
        def said(self, network: nn.Module, x: Tensor, clock: Tensor, labels: Tensor) -> Tensor:
            out: Tensor = network(x, clock, labels)
            return out

    x0, net = clips(32), Mixer()
    off = NoisedCondition(beta_max=0.0).loss(net, x0, None, rows(32))
    plain = Plain().loss(Shown(net, x0[:, 0]), x0, None, rows(32))
    assert torch.equal(off, plain)
    on = NoisedCondition(beta_max=1e-3).loss(net, x0, None, rows(32))
    assert not torch.equal(on, off)
    assert torch.allclose(on, off, rtol=1e-2), "x_t, times and labels are drawn alike"
