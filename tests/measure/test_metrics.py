"""Metrics: against closed forms, oracles on the line, laws under permutation, and coverage."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.measure import metrics


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance(d: int, seed: int) -> Tensor:
    a = normal(d, d, seed)
    return a @ a.T


# -------------------------------------------------------------------- Frechet


def test_frechet_of_commuting_gaussians_is_the_distance_of_their_axes():
    turn = torch.linalg.qr(normal(5, 5, 0)).Q
    p, q, shift = torch.tensor([4.0, 1, 9, 0, 2]).double(), torch.tensor([1.0, 1, 0, 4, 2]).double(), normal(1, 5, 1)[0]
    found = metrics.frechet(shift, turn * p @ turn.T, torch.zeros(5), turn * q @ turn.T)
    assert found == pytest.approx(float(shift @ shift) + 1 + 0 + 9 + 4 + 0, rel=1e-7)


def test_frechet_of_the_plane():
    """tr (S T)^1/2 = sqrt(tr S T + 2 sqrt(det S T)) for 2 x 2 matrices, by Cayley and Hamilton."""
    s, t = covariance(2, 2), covariance(2, 3)
    cross = math.sqrt(float((s @ t).trace()) + 2 * math.sqrt(float((s @ t).det())))
    expected = float(s.trace() + t.trace()) - 2 * cross
    assert metrics.frechet(torch.zeros(2), s, torch.zeros(2), t) == pytest.approx(expected, rel=1e-9)


def test_frechet_is_symmetric_zero_on_itself_and_reads_samples():
    x, y = normal(300, 4, 4), normal(200, 4, 5) @ covariance(4, 6)
    assert metrics.frechet_distance(x, y) == pytest.approx(metrics.frechet_distance(y, x), rel=1e-9)
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(x, x + 3) == pytest.approx(36, rel=1e-9)
    with pytest.raises(EbbError, match="at least two"):
        metrics.frechet_distance(x[:1], y)


# -------------------------------------------------------------------- energy


@pytest.mark.parametrize(("n", "m"), [(7, 7), (40, 9), (700, 600)])
def test_energy_distance_on_the_line(n: int, m: int):
    """scipy integrates the difference of the distribution functions; rows go through more than one block."""
    x, y = normal(n, 1, 0), 0.3 + 2 * normal(m, 1, 1)
    assert metrics.energy_distance(x, y) == pytest.approx(stats.energy_distance(x[:, 0], y[:, 0]) ** 2, rel=1e-9)


def test_energy_distance_of_points_is_twice_their_distance():
    x, y = torch.zeros(3, 2, 2), torch.ones(5, 2, 2)
    assert metrics.energy_distance(x, y) == pytest.approx(2 * 2.0)
    assert metrics.energy_distance(x, x) == 0


def test_energy_test_is_level_under_the_null_and_sees_a_shift():
    under = torch.tensor([metrics.energy_test(normal(30, 2, k), normal(40, 2, 500 + k), 99, k).p for k in range(120)])
    assert stats.kstest(under.numpy(), "uniform").pvalue > 1e-3
    assert float((under <= 0.1).double().mean()) < 0.2
    shifted = metrics.energy_test(normal(100, 2, 1), normal(100, 2, 2) + 0.8, 99)
    assert shifted.p == pytest.approx(0.01)
    assert shifted.distance > 2 * shifted.null
    assert shifted.distance == pytest.approx(metrics.energy_distance(normal(100, 2, 1), normal(100, 2, 2) + 0.8))


def test_ties_count_as_extreme():
    assert metrics.energy_test(torch.zeros(10, 2), torch.zeros(10, 2), 49).p == 1


# -------------------------------------------------------------------- slices


def test_sliced_w2_of_a_translation_and_of_a_scaling():
    x = normal(500, 3, 0)
    shift = torch.tensor([1.0, -2.0, 2.0]).double()
    assert metrics.sliced_w2(x, x + shift, slices=4000) == pytest.approx(3 / math.sqrt(3), rel=0.03)
    line = x[:, :1]
    assert metrics.sliced_w2(line, line + 0.7, slices=1) == pytest.approx(0.7, rel=1e-12)
    assert metrics.sliced_w2(line, 3 * line) == pytest.approx(2 * float(line.square().mean().sqrt()), rel=1e-12)


def test_sliced_w2_of_unequal_sizes_is_that_of_repeated_rows():
    x, y = normal(12, 2, 0), normal(18, 2, 1) + 1
    repeated = metrics.sliced_w2(x.repeat(3, 1), y.repeat(2, 1), seed=5)
    assert metrics.sliced_w2(x, y, seed=5) == pytest.approx(repeated, rel=1e-12)


# -------------------------------------------------------------------- neighbours, labels


def test_nearest_distance_finds_a_planted_neighbour_in_every_block():
    data = 100 + normal(9000, 4, 0)
    x = normal(600, 4, 1)
    places = torch.tensor([0, 8191, 8192, 8999])
    data[places] = x[[0, 511, 512, 599]] + torch.tensor([0.0, 3, 4, 0])
    found = metrics.nearest_distance(x.reshape(600, 2, 2), data.reshape(9000, 2, 2))
    assert torch.allclose(found, (x[:, None] - data[places]).norm(dim=2).amin(1))


def test_agreement_counts_and_refuses_a_missing_label():
    read = metrics.reads(lambda x: -(x - torch.arange(3.0)).abs(), torch.tensor([[0.1], [1.2], [1.9], [0.0]]), batch=3)
    assert read.tolist() == [0, 1, 2, 0]
    assert metrics.agreement(read, torch.tensor([0, 1, 1, 0])) == 0.75
    with pytest.raises(EbbError, match="one label"):
        metrics.agreement(read, torch.tensor([0, 1]))


# -------------------------------------------------------------------- certainty


def test_the_interval_of_a_mean_is_the_textbook_one():
    x = normal(400, 1, 0)
    value, low, high = metrics.bootstrap(torch.mean, x, draws=2000)
    assert value == pytest.approx(float(x.mean()))
    assert (high - low) / 2 == pytest.approx(1.959964 * float(x.std()) / 20, rel=0.06)


def test_intervals_of_a_distance_cover_the_truth():
    """The Frechet distance of N(0, 1) and N(2, 1) in the plane's first axis is 4."""
    hits = 0
    for k in range(60):
        x, y = normal(150, 2, k), normal(150, 2, 900 + k) + torch.tensor([2.0, 0.0])
        found = metrics.bootstrap(metrics.frechet_distance, x, y, draws=60, seed=k)
        hits += found.low <= 4 <= found.high
    assert 51 <= hits <= 60


def test_pairs_are_resampled_together():
    read = torch.arange(50) % 10
    assert metrics.bootstrap(metrics.agreement, read, read, paired=True) == (1, 1, 1)
    assert metrics.bootstrap(metrics.agreement, read, read).low < 1


def test_draws_are_keyed_and_leave_the_global_generator_alone():
    x, y = normal(50, 2, 0), normal(50, 2, 1)
    state = torch.random.get_rng_state()
    one = [
        metrics.energy_test(x, y, 49, seed=3),
        metrics.sliced_w2(x, y, seed=3),
        metrics.energy_test(x, y, 49, seed=4),
    ]
    assert one[0] == metrics.energy_test(x, y, 49, seed=3)
    assert one[1] == metrics.sliced_w2(x, y, seed=3)
    assert one[0].null != one[2].null
    assert torch.equal(state, torch.random.get_rng_state())


def test_bad_samples_are_refused():
    with pytest.raises(EbbError, match="one size"):
        metrics.energy_distance(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(EbbError, match="not finite"):
        metrics.sliced_w2(torch.zeros(3, 2), torch.full((3, 2), math.nan))
