"""The kernel distance: explicit features of the polynomial kernel, its expectation for Gaussians, no bias."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.measure.metrics import bootstrap, kernel_distance


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def features(x: Tensor) -> Tensor:
    """phi with phi(x).phi(y) = (xy + 1)^3 for x, y on the line."""
    return torch.cat([x**0, 3**0.5 * x, 3**0.5 * x**2, x**3], 1)


def cubic(mean: float, std: float, other_mean: float, other_std: float) -> float:
    """|E phi(X) - E phi(Y)|^2 for the features phi of Gaussians."""
    first, second = ((m, m**2 + s**2, m**3 + 3 * m * s**2) for m, s in ((mean, std), (other_mean, other_std)))
    return sum(w * (a - b) ** 2 for w, a, b in zip((3, 3, 1), first, second, strict=True))


@pytest.mark.parametrize("law", [(0.0, 1.0, 0.0, 1.0), (0.0, 1.0, 0.4, 1.0), (0.2, 0.7, 0.2, 1.1)])
def test_small_samples_have_the_expectation_of_the_gaussians(law: tuple[float, ...]):
    """Unbiased: sets of 8 and 5 rows are right on average, also at 0; comparing rows with themselves would be far off."""
    m, s, n, t = law
    x, y = m + s * normal(4000 * 8, 1, 0), n + t * normal(4000 * 5, 1, 1)
    pairs = list(zip(x.split(8), y.split(5), strict=True))
    found = torch.tensor([kernel_distance(a, b) for a, b in pairs]).double()
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean()) - cubic(m, s, n, t)) < 3.5 * error
    own = torch.tensor([float((features(a).mean(0) - features(b).mean(0)).square().sum()) for a, b in pairs])
    assert float(own.mean()) - cubic(m, s, n, t) > 10 * error


def test_features_of_the_kernel_give_the_same_figure():
    """Sums over pairs by explicit features, (sum phi)^2 - sum phi^2; sets go through more than one block."""
    x, y = normal(1100, 1, 2), 0.3 + 1.2 * normal(700, 1, 3)
    p, q = features(x), features(y)
    within = lambda f: float(f.sum(0).square().sum() - f.square().sum()) / (len(f) * (len(f) - 1))  # noqa: E731
    expected = within(p) + within(q) - 2 * float(p.mean(0) @ q.mean(0))
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_the_scale_is_one_over_the_width():
    """Columns of zeros leave the products as they are, so only the scale changes with them."""
    x, y = normal(40, 2, 4), normal(30, 2, 5) + 1
    wide = [torch.cat([v, v.new_zeros(len(v), 6)], 1) for v in (x, y)]
    assert kernel_distance(*wide) == pytest.approx(kernel_distance(x, y, scale=1 / 8), rel=1e-12)
    assert kernel_distance(x, y) == pytest.approx(kernel_distance(x, y, scale=1 / 2), rel=1e-12)
    lines = kernel_distance(x, y, degree=1, scale=1.0, offset=5.0)  # the offset cancels, what is left is |m - n|^2
    mean = x.mean(0) - y.mean(0)
    trace = sum(float(v.var(0).sum()) / len(v) for v in (x, y))
    assert lines == pytest.approx(float(mean @ mean) - trace, rel=1e-9)


def test_its_interval_covers_the_truth():
    hits = 0
    for k in range(60):
        found = bootstrap(kernel_distance, normal(80, 1, k), 0.5 + normal(60, 1, 700 + k), draws=60, seed=k)
        hits += found.low <= cubic(0, 1, 0.5, 1) <= found.high
    assert 50 <= hits <= 60


def test_one_row_is_too_few():
    with pytest.raises(EbbError, match="at least two"):
        kernel_distance(normal(1, 2, 0), normal(5, 2, 1))
