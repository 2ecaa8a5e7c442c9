"""Jacobians by directions, gauge terms and dimensions: against whole Jacobians, the gauge condition and known manifolds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.denoise import gauge
from ebbtide.denoise.exact import Gaussian, GaussianMixture
from ebbtide.denoise.jacobian import directions, divergence, products
from ebbtide.denoise.model import process

VP = process("vp-linear")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stream(n: int) -> Noise:
    return Noise(keys(range(n)), torch.zeros(n, dtype=torch.int64))


MIX = normal(4, 4, seed=3)


def bent(x: Tensor) -> Tensor:
    """A field whose Jacobian is neither symmetric nor constant."""
    return torch.sin(x @ MIX) * x.roll(1, -1)


def whole(x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.jacrev(bent))(x)


def skew(d: int, seed: int) -> Tensor:
    m = normal(d, d, seed=seed)
    return m - m.T


def mixture() -> GaussianMixture:
    return GaussianMixture(VP, [1.0, 2.0, 1.0], 2 * normal(3, 4, seed=1), 0.3)


def noised(g: GaussianMixture, t: float, n: int = 32) -> tuple[Tensor, Tensor]:
    times = torch.full((n,), t, dtype=torch.float64)
    return VP.corrupt(g.sample(n), times, stream(n), {}), times


# -------------------------------------------------------------------- derivatives


def test_divergence_and_products_are_those_of_the_whole_jacobian():
    x, v = normal(6, 4), normal(6, 4, seed=1)
    j = whole(x)
    y, div = divergence(bent, x, directions(x))
    assert torch.allclose(y, bent(x))
    assert torch.allclose(div, j.diagonal(dim1=1, dim2=2).sum(1))
    push, pull = products(bent, x, v)
    assert torch.allclose(push, (j @ v[..., None])[..., 0])
    assert torch.allclose(pull, (j.mT @ v[..., None])[..., 0])


def test_random_signs_are_unbiased_and_exact_on_a_diagonal():
    x = normal(1, 4).expand(4000, 4)
    exact = divergence(bent, x[:1], directions(x[:1]))[1]
    drawn = divergence(bent, x, directions(x, 1, stream(4000)))[1]
    assert float((drawn.mean() - exact).abs()) < 4 * float(drawn.std()) / 4000**0.5
    cube, cubes = divergence(lambda x: x**3, x[:5], directions(x[:5], 3, stream(5)))
    assert torch.allclose(cubes, 3 * x[:5].square().sum(1))
    assert torch.allclose(cube, x[:5] ** 3)
    with pytest.raises(EbbError, match="noise stream"):
        directions(x, 4)


def test_a_constant_field_has_no_divergence():
    x = normal(3, 4)
    assert divergence(lambda x: torch.ones(3, 4), x, directions(x))[1].tolist() == [0, 0, 0]


# -------------------------------------------------------------------- gauge terms


def varying(x: Tensor) -> Tensor:
    """An antisymmetric matrix that changes from place to place."""
    m = torch.outer(torch.sin(x), x.roll(1) ** 2)
    return m - m.T


@pytest.mark.parametrize("field", [skew(4, 5), varying], ids=["matrix", "field"])
def test_a_gauge_term_moves_no_probability(field: object):
    g = mixture()
    x, t = noised(g, 0.2)
    turned = gauge.transform(g, field)
    moved = (turned(x, t, {}).mean - g(x, t, {}).mean).norm(dim=1)
    assert float(moved.min()) > 1e-3
    assert gauge.report(turned, x, t, g).residual == pytest.approx(0, abs=1e-8)


def test_a_field_that_is_constant_is_its_matrix():
    g, c = mixture(), skew(4, 5)
    x, t = noised(g, 0.2)
    assert torch.allclose(gauge.transform(g, lambda _: c)(x, t, {}).mean, gauge.transform(g, c)(x, t, {}).mean)


def test_a_divergence_left_out_is_seen():
    """r = A s alone is a gauge term only where A is constant."""
    g = mixture()
    x, t = noised(g, 0.2)

    class Half(gauge.Gauged):
        def remainder(self, x: Tensor, s: Tensor) -> Tensor:
            return (torch.func.vmap(varying)(x) * s[:, None]).sum(-1)

    assert gauge.report(Half(g, varying), x, t, g).residual > 0.1


def test_the_report_of_a_linear_score():
    """A standard Gaussian has J = -I at every time: with C, J = -(I + C), so |J - J^T|^2 / |J|^2 = 4 |C|^2 / (D + |C|^2)."""
    g = Gaussian(VP, torch.zeros(4), 1.0)
    x, t = noised(g, 0.4, 16)
    c = skew(4, 6)
    square = float(c.square().sum())
    found = gauge.report(gauge.transform(g, c), x, t)
    assert found.residual is None
    assert found.asymmetry**2 == pytest.approx(4 * square / (4 + square))
    assert gauge.report(g, x, t).asymmetry == pytest.approx(0, abs=1e-12)
    probed = gauge.report(gauge.transform(g, c), x, t, probes=200)
    assert probed.asymmetry == pytest.approx(found.asymmetry, rel=0.05)


def test_conditions_reach_the_denoiser():
    g = GaussianMixture(VP, [1.0, 1.0], normal(2, 4, seed=1), 0.3, labels=[0, 1])
    x, t = noised(g, 0.3, 4)
    cond = {"label": torch.tensor([0, 1, 0, 1])}
    assert torch.allclose(gauge.score_of(g, t, cond)(x), g.score(x, t, cond))
    turned = gauge.transform(g, skew(4, 7))
    assert gauge.report(turned, x, t, g, cond=cond).residual == pytest.approx(0, abs=1e-10)
    assert turned.null("label", cond["label"]).tolist() == [-1] * 4
    assert not torch.allclose(turned(x, t, cond).mean, turned(x, t, {}).mean)


def test_what_is_no_gauge_is_refused():
    g = mixture()
    with pytest.raises(EbbError, match="antisymmetric"):
        gauge.transform(g, torch.eye(4, dtype=torch.float64))
    flow = GaussianMixture(process("flow"), [1.0], torch.zeros(1, 4), 1.0)
    with pytest.raises(EbbError, match="later time"):
        gauge.transform(flow, skew(4, 0))(normal(2, 4), torch.ones(2, dtype=torch.float64), {})

    class Tokens(Denoiser):
        process = process("masked", vocab=4)

        def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Pred:
            return Pred()

    with pytest.raises(EbbError, match="affine"):
        gauge.transform(Tokens(), skew(4, 0))


# -------------------------------------------------------------------- dimension


@pytest.mark.parametrize("d", [1, 3, 5])
@pytest.mark.parametrize("name", ["vp-linear", "flow", "ve"])
def test_dimension_of_a_plane(name: str, d: int):
    axes = torch.linalg.qr(normal(6, d)).Q
    g = Gaussian(process(name), normal(6, seed=2), axes @ axes.T)
    assert [gauge.intrinsic_dim(g, x0, 0.01) for x0 in g.sample(3)] == [d] * 3


def test_dimension_of_a_sphere():
    """2 in R^5 though it spans 3: points as dense as the noise, each a small flat piece."""
    n = normal(400, 3, seed=3)
    n = n / n.norm(dim=1, keepdim=True)
    axes = torch.linalg.qr(normal(5, 3, seed=4)).Q
    flat = 0.15**2 * (torch.eye(3, dtype=torch.float64) - n[:, :, None] * n[:, None])
    g = GaussianMixture(VP, torch.ones(400), n @ axes.T, axes @ flat @ axes.T)
    assert [gauge.intrinsic_dim(g, x0, 0.01) for x0 in g.sample(2, seed=3)] == [2, 2]
