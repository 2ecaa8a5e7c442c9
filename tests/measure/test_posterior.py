"""The posterior report on exact draws: a Gaussian seen through a linear operator, whose posterior is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.measure.posterior import Posterior, coverage, posterior, sheet

NOISE = 0.3
SPEC = {"name": "downsample", "factor": 2, "noise": NOISE}


def draws(trials: int, n: int, wide: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Truths N(0, 1) (T, 1, 2, 2), measurements of their mean, and n draws of each posterior, `wide` times as wide."""
    made = torch.Generator().manual_seed(4)
    truth = torch.randn(trials, 1, 2, 2, dtype=torch.float64, generator=made)
    y = truth.mean((2, 3), keepdim=True) + NOISE * torch.randn(trials, 1, 1, 1, dtype=torch.float64, generator=made)
    # x | y: prior draws corrected by the gain (Matheron)
    prior = torch.randn(trials, n, 1, 2, 2, dtype=torch.float64, generator=made)
    seen = prior.mean((3, 4), keepdim=True) + NOISE * torch.randn(
        trials, n, 1, 1, 1, dtype=torch.float64, generator=made
    )
    gain = 0.25 / (0.25 + NOISE**2)
    mean = (gain * y).expand(trials, 1, 2, 2)
    return truth, y, mean[:, None] + wide * (prior - gain * seen)


def test_mean_std_and_residual_are_those_of_the_posterior() -> None:
    _, y, x = draws(1, 40000)
    report = posterior(x[0], SPEC, {"measured": y[:1, :, :, :].expand(40000, 1, 1, 1)})
    gain = 0.25 / (0.25 + NOISE**2)
    var = 1 - gain / 4
    assert torch.allclose(report.mean, (gain * y[0]).expand(1, 2, 2), atol=0.02)
    assert torch.allclose(report.std, torch.full((1, 2, 2), var**0.5, dtype=torch.float64), rtol=0.02)
    # A x - y = (gain - 1) y + s z,   s^2 = (1 - gain) / 4
    expected = ((1 - gain) ** 2 * y[0] ** 2 + (1 - gain) / 4).sqrt()
    assert abs(float(report.residual.square().mean().sqrt() / expected) - 1) < 0.02
    assert report.noise == NOISE


def test_coverage_is_its_nominal_value_for_exact_draws_and_not_for_others() -> None:
    for k, wide in ((1, 1.0), (2, 1.0), (1, 0.5)):
        truth, _, x = draws(4000, 9, wide)
        found = coverage(truth, x, k)
        assert found.expected == pytest.approx((10 - 2 * k) / 10)
        off = abs(found.found - found.expected)
        assert off < 0.02 if wide == 1.0 else off > 0.1


def test_restorations_of_several_measurements_are_refused() -> None:
    _, y, x = draws(3, 1)
    with pytest.raises(EbbError, match="one measurement"):
        posterior(x[:, 0], SPEC, {"measured": y})
    with pytest.raises(EbbError, match="k is between"):
        coverage(x[:, 0], x, 1)


def test_a_sheet_shows_what_was_measured_mean_std_and_samples() -> None:
    x = torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(2, 1, 4, 4)
    report = Posterior(x.mean(0), torch.full((1, 4, 4), 0.5, dtype=torch.float64), torch.zeros(2), 0.0)
    tiles = sheet(report, torch.tensor([[[0.0, 1.0], [0.5, -1.0]]]), x)
    assert tiles.shape == (5, 1, 4, 4)
    assert torch.equal(tiles[0, 0, ::2, ::2], torch.tensor([[0.0, 1.0], [0.5, -1.0]], dtype=torch.float64))
    assert torch.equal(tiles[1], x.mean(0))
    assert not bool(tiles[2].any())  # half of the way from black to white
    assert torch.equal(tiles[3:], x)
