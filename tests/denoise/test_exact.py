"""Exact Gaussian denoisers: against integration on a grid, Tweedie's formulas, subsets and samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ebbtide.core.errors import EbbError
from ebbtide.core.registry import make
from ebbtide.denoise.exact import Gaussian, GaussianMixture

PROCESSES = {
    "vp-cosine": {"name": "vp-cosine"},
    "flow": {"name": "flow"},
    "ve": {"name": "ve", "sigma_max": 3.0},
    "bridge": {"name": "bridge"},
    "mean-reverting": {"name": "mean-reverting"},
    "residual": {"name": "residual", "kappa": 0.5},
    "resfusion": {"name": "resfusion"},
}
everywhere = pytest.mark.parametrize("name", PROCESSES)
WEIGHTS, LABELS = torch.tensor([0.5, 0.2, 0.3]).double(), [0, 1, 0]
MEANS = torch.tensor([[1.0, -0.5], [-1.0, 0.8], [0.3, 1.2]]).double()
COVARIANCES = {
    "full": torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.05], [-0.05, 0.4]], [[0.2, 0.0], [0.0, 0.1]]]).double(),
    "diagonal": torch.tensor([[0.3, 0.2], [0.1, 0.4], [0.2, 0.05]]).double(),
    "isotropic": torch.tensor([0.3, 0.2, 0.1]).double(),
}
kinds = pytest.mark.parametrize("kind", COVARIANCES)


def process(name: str):
    return make("process", PROCESSES[name])


def mixture(name: str, kind: str = "full") -> GaussianMixture:
    return GaussianMixture(process(name), WEIGHTS, MEANS, COVARIANCES[kind], LABELS)


def matrices(kind: str) -> Tensor:
    cov = COVARIANCES[kind]
    return cov if kind == "full" else torch.diag_embed(cov) if kind == "diagonal" else cov[:, None, None] * torch.eye(2)


def rows(p, units: bool, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Six noised points of the mixture with ends and labels (-1: any), at times of elements or of units."""
    gen = torch.Generator().manual_seed(seed)
    t = torch.rand(6, 2, generator=gen, dtype=torch.float64) * 0.7 + 0.2
    t = t if units else t[:, 0]
    y = torch.randn(6, 2, generator=gen, dtype=torch.float64)
    weight = lambda w: 0 if w is None else w if units else w[:, None]  # noqa: E731
    centre = weight(p.a(t)) * MEANS.repeat(2, 1) + weight(p.b(t)) * y
    x = centre + (0.1 + weight(p.c(t))) * torch.randn(6, 2, generator=gen, dtype=torch.float64)
    return x, t, {"y": y, "label": torch.tensor([-1, 0, 1, -1, 0, 1])}


