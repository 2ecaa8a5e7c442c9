"""Manifolds: sets that are disjoint, nested, repeated or laid out by hand; expectations under one law; intervals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.measure.manifolds import radii
from ebbtide.measure.metrics import bootstrap, bootstrap_each, manifold, spread, vendi


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_radii_skip_the_row_itself_and_count_repeated_rows():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0], [7.0]]).double()
    assert radii(line, 1).tolist() == [1, 1, 2, 0, 0]
    assert radii(line, 2).tolist() == [3, 2, 3, 4, 4]
    wide = normal(1200, 3, 0)  # more than two blocks
    expected = (wide[:, None] - wide).norm(dim=2).sort(1).values[:, 4]
    assert torch.allclose(radii(wide, 4), expected, rtol=1e-12)


def test_by_hand():
    """Data 0, 1, 3 have balls of radius 1, 1, 2 (k = 1); samples 0.5, 4.5, 20 balls of 4, 4, 15.5."""
    data, x = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [4.5], [20.0]])
    found = manifold(x, data, k=1)
    assert found.precision == pytest.approx(2 / 3)  # 20 is in no ball
    assert found.density == pytest.approx((2 + 1 + 0) / 3)
    assert found.recall == 1
    assert found.coverage == 1
    turned = manifold(data, x, k=1)  # the roles change: 0, 1, 3 in balls round 0.5 and 4.5; 20 within none
    assert turned.precision == 1
    assert turned.recall == pytest.approx(2 / 3)
    assert turned.density == pytest.approx((1 + 2 + 2) / 3)
    assert turned.coverage == pytest.approx(2 / 3)


def test_recall_goes_by_the_balls_of_samples_and_coverage_by_those_of_data():
    """Data 0, 0.1, 5 have balls of 0.1, 0.1, 4.9 that hold no sample; samples -1.9, -4, -9 balls of 2.1, 2.1, 5."""
    found = manifold(torch.tensor([[-1.9], [-4.0], [-9.0]]), torch.tensor([[0.0], [0.1], [5.0]]), k=1)
    assert found == (0, pytest.approx(2 / 3), 0, 0)


def test_sets_apart_share_nothing_and_a_set_is_its_own_manifold():
    x = normal(600, 4, 1)
    assert manifold(x, x + 100) == (0, 0, 0, 0)
    found = manifold(x, x, k=3)
    assert found == (1, 1, pytest.approx(4 / 3), 1)  # a ball holds its own centre and k others


def test_samples_of_one_mode_have_precision_and_lack_recall():
    """Data of two modes far apart, samples of one of them: half of the data is out of reach."""
    near, far = normal(400, 3, 2), 50 + normal(400, 3, 3)
    dropped = manifold(normal(400, 3, 4), torch.cat([near, far]))
    assert dropped.precision > 0.9
    assert 0.45 < dropped.recall <= 0.5
    assert 0.4 < dropped.coverage <= 0.5
    added = manifold(torch.cat([near, far]), normal(400, 3, 4))
    assert 0.45 < added.precision <= 0.5
    assert added.recall > 0.9


def test_an_outlier_lifts_precision_and_hardly_density():
    """One far point of data makes a ball that swallows samples that are nowhere near the rest (Naeem et al., figure 2)."""
    data, x = normal(300, 2, 5), 6 + normal(300, 2, 6)
    before = manifold(x, data)
    after = manifold(x, torch.cat([data, torch.tensor([[9.0, 9.0]]).double()]))
    assert before.precision < 0.1
    assert after.precision > 0.9
    assert after.density < 0.3


def test_under_one_law_density_is_one_and_coverage_as_derived():
    """E density = 1, E coverage = 1 - C(N - 1 + N - k, .) terms: prod_(i < k) (N - 1 - i) / (2 N - 1 - i) is missed.

    The N - 1 other data and N samples are exchangeable: a ball of k data holds no sample where the k nearest of all are
    data (Naeem et al. 2020, lemma 2).
    """
    n, k = 60, 3
    missed = math.prod((n - 1 - i) / (2 * n - 1 - i) for i in range(k))
    found = [manifold(normal(n, 2, j), normal(n, 2, 5000 + j), k) for j in range(300)]
    for name, expected in (("coverage", 1 - missed), ("density", n / n)):
        values = torch.tensor([getattr(f, name) for f in found]).double()
        assert abs(float(values.mean()) - expected) < 3.5 * float(values.std()) / 300**0.5


def test_too_few_rows_for_neighbours():
    with pytest.raises(EbbError, match="more than 5 rows"):
        manifold(normal(5, 2, 0), normal(50, 2, 1))


# -------------------------------------------------------------------- variety


def test_spread_of_gaussians_and_by_hand():
    """E |X - X'| = 2 sigma Gamma(3/2) / Gamma(1) = sigma pi^1/2 in the plane."""
    assert spread(torch.tensor([[0.0], [1.0], [5.0]])) == pytest.approx((1 + 4 + 5) / 3)
    assert spread(2 * normal(3000, 2, 7)) == pytest.approx(2 * math.sqrt(math.pi), rel=0.03)
    with pytest.raises(EbbError, match="at least two"):
        spread(torch.zeros(1, 2))


