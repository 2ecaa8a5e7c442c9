"""Theory systems: a fault beside the card's own, every process under the pointwise laws, and a remark of a record."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ebbtide.core import registry
from ebbtide.core.state import Pred
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.gauge import transform
from ebbtide.process.affine import Affine
from ebbtide.process.flow import Flow
from ebbtide.process.gaussian import VPCosine, VPLinear
from ebbtide.systems import Bench
from ebbtide.systems.theory import gauge_freedom, principles

# those that are Gaussian whatever their parameters; one that wraps another is tried with the other
ALWAYS = [e for e in registry.entries("process") if issubclass(e.cls, Affine) and isinstance(e.cls.gives, frozenset)]
GAUSSIAN = [e.name for e in ALWAYS if "gaussian" in e.cls.gives]


class WrongAlpha(Flow):
    """A process that believes in less data than there is."""

    def a(self, t: Tensor) -> Tensor:
        return (1 - t) ** 1.05


class Told(GaussianMixture):
    """The true posterior and density, told to the library under another process."""

    def __init__(self, truth: GaussianMixture, process: Affine) -> None:
        self.truth, self.process, self.labels = truth, process, None
        self.log_prob, self.sample = truth.log_prob, truth.sample

    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Pred:
        return self.truth(x, t, cond)


def failed(worlds: dict[str, GaussianMixture]) -> set[str]:
    checks = principles.laws(Bench(principles.SYSTEM), worlds).checks
    return {c.name for c in checks if not c.passed}


def test_a_wrong_alpha_is_caught_by_every_view():
    """Predictions still turn into one another; no law of the data holds."""
    lost = failed(
        {
            "ve": principles.mixture(registry.make("process", {"name": "ve"})),
            "flow": Told(principles.mixture(Flow()), WrongAlpha()),
        }
    )
    assert {
        "score against grad log p",
        "residual of the continuity equation",
        "endpoints under all processes",
        "log-likelihood by divergence, nats",
        "variational bound less entropy, nats",
    } <= lost
    assert "round trips of x0, eps, v, score, velocity" not in lost
    assert "velocity against the slope of the path" not in lost


@pytest.mark.parametrize("name", GAUSSIAN)
def test_every_gaussian_process_keeps_the_pointwise_laws(name: str):
    p = registry.make("process", {"name": name})
    trips, path, score, residual = principles.pointwise(principles.mixture(p))
    assert max(trips, path, score) < 1e-10
    assert residual < 1e-6


@pytest.mark.parametrize("p", [VPLinear(zero_terminal=True), VPCosine(zero_terminal=True)], ids=["linear", "cosine"])
def test_zero_terminal_processes_keep_them_too(p: Affine):
    trips, path, score, residual = principles.pointwise(principles.mixture(p))
    assert max(trips, path, score) < 1e-10
    assert residual < 1e-6


def test_gauge_terms_across_the_data_change_no_count_and_symmetrising_spoils_it():
    """The record's remark: C s has the rank of s, so the count stays; its symmetric part has another rank."""
    flat, _ = gauge_freedom.plane()
    points = flat.sample(4)
    m = torch.randn(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    c = m - m.T
    mixing = transform(flat, 5 * c / torch.linalg.matrix_norm(c, 2))
    assert gauge_freedom.dimension(mixing, points) == 2
    assert gauge_freedom.dimension(mixing, points, symmetric=True) == 0