@everywhere
@kinds
@pytest.mark.parametrize("units", [False, True])
def test_against_integration_over_the_data(name, kind, units):
    """Density, mean and variance of x0 by sums of p(x0) q(x_t | x0) over a fine grid of the plane."""
    d, p = mixture(name, kind), process(name)
    x, t, cond = rows(p, units)
    line = torch.linspace(-5, 5, 301, dtype=torch.float64)
    plane = torch.cartesian_prod(line, line)
    each = MultivariateNormal(MEANS, matrices(kind)).log_prob(plane[:, None]).exp()
    pred, density = d(x, t, cond), d.log_prob(x, t, cond)
    for r in range(6):
        label = int(cond["label"][r])
        w = WEIGHTS * torch.tensor([label in (-1, k) for k in LABELS])
        a, b, c = (f(t[r : r + 1]) for f in (p.a, p.b, p.c))
        seen = x[r] - (0 if b is None else b * cond["y"][r])
        q = torch.distributions.Normal(a * plane, c).log_prob(seen).sum(1).exp()
        both = (each * (w / w.sum())).sum(1) * q
        mean = (both[:, None] * plane).sum(0) / both.sum()
        var = (both[:, None] * (plane - mean) ** 2).sum(0) / both.sum()
        total = both.sum() * (line[1] - line[0]) ** 2
        torch.testing.assert_close(pred.mean[r], mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(pred.var[r], var, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(density[r], total.log(), rtol=1e-6, atol=1e-6)


@everywhere
@kinds
@pytest.mark.parametrize("units", [False, True])
def test_tweedie(name, kind, units):
    """The score is the gradient of log p_t; it gives the mean, and the mean's own gradient the variance."""
    d, p = mixture(name, kind), process(name)
    x, t, cond = rows(p, units, 1)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(d.log_prob(x, t, cond).sum(), x)
    score = d.score(x, t, cond)
    torch.testing.assert_close(score, gradient, rtol=1e-9, atol=1e-9)
    a, b, c = (None if w is None else w if units else w[:, None] for w in (p.a(t), p.b(t), p.c(t)))
    pred = d(x, t, cond)
    y = 0 if b is None else b * cond["y"]
    torch.testing.assert_close(pred.mean, (x - y + c**2 * score) / a, rtol=1e-8, atol=1e-8)
    slope = [torch.autograd.grad(pred.mean[:, j].sum(), x, retain_graph=True)[0][:, j] for j in range(2)]
    torch.testing.assert_close(pred.var, torch.stack(slope, 1) * c**2 / a, rtol=1e-8, atol=1e-8)


@everywhere
@kinds
def test_no_row_depends_on_the_others(name, kind):
    """Alone or among seven, to the bit, float32 and float64, times shared by an element or not."""
    d, p = mixture(name, kind), process(name)
    for units in (False, True):
        x, t, cond = rows(p, units)
        x, t = torch.cat([x, x[:1]]), torch.cat([t, t[:1]])
        cond = {k: torch.cat([v, v[:1]]) for k, v in cond.items()}
        if units:
            t[::2] = t[::2, :1]  # some elements share a time
        for dtype in (torch.float32, torch.float64):
            whole = d(x.to(dtype), t, cond)
            assert whole.mean.dtype == whole.var.dtype == dtype
            for r in range(7):
                one = slice(r, r + 1)
                alone = d(x[one].to(dtype), t[one], {k: v[one] for k, v in cond.items()})
                assert torch.equal(alone.mean, whole.mean[one])
                assert torch.equal(alone.var, whole.var[one])


def test_larger_models_row_by_row_too():
    gen = torch.Generator().manual_seed(2)
    for k, d in ((1, 1), (1, 5), (7, 16), (3, 63)):
        root = torch.randn(k, d, d, generator=gen).double() / d**0.5
        model = GaussianMixture(process("flow"), [1.0] * k, torch.randn(k, d, generator=gen), root @ root.mT)
        x, t = torch.randn(33, d, generator=gen), torch.rand(33, generator=gen, dtype=torch.float64)
        whole, density = model(x, t, {}), model.log_prob(x, t)
        for r in range(33):
            alone = model(x[r : r + 1], t[r : r + 1], {})
            assert torch.equal(alone.mean[0], whole.mean[r])
            assert torch.equal(alone.var[0], whole.var[r])
            assert torch.equal(model.log_prob(x[r : r + 1], t[r : r + 1])[0], density[r])


def test_times_that_nearly_agree_answer_as_times_that_do():
    """The two ways to decompose a covariance meet where the units' times do."""
    d, p = mixture("vp-cosine"), process("vp-cosine")
    x, t, cond = rows(p, False)
    near = t[:, None] + torch.tensor([0.0, 1e-11]).double()
    for same, apart in zip(d(x, t, cond)[:3:2], d(x, near, cond)[:3:2], strict=True):
        torch.testing.assert_close(same, apart, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(d.log_prob(x, t, cond), d.log_prob(x, near, cond), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(d.score(x, t, cond), d.score(x, near, cond), rtol=1e-8, atol=1e-8)


@everywhere
@kinds
def test_the_ends_of_time(name, kind):
    """At t = 0 the data is seen; where a = 0 nothing is, and the answer is the chosen classes' own mean and variance."""
    d, p = mixture(name, kind), process(name)
    x, _, cond = rows(p, False)
    for units in ((6,), (6, 2)):
        zero, one = torch.zeros(units).double(), torch.ones(units).double()
        pred = d(x, zero, cond)
        torch.testing.assert_close(pred.mean, x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pred.var, torch.zeros_like(x))
        if p.a(torch.ones(1).double()) < 1e-12:
            end = cond["y"] if name == "bridge" else x
            pred = d(end, one, cond)
            for r, label in enumerate(cond["label"].tolist()):
                w = WEIGHTS * torch.tensor([label in (-1, k) for k in LABELS])
                w = (w / w.sum())[:, None]
                mean = (w * MEANS).sum(0)
                spread = matrices(kind).diagonal(dim1=1, dim2=2) + (MEANS - mean) ** 2
                torch.testing.assert_close(pred.mean[r], mean, rtol=1e-9, atol=1e-9)
                torch.testing.assert_close(pred.var[r], (w * spread).sum(0), rtol=1e-9, atol=1e-9)


def test_a_known_unit_is_conditioned_on():
    """One unit at t = 0 and the other at t = 1 of a flow: the mean is the regression of the second on the first."""
    cov = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    d = Gaussian(process("flow"), [1.0, -1.0], cov)
    x = torch.tensor([[2.0, 9.0]]).double()
    pred = d(x, torch.tensor([[0.0, 1.0]]).double(), {})
    mean, var = ([2.0, -1.0 + 0.3 / 0.5 * 1.0], [0.0, 0.4 - 0.3**2 / 0.5])
    torch.testing.assert_close(pred.mean[0], torch.tensor(mean, dtype=torch.float64))
    torch.testing.assert_close(pred.var[0], torch.tensor(var, dtype=torch.float64))


def test_a_unit_at_the_far_end_of_a_bridge_tells_nothing():
    """Its value is the end's, known already: density, mean and variance are those given the other unit alone."""
    cov = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    p = process("bridge")
    both, first = Gaussian(p, [1.0, -1.0], cov), Gaussian(p, [1.0], cov[0, 0])
    y = torch.tensor([[0.3, 7.0]], dtype=torch.float64)
    t = torch.tensor([[0.4, 1.0]], dtype=torch.float64)
    for x in (torch.tensor([[0.9, 7.0]]).double(), torch.tensor([[0.9, 7.1]]).double()):  # to rounding or not
        pred, alone = both(x, t, {"y": y}), first(x[:, :1], t[:, 0], {"y": y[:, :1]})
        torch.testing.assert_close(pred.mean[:, :1], alone.mean)
        torch.testing.assert_close(pred.var[:, :1], alone.var)
        torch.testing.assert_close(pred.mean[:, 1], -1.0 + 0.3 / 0.5 * (alone.mean[:, 0] - 1))
        torch.testing.assert_close(both.log_prob(x, t, {"y": y}), first.log_prob(x[:, :1], t[:, 0], {"y": y[:, :1]}))


def test_data_without_spread():
    """Points: at t = 0 the nearest is told. A covariance of low rank: the mean stays on its line at every time."""
    p = process("flow")
    points = GaussianMixture(p, [1.0, 1.0, 5.0], MEANS, 0.0)
    zero = torch.zeros(3).double()
    assert torch.equal(points(MEANS, zero, {}).mean, MEANS)
    close = GaussianMixture(p, [1.0, 3.0], [[0.0], [0.01]], 0.0)  # two points, seen through noise of 0.01 at 0.004
    x, t = torch.tensor([[0.004]], dtype=torch.float64), torch.tensor([0.01], dtype=torch.float64)
    likely = [w * math.exp(-((0.004 - 0.99 * v) ** 2) / 2e-4) for w, v in ((1, 0.0), (3, 0.01))]
    assert close(x, t, {}).mean.item() == pytest.approx(0.01 * likely[1] / sum(likely))
    line = torch.tensor([3.0, 4.0]).double() / 5
    flat = Gaussian(p, [0.0, 0.0], line[:, None] * line)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(3)).double()
    for t in (1e-6, 0.3, 1.0):
        mean = flat(x, torch.full((20,), t).double(), {}).mean
        off = mean @ torch.tensor([-4.0, 3.0]).double()
        assert off.abs().max() < 1e-9


def test_a_label_chooses_and_its_null_mixes():
    """p(x) mean(x) = sum_c p(c) p(x | c) mean(x | c): what guidance subtracts is the true unconditional model."""
    d = mixture("vp-cosine")
    x, t, _ = rows(process("vp-cosine"), False)
    label = [{"label": torch.full((6,), c)} for c in (0, 1)]
    prior = torch.tensor([0.8, 0.2]).double()
    parts = torch.stack([w.log() + d.log_prob(x, t, c) for w, c in zip(prior, label, strict=True)])
    mean = (parts.softmax(0)[..., None] * torch.stack([d(x, t, c).mean for c in label])).sum(0)
    null = d.null("label", label[0]["label"])
    assert null is not None
    for every in ({}, {"label": null}, {"label": torch.full((6,), d.classes)}):
        torch.testing.assert_close(d.log_prob(x, t, every), parts.logsumexp(0))
        torch.testing.assert_close(d(x, t, every).mean, mean)
    one = Gaussian(process("vp-cosine"), MEANS[1], COVARIANCES["full"][1])
    torch.testing.assert_close(d(x, t, label[1]).mean, one(x, t, {}).mean)
    assert d.null("text", x) is None
    assert one.null("label", null) is None


def test_samples_are_data():
    n = 40000
    for kind in COVARIANCES:
        d = mixture("flow", kind)
        x = d.sample(n, seed=5, label=0)
        w = WEIGHTS[[0, 2]] / WEIGHTS[[0, 2]].sum()
        mean = (w[:, None] * MEANS[[0, 2]]).sum(0)
        apart = MEANS[[0, 2]] - mean
        cov = (w[:, None, None] * (matrices(kind)[[0, 2]] + apart[:, :, None] * apart[:, None])).sum(0)
        torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.02)
        torch.testing.assert_close(x.T.cov(), cov, rtol=0, atol=0.02)
        # the score of a density has mean nought under it
        t = torch.full((n,), 1e-9).double()
        assert d.score(x, t, {"label": torch.zeros(n).long()}).mean(0).abs().max() < 0.1
        assert torch.equal(d.sample(3, seed=7)[1], d.sample(1, seed=8)[0])


def test_pictures_and_gradients():
    d = Gaussian(process("flow"), torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.5))
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    pred = d(x, torch.tensor([0.5, 0.2]).double(), {})
    assert pred.mean.shape == pred.var.shape == x.shape
    (g,) = torch.autograd.grad(pred.mean.sum(), x)
    torch.testing.assert_close(g[0], torch.full_like(g[0], 0.5 * 0.5 / (0.25 * 0.5 + 0.25)))


def test_what_does_not_fit_is_said():
    p = process("flow")
    with pytest.raises(EbbError, match="covariance"):
        GaussianMixture(p, [1.0, 1.0], torch.zeros(2, 3), torch.ones(2, 4))
    with pytest.raises(EbbError, match="covariance"):
        GaussianMixture(p, [1.0], torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.2, 1.0]]]))
    with pytest.raises(EbbError, match="negative"):
        Gaussian(p, torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(EbbError, match="weights"):
        GaussianMixture(p, [1.0, -1.0], torch.zeros(2, 3), 1.0)
    with pytest.raises(EbbError, match="label"):
        GaussianMixture(p, [1.0, 1.0], torch.zeros(2, 3), 1.0, labels=[0])
    half = torch.tensor([0.5]).double()
    with pytest.raises(EbbError, match=r"shaped \(2,\)"):
        mixture("flow")(torch.zeros(1, 3), half, {})
    with pytest.raises(EbbError, match="no label 4; 0 to 1"):
        mixture("flow")(torch.zeros(1, 2), half, {"label": torch.tensor([4])})
    with pytest.raises(EbbError, match="leave the label out"):
        Gaussian(p, [0.0], 1.0)(torch.zeros(1, 1), half, {"label": torch.tensor([0])})
