"""Reflow, consistency trajectories, restoring and annotating: what is asked of the network, and what it is shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebbtide.core.key import Noise, keys
from ebbtide.learn.annotating import Annotating, Diffusing
from ebbtide.learn.reflow import Reflow, straightness
from ebbtide.learn.restoring import Restoring, shown
from ebbtide.learn.trajectory import Trajectories
from ebbtide.process.gaussian import VPLinear
from ebbtide.process.residual import ResShift

N = 512


def rows(n: int = N) -> Noise:
    return Noise(keys(range(n)), torch.zeros(n, dtype=torch.int64))


class Said(nn.Module):
    """A network that answers by a function, and keeps what it was shown."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.seen = answer, list[tuple[Tensor, ...]]()

    def forward(self, x: Tensor, clock: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
        self.seen.append((x, clock, class_labels))  # type: ignore[arg-type]
        return SimpleNamespace(sample=self.answer(x, clock / 1000))


def lines(n: int = N) -> Tensor:
    """Ways that are straight lines from z to tanh(z), in five points."""
    z = torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 1, 5).reshape(1, 5, 1, 1, 1)
    return (1 - t) * torch.tanh(z)[:, None] + t * z[:, None]


def test_lines_are_straight_and_bends_are_not() -> None:
    ways = lines()
    assert straightness(ways) < 1e-8
    bent = ways.clone()
    bent[:, 2] += 0.1
    # the slope is off by +-0.1 / (1/4) in two of the four steps, in each of four numbers
    assert straightness(bent) == pytest.approx(4 * 0.4**2 / 2, rel=1e-4)


def test_reflow_of_one_pair_is_its_line() -> None:
    """The network that says z - x0 of its own pair has no loss, at every time; one that says another's has."""
    way = lines(1).expand(N, -1, -1, -1, -1)
    right = Said(lambda x, t: way[:, -1] - way[:, 0])
    assert float(Reflow(drop=0.0).loss(right, way, None, rows())) < 1e-10
    wrong = Said(lambda x, t: (way[:, -1] - way[:, 0]).flip(-1))
    assert float(Reflow(drop=0.0).loss(wrong, way, None, rows())) > 1e-3


def test_distillation_is_the_share_at_the_end() -> None:
    net = Said(lambda x, t: x)
    Reflow(drop=0.0, at_end=0.25).loss(net, lines(), None, rows())
    x, clock, _ = net.seen[0]
    ended = clock == 1000
    assert float(ended.double().mean()) == pytest.approx(0.25, abs=0.08)
    torch.testing.assert_close(x[ended], lines()[ended][:, -1])


def test_trajectories_ask_for_the_mean_velocity() -> None:
    """On straight lines f = z - x0 for every pair of times, and rows that denoise show no distance."""
    ways = lines()
    whole = ways[:, -1] - ways[:, 0]
    assert float(Trajectories(denoise=0.0).loss(Said(lambda x, t: whole), ways, None, rows())) < 1e-9
    net = Said(lambda x, t: whole)
    assert float(Trajectories(denoise=0.5).loss(net, ways, None, rows())) > 0.01
    x, clock, _ = net.seen[0]
    by = x[:, 1, 0, 0]
    assert float((by == 0).double().mean()) == pytest.approx(0.5, abs=0.08)
    assert bool((by <= clock / 1000 + 1e-6).all())
    assert set((by[by > 0] * 4).round().tolist()) == {1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize("process", [VPLinear(), ResShift()])
def test_restoring_shows_a_state_of_the_size_of_pictures(process: Any) -> None:
    x0 = 0.6 * torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    for at in (0.1, 0.6, 1.0):
        t = torch.full((4000,), at, dtype=torch.float64)
        x = process.corrupt(x0, t, rows(4000), {"y": x0})
        seen = shown(process, x, t, x0, 0.6)
        assert float(seen[:, 0].std()) < 1.05
        assert torch.equal(seen[:, 1], x0[:, 0])


def test_restoring_wants_the_picture() -> None:
    pairs = torch.randn(N, 2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    assert float(Restoring().loss(Said(lambda x, t: pairs[:, 0]), pairs, None, rows())) == 0
    assert float(Restoring().loss(Said(lambda x, t: pairs[:, 1]), pairs, None, rows())) > 1


def test_annotating_switches_between_annotation_and_picture() -> None:
    pairs = torch.randn(N, 2, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    net = Said(lambda x, t: pairs[:, 0])
    both, alone = (float(Annotating(reconstruct=w).loss(net, pairs, None, rows())) for w in (1.0, 0.0))
    assert alone == 0
    assert both == pytest.approx(float((pairs[:, 0] - pairs[:, 1]).square().mean()))
    assert [set(seen[2].tolist()) for seen in net.seen] == [{0}, {1}, {0}]
    assert all(torch.equal(x[:, 1:], pairs[:, 1]) and bool((clock == 1000).all()) for x, clock, _ in net.seen)


def test_regression_is_shown_no_noise() -> None:
    pairs = torch.randn(N, 2, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    net = Said(lambda x, t: x[:, :1])
    for some in (True, False):
        Annotating(shown=some).loss(net, pairs, None, rows())
    assert float(net.seen[0][0][:, 0].std()) == pytest.approx(1, abs=0.05)
    assert not net.seen[-1][0][:, 0].any()


def test_diffusing_predicts_noise() -> None:
    """The network that subtracts the known annotation has no loss."""
    pairs, p = torch.zeros(N, 2, 1, 4, 4), VPLinear()

    def noise(x: Tensor, t: Tensor) -> Tensor:
        return x[:, :1] / p.c(t.double()).float().reshape(-1, 1, 1, 1)

    assert float(Diffusing(process=p).loss(Said(noise), pairs, None, rows())) < 1e-6
