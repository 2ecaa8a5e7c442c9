"""What is minimised: closed forms of the best network, and laws of what is drawn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.registry import make
from ebbtide.learn.classification import Classification
from ebbtide.learn.flow_matching import FlowMatching


def noise(n: int, step: int = 0) -> Noise:
    return Noise(keys(range(n)), torch.full((n,), step))


class Knows(nn.Module):
    """The perfect network for data that is one picture: it reads eps off x and says what is asked, by hand."""

    def __init__(self, star: Tensor, process: Any, kind: str) -> None:
        super().__init__()
        self.star, self.process, self.kind = star, process, kind

    def forward(self, x: Tensor, clock: Tensor, class_labels: Tensor) -> Any:
        t = clock.double()[:, None, None, None] / 1000
        a, c = self.process.a(t), self.process.c(t)
        eps = (x - a * self.star) / c
        h = 1e-5
        da = (self.process.a(t + h) - self.process.a(t - h)) / (2 * h)
        dc = (self.process.c(t + h) - self.process.c(t - h)) / (2 * h)
        said = {
            "x0": self.star.expand_as(x),
            "eps": eps,
            "v": a * eps - c * self.star,
            "flow": da * self.star + dc * eps,
            "score": -eps / c,
        }
        return SimpleNamespace(sample=said[self.kind])


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow", "score"])
@pytest.mark.parametrize("process", ["flow", "vp-cosine"])
def test_the_perfect_network_has_no_loss(process: str, kind: str) -> None:
    made = make("process", {"name": process})
    star = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    objective = FlowMatching(process=made, kind=kind, peaked=1.0)
    loss = objective.loss(Knows(star, made, kind), star.expand(64, 1, 4, 4), None, noise(64))
    other = objective.loss(Knows(-star, made, kind), star.expand(64, 1, 4, 4), None, noise(64))
    assert loss < 1e-6
    assert other > 1e-2


def test_times_lie_on_a_comb() -> None:
    t = FlowMatching(peaked=0.0).times(noise(50)).sort().values
    gaps = t.diff()
    assert torch.allclose(gaps, torch.full_like(gaps, 1 / 50))
    assert not torch.equal(t, FlowMatching(peaked=0.0).times(noise(50, 1)).sort().values)


def test_times_have_their_law() -> None:
    objective = FlowMatching(peaked=0.75, centre=0.4, spread=0.8)
    t = torch.cat([objective.times(noise(500, k)) for k in range(20)])
    grid = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    peak = torch.special.ndtr((torch.logit(grid) - 0.4) / 0.8)
    law = 0.75 * peak + 0.25 * grid
    seen = (t[None] < grid[:, None]).double().mean(1)
    assert (seen - law).abs().max() < 0.015
    assert (seen - peak).abs().max() > 0.03


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_labels_are_dropped_as_often_as_said(drop: float) -> None:
    seen: list[Tensor] = []

    class Hears(nn.Module):
        def forward(self, x: Tensor, clock: Tensor, class_labels: Tensor) -> Any:
            seen.append(class_labels)
            return SimpleNamespace(sample=x)

    labels = torch.arange(2000) % 3
    FlowMatching(null=3, drop=drop).loss(Hears(), torch.zeros(2000, 1, 2, 2), labels, noise(2000))
    gone = seen[0] == 3
    assert torch.equal(seen[0][~gone], labels[~gone])
    assert float(gone.double().mean()) == pytest.approx(drop, abs=0.04)


def test_noise_is_that_of_the_step_and_of_the_row() -> None:
    x = torch.zeros(4, 1, 8, 8)
    seen: list[Tensor] = []

    class Sees(nn.Module):
        def forward(self, x: Tensor, clock: Tensor, class_labels: Tensor) -> Any:
            seen.append(x / clock[:, None, None, None])
            return SimpleNamespace(sample=x)

    for step in (0, 0, 1):
        FlowMatching().loss(Sees(), x, None, noise(4, step))
    assert torch.equal(seen[0], seen[1])
    draws = torch.cat([seen[0], seen[2]]).flatten(1)
    assert (torch.corrcoef(draws) - torch.eye(8)).abs().max() < 0.5  # 64 pixels: standard deviation 1/8


def test_shift_moves_whole_pictures() -> None:
    x = torch.arange(64.0).reshape(1, 1, 8, 8).expand(500, 1, 8, 8)
    moved = Classification(shift=2).shifted(x, noise(500))
    centre = moved[:, 0, 3, 3] - 27  # what stands at (3, 3) came from (3 - dy, 3 - dx)
    assert {(-int(v // 8) if v % 8 < 4 else -int(v // 8) - 1) for v in centre} == {-2, -1, 0, 1, 2}
    inner = moved[:, :, 2:6, 2:6]
    assert torch.equal(inner - inner[:, :, :1, :1], (x[:, :, 2:6, 2:6] - x[:, :, 2:3, 2:3]))
    flat = torch.full((3, 2, 8, 8), 0.5)
    assert torch.equal(Classification(shift=3).shifted(flat, noise(3)), flat)
    assert len(centre.unique()) == 25


def test_classification_without_shift_is_cross_entropy() -> None:
    x, y = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    net = nn.Flatten()
    by_hand = -(x.flatten(1).exp() / x.flatten(1).exp().sum(1, keepdim=True)).log()[torch.arange(6), y].mean()
    assert Classification(shift=0).loss(net, x, y, noise(6)) == pytest.approx(float(by_hand), rel=1e-6)
    with pytest.raises(EbbError, match="labels"):
        Classification().loss(net, x, None, noise(6))
