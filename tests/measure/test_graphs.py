"""Statistics of graphs whose degrees, clustering and spectra are known."""

from __future__ import annotations

import pytest
import torch

from ebbtide.core.errors import EbbError
from ebbtide.measure.graphs import discrepancies, histograms, mmd


def ring(n: int, size: int) -> torch.Tensor:
    a = torch.zeros(size, size)
    k = torch.arange(n)
    a[k, (k + 1) % n] = a[(k + 1) % n, k] = 1
    return a


def test_a_ring_and_a_clique():
    clique = torch.zeros(6, 6)
    clique[:4, :4] = 1 - torch.eye(4)
    both = torch.stack([ring(5, 6), clique])
    assert histograms(both, "degree").argmax(1).tolist() == [2, 3]
    assert histograms(both, "clustering").argmax(1).tolist() == [0, 99]
    spectrum = histograms(both, "spectrum")[1]  # of K4: 0 once, 4 / 3 three times
    assert spectrum[0] == pytest.approx(0.25)
    assert spectrum[133] == pytest.approx(0.75)


def test_the_order_of_nodes_and_what_is_not_there_mean_nothing():
    g = torch.Generator().manual_seed(0)
    a = (torch.rand(8, 7, 7, generator=g) < 0.4).float().triu(1)
    a = a + a.mT
    order = torch.randperm(7, generator=g)
    wide = torch.nn.functional.pad(a[:, order][:, :, order], (0, 3, 0, 3))
    assert all(abs(v) < 1e-9 for v in discrepancies(a, wide).values())


def test_others_are_apart_and_what_is_no_graph_is_told():
    rings = torch.stack([ring(5, 6)] * 3)
    cliques = (1 - torch.eye(6)).expand(3, 6, 6)
    assert mmd(rings, cliques, "degree") == pytest.approx(2 - 2 * 2.718281828 ** (-9 / 2))  # moved by 3
    with pytest.raises(EbbError, match="symmetric"):
        histograms(torch.ones(2, 3, 3).triu(1), "degree")
    with pytest.raises(EbbError, match="no statistic"):
        histograms(rings, "orbits")
