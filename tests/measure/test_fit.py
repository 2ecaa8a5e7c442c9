"""Tests of fit: they agree with scipy's, keep their level on the law itself, and reject another."""

from __future__ import annotations

import pytest
import torch

from ebbtide.core.errors import EbbError
from ebbtide.measure.fit import cells, chi_square, kolmogorov

stats = pytest.importorskip("scipy.stats")


def test_both_are_those_of_scipy() -> None:
    law = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    for seen in ([390, 310, 190, 110], [350, 330, 220, 100], [400, 300, 200, 100]):
        theirs = stats.chisquare(seen, (law * 1000).numpy()).pvalue
        assert chi_square(torch.tensor(seen), law) == pytest.approx(theirs, abs=1e-12)
    for power in (1.0, 1.05, 1.2):
        u = torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** power
        # Stephens's scale is the limit law at a finite n: good to a hundredth
        assert kolmogorov(u) == pytest.approx(stats.kstest(u.numpy(), "uniform").pvalue, abs=0.01)


def test_the_level_is_kept_and_another_law_rejected() -> None:
    generator = torch.Generator().manual_seed(0)
    law = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01], dtype=torch.float64)
    draws = torch.multinomial(law, 300 * 400, replacement=True, generator=generator).reshape(400, 300)
    p = torch.tensor([chi_square(torch.bincount(row, minlength=5), law) for row in draws])
    assert kolmogorov(p) > 0.01
    other = torch.bincount(draws.flatten(), minlength=5)
    assert chi_square(other, torch.tensor([0.5, 0.31, 0.14, 0.04, 0.01])) < 1e-6


def test_rare_cells_are_one_and_impossible_ones_settle_it() -> None:
    law = torch.tensor([0.5, 0.46, 0.02, 0.02])
    pooled = chi_square(torch.tensor([52, 44, 4]), torch.tensor([0.5, 0.46, 0.04]), least=0)
    assert chi_square(torch.tensor([52, 44, 4, 0]), law, least=5) == pytest.approx(pooled)
    assert chi_square(torch.tensor([5, 0, 1]), torch.tensor([0.5, 0.5, 0.0])) == 0.0
    with pytest.raises(EbbError, match="draw more"):
        chi_square(torch.tensor([1, 1]), torch.tensor([0.5, 0.5]))


def test_cells_are_in_the_order_of_a_table() -> None:
    table = torch.zeros(2, 3, 2, dtype=torch.int64)
    x = torch.tensor([[1, 2, 0], [0, 1, 1], [1, 2, 0]])
    for row in x:
        table[tuple(row)] += 1
    assert torch.equal(cells(x, (2, 3, 2)), table.flatten())