def test_vendi_counts_unlike_samples():
    axes = torch.eye(7).double()
    assert vendi(axes) == pytest.approx(7)
    assert vendi(axes[:3].repeat(40, 1)) == pytest.approx(3)  # the Gram matrix is taken on the smaller side
    assert vendi(torch.ones(9, 4)) == pytest.approx(1)
    p = torch.tensor([0.5, 0.25, 0.25]).double()
    uneven = axes[[0, 0, 1, 2]]
    assert vendi(uneven) == pytest.approx(float(torch.special.entr(p).sum().exp()))
    assert vendi(5 * uneven) == pytest.approx(vendi(uneven))
    c = 0.6  # two rows at cosine c: eigenvalues (1 +- c) / 2
    pair = torch.tensor([[1.0, 0.0], [c, math.sqrt(1 - c * c)]]).double()
    assert vendi(pair) == pytest.approx(0.8**-0.8 * 0.2**-0.2)
    with pytest.raises(EbbError, match="no direction"):
        vendi(torch.zeros(2, 2))


# -------------------------------------------------------------------- intervals


def test_halves_give_an_interval_as_wide_as_new_samples_vary():
    """Resampling with repetition does not: a repeated row is its own neighbour, so its figures are not of this law."""
    n = 120
    draws = torch.tensor([manifold(normal(n, 2, j), normal(n, 2, 900 + j), 3) for j in range(80)]).double()
    found = bootstrap_each(lambda x, y: manifold(x, y, 3), normal(n, 2, 0), normal(n, 2, 900), repeat=False, draws=80)
    assert list(found) == ["precision", "recall", "density", "coverage"]
    for column, (name, interval) in zip(draws.T, found.items(), strict=True):
        wide = (interval.high - interval.low) / 2 / 1.959964
        assert 0.6 < wide / float(column.std()) < 1.9, name
    alone = bootstrap(lambda x, y: manifold(x, y, 3).recall, normal(n, 2, 0), normal(n, 2, 900), repeat=False, draws=80)
    assert alone == found["recall"]


def test_halves_of_a_mean_are_the_textbook_interval():
    x = normal(300, 1, 8)
    found = bootstrap(torch.mean, x, draws=1500, repeat=False)
    assert found.high - found.value == pytest.approx(1.959964 * float(x.std()) / 300**0.5, rel=0.08)


def test_intervals_refuse_what_cannot_be_paired_or_halved():
    with pytest.raises(EbbError, match="row by row"):
        bootstrap(lambda x, y: 0.0, torch.zeros(3), torch.zeros(4), paired=True)
    with pytest.raises(EbbError, match="half of a single row"):
        bootstrap(torch.mean, torch.zeros(1), repeat=False)
