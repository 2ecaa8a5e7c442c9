"""Scores of forecasts against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from ebbtide.core.errors import EbbError
from ebbtide.measure.forecasts import coverage, crps, levels, seasonal_naive


def test_crps_of_a_normal_forecast():
    """sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), Gneiting & Raftery 2007, section 4.2."""
    y = torch.tensor([0.0, 0.7, -2.0], dtype=torch.float64)
    x = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)[:, None].expand(-1, 3)
    normal = torch.distributions.Normal(0.0, 1.0)
    exact = y * (2 * normal.cdf(y) - 1) + 2 * normal.log_prob(y).exp() - 1 / math.sqrt(math.pi)
    assert torch.allclose(crps(x, y), exact, atol=1e-3)


def test_crps_hangs_on_the_number_of_samples_in_no_systematic_way():
    x = torch.randn(4000, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    few = float(crps(x, torch.zeros(4000, 1)).mean())
    assert few == pytest.approx((math.sqrt(2) - 1) / math.sqrt(math.pi), abs=0.02)
    assert torch.equal(crps(x[:, :1], torch.zeros(4000, 1)), x[:, 0].abs())


def test_shapes_that_do_not_fit_are_told():
    with pytest.raises(EbbError, match="no forecasts"):
        crps(torch.zeros(3, 5, 2), torch.zeros(3, 4))
    with pytest.raises(EbbError, match="season"):
        seasonal_naive(torch.zeros(2, 5), 3, 6)


def test_exact_forecasts_cover_what_they_say():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(3000, 99, 1, generator=g), torch.randn(3000, 1, generator=g)
    assert torch.allclose(coverage(x, y, (0.1, 0.5, 0.9)), torch.tensor([0.1, 0.5, 0.9]).double(), atol=0.03)
    assert float(coverage(0.2 * x, y, (0.9,))) < 0.65  # too sure


def test_a_season_comes_again():
    assert seasonal_naive(torch.arange(10.0), 7, 3).tolist() == [7, 8, 9, 7, 8, 9, 7]
    assert levels(2, 3).tolist() == [0.25, 0.5, 0.75] * 2
