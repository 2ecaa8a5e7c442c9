"""Denoisers of a data set: closed forms by direct differences, limits, identities between the three."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.denoise.bank import Average, Bank
from ebbtide.denoise.data import Empirical, Wiener
from ebbtide.denoise.local import Local
from ebbtide.process.flow import Flow
from ebbtide.process.gaussian import EDM, VPCosine

PROCESSES = pytest.mark.parametrize("process", [Flow(), VPCosine(), EDM(sigma_max=5.0)], ids=lambda p: type(p).__name__)
TIMES = (0.95, 0.6, 0.3, 0.1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(n: int, c: int, h: int, w: int, seed: int = 0) -> Tensor:
    """Pictures whose neighbouring pixels go together, that vary more to the right, with a border that never does."""
    x = draw(n, c, h + 2, w + 2, seed=seed)
    x = (x[..., 2:, 1:-1] + x[..., :-2, 1:-1] + x[..., 1:-1, 2:] + x[..., 1:-1, :-2] + 2 * x[..., 1:-1, 1:-1]) / 4
    x = x * torch.linspace(0.2, 1.0, w, dtype=torch.float64)
    x[..., 0, :] = -1.0
    return x.clamp(-1, 1)


def times(rows: int, t: float | tuple[float, ...] = TIMES) -> Tensor:
    t = (t,) if isinstance(t, float) else t
    return torch.tensor([t[r % len(t)] for r in range(rows)], dtype=torch.float64)


def noised(process, data: Tensor, t: Tensor, seed: int = 5) -> Tensor:
    """Pictures that are not quite in the data, at these times, float64."""
    x0 = data[torch.arange(len(t)) % len(data)] + 0.1 * draw(len(t), *data.shape[1:], seed=seed)
    wide = lambda w: w.reshape(w.shape + (1,) * (x0.ndim - w.ndim))  # noqa: E731
    return wide(process.a(t)) * x0 + wide(process.c(t)) * draw(*x0.shape, seed=seed + 1)


def nearest(x: Tensor, data: Tensor) -> Tensor:
    return (x[:, None] - data[None]).flatten(2).norm(dim=-1).amin(1)


# ---------------------------------------------------------------- the exact one


@PROCESSES
def test_empirical_is_the_posterior_mean_and_variance_by_direct_differences(process):
    data = smooth(23, 2, 5, 3)
    t = times(6)
    x = noised(process, data, t)
    pred = Empirical(process, data, block=7)(x, t, {})
    for r in range(len(x)):
        a, c = process.a(t[r : r + 1]).item(), process.c(t[r : r + 1]).item()
        density = [math.exp(-float(((x[r] - a * k) ** 2).sum()) / (2 * c * c)) for k in data]
        if sum(density) < 1e-250:
            continue
        w = torch.tensor(density, dtype=torch.float64) / sum(density)
        mean = sum(w[k] * data[k] for k in range(len(data)))
        var = sum(w[k] * (data[k] - mean) ** 2 for k in range(len(data)))
        torch.testing.assert_close(pred.mean[r], mean, rtol=0, atol=1e-11)
        torch.testing.assert_close(pred.var[r], var, rtol=0, atol=1e-11)


def test_each_unit_may_have_its_own_time():
    """Pixels at time 1 of a flow say nothing, pixels at time 0 say everything."""
    data = smooth(30, 1, 4, 4)
    t = torch.where(torch.arange(16).reshape(1, 1, 4, 4) < 12, 1.0, 0.0).double()
    x = torch.where(t == 1, draw(1, 1, 4, 4), data[4:5])
    for denoiser in (Empirical(Flow(), data), Local(Flow(), data, mask_threshold=0.0)):
        torch.testing.assert_close(denoiser(x, t, {}).mean, data[4:5], rtol=0, atol=1e-6)
    t = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double() * 0.8 + 0.1
    x = noised(Flow(), data, t)
    a, c = (1 - t).flatten(1), t.flatten(1)
    d = (x.flatten(1)[:, None] - a[:, None] * data.flatten(1)) ** 2 / (2 * c[:, None] ** 2)
    mean = (-d.sum(-1)).softmax(1) @ data.flatten(1)
    torch.testing.assert_close(Empirical(Flow(), data)(x, t, {}).mean.flatten(1), mean, rtol=0, atol=1e-12)


def test_second_order_tweedie_ties_variance_to_slope():
    """d E[x0 | x] / dx = a / c^2 Cov[x0 | x]: the variance is a derivative of the mean."""
    data, t = smooth(12, 1, 3, 3), torch.tensor([0.45], dtype=torch.float64)
    model = Empirical(Flow(), data, block=5)
    x = noised(Flow(), data, t)
    slope = torch.autograd.functional.jacobian(lambda v: model(v, t, {}).mean, x).reshape(9, 9)
    torch.testing.assert_close(slope, slope.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(slope.diagonal() * 0.45**2 / 0.55, model(x, t, {}).var.flatten(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [Empirical, Local])
def test_the_ends_of_time(make):
    data = smooth(40, 1, 6, 6)
    model = make(Flow(), data)
    x = data[:5] + 0.02 * draw(5, 1, 6, 6)
    torch.testing.assert_close(Empirical(Flow(), data)(x, times(5, 0.0), {}).mean, data[:5], rtol=0, atol=1e-12)
    assert bool(model(x, times(5, 0.0), {}).mean.isfinite().all())
    mean = data.mean(0).expand(5, 1, 6, 6)
    torch.testing.assert_close(model(draw(5, 1, 6, 6), times(5, 1.0), {}).mean, mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [Empirical, Local, lambda p, d: Wiener.fit(p, d)])
def test_one_picture_is_always_the_answer(make):
    data = smooth(1, 3, 5, 4)
    got = make(EDM(), data)(20 * draw(4, 3, 5, 4), times(4, (1.0, 0.5, 1e-4, 0.0)), {}).mean
    torch.testing.assert_close(got, data.expand(4, 3, 5, 4), rtol=0, atol=1e-6)


def test_bytes_stand_for_minus_one_to_one():
    byte = torch.randint(0, 256, (20, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    wide = byte.double() / 127.5 - 1
    t = times(4)
    x = noised(Flow(), wide, t)
    for make in (Empirical, Local):
        whole, packed = (make(Flow(), v)(x, t, {}).mean for v in (wide, byte))
        torch.testing.assert_close(packed, whole, rtol=0, atol=2e-6)
    half = wide.half()
    got = Empirical(Flow(), half)(x, t, {}).mean
    torch.testing.assert_close(got, Empirical(Flow(), half.double())(x, t, {}).mean, rtol=0, atol=1e-12)
    assert Bank(byte).rows.dtype == torch.uint8


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("make", [Empirical, lambda *a, **k: Local(*a, mask_threshold=0.0, **k)])
def test_a_label_leaves_the_pictures_of_its_class(make):
    data, labels = smooth(30, 1, 4, 4), torch.arange(30) * 7 % 3
    t = times(5)
    x = noised(Flow(), data, t)
    asked = torch.tensor([0, 2, -1, 3, 1])
    got = make(Flow(), data, labels, block=4)(x, t, {"label": asked}).mean
    for r, label in enumerate(asked.tolist()):
        own = data if label in (-1, 3) else data[labels == label]
        torch.testing.assert_close(
            got[r], Empirical(Flow(), own)(x[r : r + 1], t[r : r + 1], {}).mean[0], rtol=0, atol=1e-5
        )


def test_no_label_is_every_label():
    data, labels, t = smooth(30, 1, 4, 4), torch.arange(30) % 3, times(4)
    model, x = Local(Flow(), data, labels), noised(Flow(), data, t)
    null = model.null("label", torch.tensor([0, 1, 2, 1]))
    assert null is not None
    assert model.null("style", null) is None
    assert Empirical(Flow(), data).null("label", null) is None
    assert torch.equal(model(x, t, {"label": null}).mean, model(x, t, {}).mean)


def test_labels_that_no_picture_has_are_refused():
    data, t = smooth(6, 1, 4, 4), times(1)
    model = Empirical(Flow(), data, torch.tensor([0, 0, 1, 3, 3, 3]))
    for label in (2, 5, -2):
        with pytest.raises(EbbError, match=f"no picture has the label {label}; 0 to 3"):
            model(data[:1], t, {"label": torch.tensor([label])})
    with pytest.raises(EbbError, match="leave the label out"):
        Empirical(Flow(), data)(data[:1], t, {"label": torch.tensor([0])})


# ---------------------------------------------------------------- the linear one


def test_wiener_is_the_conditional_of_the_joint_gaussian():
    root, mean = draw(12, 12), draw(1, 3, 4)
    s = root @ root.T / 12 + 0.1 * torch.eye(12, dtype=torch.float64)
    t = torch.tensor([0.9, 0.2], dtype=torch.float64)
    x = draw(2, 1, 3, 4)
    for process in (Flow(), VPCosine()):
        pred = Wiener(process, mean, s)(x, t, {})
        for r in range(2):
            a, c = process.a(t)[r], process.c(t)[r]
            joint = torch.cat(
                [
                    torch.cat([s, a * s], 1),
                    torch.cat([a * s, a * a * s + c * c * torch.eye(12, dtype=torch.float64)], 1),
                ]
            )
            precision = torch.linalg.inv(joint)[:12]  # p(x0 | x) is read off the inverse of the joint covariance
            cov = torch.linalg.inv(precision[:, :12])
            want = mean.flatten() - cov @ precision[:, 12:] @ (x[r] - a * mean).flatten()
            torch.testing.assert_close(pred.mean[r].flatten(), want, rtol=0, atol=1e-8)
            torch.testing.assert_close(pred.var[r].flatten(), cov.diagonal(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("units", [False, True])
def test_no_linear_map_does_better_than_wiener(units):
    """The expected squared error over data and noise, which is known in closed form, is least at the gain."""
    data = smooth(50, 1, 4, 5)
    wiener = Wiener.fit(Flow(), data)
    s = torch.cov(data.flatten(1).T, correction=0)
    t = torch.linspace(0.1, 0.9, 20, dtype=torch.float64) if units else torch.full((20,), 0.4, dtype=torch.float64)
    a, c = 1 - t, t

    def error(k: Tensor) -> float:
        left = torch.eye(20) - k * a
        return float((left @ s @ left.T).trace() + (k * c).square().sum())

    best, gain = error(wiener.gain(a, c)), wiener.gain(a, c)
    for seed in range(20):
        assert error(gain + 1e-3 * draw(20, 20, seed=seed)) > best
    # and the answer is that map about the mean picture
    x = noised(Flow(), data, t.reshape(1, 1, 4, 5))
    m = data.mean(0).flatten()
    want = m + gain @ (x.flatten() - a * m)
    got = wiener(x, t.reshape(1, 1, 4, 5) if units else t[:1], {})
    torch.testing.assert_close(got.mean.flatten(), want, rtol=0, atol=1e-8)
    assert float(got.var.sum()) == pytest.approx(best, abs=1e-8)


def test_fewer_pictures_than_pixels_is_no_trouble():
    """At c = 0 a picture of the data is its own best estimate, and what lies outside their span is dropped."""
    data = smooth(5, 1, 6, 6)
    wiener = Wiener.fit(Flow(), data)
    torch.testing.assert_close(wiener(data, times(5, 0.0), {}).mean, data, rtol=0, atol=1e-6)
    off = data + draw(5, 1, 6, 6)
    flat = (wiener(off, times(5, 0.0), {}).mean - data.mean(0)).flatten(1)
    assert int((torch.linalg.svdvals(flat) > 1e-6).sum()) == 4


# ---------------------------------------------------------------- the local one


def fields(data: Tensor, a: float | Tensor, c: float | Tensor, threshold: float) -> Tensor:
    """The receptive fields, (P, P), from the covariance by solving; a and c numbers or (P,)."""
    s = torch.cov(data.flatten(1).T, correction=0)
    one = torch.ones(len(s), dtype=torch.float64)
    a, c = torch.diag(a * one), torch.diag(c * one)
    w = torch.linalg.solve(a @ s @ a + c @ c, a @ s).T.abs()
    return ((w >= threshold * w.amax(1, keepdim=True)) | torch.eye(len(s)).bool()).double()


def by_hand(data: Tensor, x: Tensor, m: Tensor, a: float | Tensor, c: float | Tensor) -> Tensor:
    """x0_i for one picture and windows m (Q, P): each window's own posterior mean of every pixel, (Q, P)."""
    d = (x.flatten() - a * data.flatten(1)) ** 2 / (2 * c * c)
    return torch.stack([(-(d * row).sum(1)).softmax(0) @ data.flatten(1) for row in m])


@pytest.mark.parametrize("threshold", [0.3, 0.02])
def test_every_pixel_has_the_posterior_mean_of_its_window(threshold):
    data = smooth(60, 2, 7, 6)
    model = Local(Flow(), data, tile=1, mask_threshold=threshold, block=13)
    t = times(5, (0.9, 0.6, 0.3, 0.1, 0.01))
    x = noised(Flow(), data, t)
    got = model(x, t, {}).mean.flatten(1)
    for r, v in enumerate(t.tolist()):
        want = by_hand(data, x[r], fields(data, 1 - v, v, threshold), 1 - v, v).diagonal()
        torch.testing.assert_close(got[r], want, rtol=0, atol=1e-5)


def test_windows_follow_each_pixels_own_time():
    data = smooth(60, 1, 5, 6)
    t = torch.rand(1, 1, 5, 6, generator=torch.Generator().manual_seed(2)).double() * 0.8 + 0.1
    x, a, c = noised(Flow(), data, t), 1 - t.flatten(), t.flatten()
    m = fields(data, a, c, 0.2)
    assert bool((m != m.T).any())
    got = Local(Flow(), data, tile=1, mask_threshold=0.2)(x, t, {}).mean.flatten()
    torch.testing.assert_close(got, by_hand(data, x[0], m, a, c).diagonal(), rtol=0, atol=1e-5)


def test_a_pixel_always_sees_itself():
    """Also one that hardly varies beside the neighbour that it follows, which says more about it than it does."""
    data = draw(80, 1, 1, 2)
    data[..., 1] = 0.01 * (data[..., 0] + draw(80, 1, 1))
    half = torch.full((2,), 0.5, dtype=torch.float64)
    assert Local(Flow(), data, mask_threshold=0.3).windows(half, half).tolist() == [[True, False], [True, True]]


def test_a_tile_reads_itself_and_what_most_of_it_reads():
    data, v = smooth(60, 1, 6, 5), 0.4
    place = torch.arange(30).reshape(6, 5)
    m = fields(data, 1 - v, v, 0.2)
    want = torch.zeros(30, dtype=torch.float64)
    x = noised(Flow(), data, times(1, v))
    for i in range(0, 6, 2):
        for j in range(0, 5, 2):
            tile = place[i : i + 2, j : j + 2].flatten()
            row = (m[tile].mean(0) > 0.5).double()
            row[tile] = 1.0
            want[tile] = by_hand(data, x[0], row[None], 1 - v, v)[0, tile]
    got = Local(Flow(), data, tile=2, mask_threshold=0.2)(x, times(1, v), {}).mean.flatten()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 2, 3])
@PROCESSES
def test_open_windows_are_the_exact_posterior_mean(process, tile):
    data = smooth(50, 1, 9, 7).float()
    t = times(8, (1.0, 0.9, 0.6, 0.3, 0.1, 0.03, 0.001, 0.0))
    x = noised(process, data.double(), t).float()
    open_ = Local(process, data, tile=tile, mask_threshold=0.0)(x, t, {}).mean
    torch.testing.assert_close(open_, Empirical(process, data)(x, t, {}).mean, rtol=0, atol=1e-5)


def test_a_pixel_depends_on_its_window_and_on_nothing_else():
    data, v = smooth(60, 1, 6, 6), 0.35
    model, t = Local(Flow(), data, tile=1, mask_threshold=0.1), times(1, v)
    x = noised(Flow(), data, t)
    slope = torch.autograd.functional.jacobian(lambda z: model(z, t, {}).mean, x).reshape(36, 36)
    m = fields(data, 1 - v, v, 0.1).bool()
    assert 0.05 < float(m.double().mean()) < 0.9
    assert float(slope[~m].abs().max()) == 0.0
    varies = data.flatten(1).std(0) > 0
    assert bool((slope[varies] * m[varies] != 0).any(1).all())


def test_parts_that_do_not_go_together_are_put_together_anew():
    """Two halves that are not correlated are denoised each by itself, so pictures are made that the data does not hold."""
    u, v = (z.sign() * (0.5 + 0.5 * z.abs().clamp(max=1)) for z in draw(2, 1, 4, 4))
    o = torch.zeros_like(u)
    data = torch.stack([torch.cat(pair, 2) for pair in ((u, o), (-u, o), (o, v), (o, -v))])
    local, t = Local(Flow(), data, tile=2), times(3, (0.7, 0.4, 0.05))
    new = torch.cat([u, v], 2)[None].expand(3, 1, 4, 8)
    x = (1 - t.reshape(3, 1, 1, 1)) * new + t.reshape(3, 1, 1, 1) * draw(3, 1, 4, 8, seed=3)
    halves = [
        Empirical(Flow(), half)(part, t, {}).mean for half, part in zip(data.split(4, 3), x.split(4, 3), strict=True)
    ]
    torch.testing.assert_close(local(x, t, {}).mean, torch.cat(halves, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(local(x, t, {}).mean[2], new[2], rtol=0, atol=1e-6)
    assert float(nearest(Empirical(Flow(), data)(x, t, {}).mean[2:], data)) < 1e-6


def test_temperature_divides_the_distances():
    """Over open windows, doubling c is dividing distances by 4; a is 1 throughout in EDM."""
    data, process = smooth(40, 1, 5, 5), EDM(sigma_max=1.0)
    x = noised(process, data, times(3, 0.3))
    warm = Local(process, data, mask_threshold=0.0, temperature=4.0)(x, times(3, 0.3), {}).mean
    torch.testing.assert_close(warm, Empirical(process, data)(x, times(3, 0.6), {}).mean, rtol=0, atol=1e-5)


def test_low_noise_is_computed_without_cancellation():
    """Far from zero and among near copies, float32 expansions of squares would choose at random."""
    base, v = smooth(1, 1, 6, 6), 2e-4
    data = (base + 3 * v * draw(200, 1, 6, 6)).float()
    t, x = times(4, v), (1 - v) * data[:4].double() + v * draw(4, 1, 6, 6, seed=9)
    got = Local(Flow(), data, tile=1, mask_threshold=0.3)(x, t, {}).mean.flatten(1)
    for r in range(4):
        want = by_hand(data.double(), x[r], fields(data.double(), 1 - v, v, 0.3), 1 - v, v).diagonal()
        torch.testing.assert_close(got[r], want, rtol=0, atol=1e-8)


# ---------------------------------------------------------------- all three


def models(data: Tensor, **options) -> list:
    labels = torch.arange(len(data)) % 2
    local = [Local(Flow(), data, labels, tile=tile, **options) for tile in (1, 2)]
    return [Empirical(Flow(), data, labels, **options), *local]


def test_the_size_of_blocks_does_not_matter():
    data, t = smooth(100, 1, 5, 5), times(6)
    x, cond = noised(Flow(), data, t), {"label": torch.tensor([0, 1, -1, 1, 0, -1])}
    for small, one, large in zip(models(data, block=1), models(data, block=33), models(data), strict=True):
        for model in (small, one):
            torch.testing.assert_close(model(x, t, cond).mean, large(x, t, cond).mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_does_not_depend_on_the_others(dtype):
    """To the bit, where the matrix products are those of MKL."""
    data, t = smooth(150, 1, 9, 9), times(24, (0.6, 0.3, 0.01))
    x, label = noised(Flow(), data, t).to(dtype), torch.arange(24) * 5 % 3 - 1
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for model in (*models(data, block=45), Wiener.fit(Flow(), data)):
        cond = {} if isinstance(model, Wiener) else {"label": label}
        whole = model(x, t, cond).mean
        assert whole.dtype == dtype
        for rows in (order, order[:7], order[:1]):
            part = model(x[rows], t[rows], {k: v[rows] for k, v in cond.items()}).mean
            if torch.backends.mkl.is_available():
                assert torch.equal(part, whole[rows]), type(model).__name__
            torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-5)


def test_the_average_is_a_softmax_of_the_whole():
    """Blocks in any order, with filling, logits of any size, and weights that differ by thousands of orders."""
    logits, values = 3000 * draw(4, 60), draw(3, 60)
    logits[1] += 1e6
    logits[2, 7] = logits[2, 50] = logits[2].max() + 1
    found = []
    for block in (range(40, 60), range(33), range(33, 40)):
        width = torch.zeros(4, 48, dtype=torch.float64)
        width[:, : len(block)] = logits[:, list(block)]
        filled = torch.nn.functional.pad(values[:, list(block)], (0, 48 - len(block)), value=9.0)
        found.append(Average.of(width, len(block), filled))
    for average in (found[0].merge(found[1]).merge(found[2]), found[2].merge(found[1].merge(found[0]))):
        torch.testing.assert_close(average.mean, logits.softmax(1) @ values.T, rtol=0, atol=1e-12)
        torch.testing.assert_close(average.log, logits.logsumexp(1), rtol=1e-14, atol=0)


def test_threads_change_neither_bits_nor_slopes_and_are_given_back():
    data, t = smooth(150, 1, 6, 6), times(3)
    x, made = noised(Flow(), data, t), {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for k, model in enumerate(models(data, block=16)):
                made[threads, k] = model(x, t, {}).mean
                slope = torch.autograd.functional.vjp(lambda v, m=model: m(v, t, {}).mean, x, torch.ones_like(x))[1]
                made[threads, k, "slope"] = slope
        with pytest.raises(ZeroDivisionError):
            Bank(data, block=16).averages((0, 150), torch.float64, lambda *_: 1 // 0)
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as other:  # what a thread that is new to torch gets
            assert other.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
    for k in range(3):
        assert torch.equal(made[1, k], made[3, k])
        torch.testing.assert_close(made[1, k, "slope"], made[3, k, "slope"], rtol=0, atol=1e-5)


def ddim(denoiser, x: Tensor, steps: int = 30) -> Tensor:
    """Deterministic sampling of a flow, uniform in log-SNR."""
    process = denoiser.process
    grid = [*process.time(torch.linspace(-5, 6, steps).double()).tolist(), 0.0]
    for t, s in itertools.pairwise(grid):
        now = times(len(x), t)
        w = process.weights(now, times(len(x), s), 0.0)
        x = w.x * x + w.x0 * denoiser(x, now, {}).mean
    return x


def test_exact_samples_repeat_the_data_and_local_ones_do_not():
    data, x = smooth(200, 1, 8, 8), draw(6, 1, 8, 8, seed=11)
    assert float(nearest(ddim(Empirical(Flow(), data), x), data).max()) < 1e-6
    made = ddim(Local(Flow(), data, mask_threshold=0.2), x)
    between = torch.cdist(data.flatten(1), data.flatten(1)).fill_diagonal_(9).amin(1).mean()
    assert float(nearest(made, data).min()) > 0.5 * float(between)
    # and they are made of the same stuff: neighbours as alike as those of the data
    rough = lambda v: float((v[..., 1:, 1:] - v[..., 1:, :-1]).square().mean())  # noqa: E731
    assert 0.5 < rough(made) / rough(data) < 1.5


def test_what_fits_not_is_refused():
    data = smooth(6, 1, 4, 4)
    with pytest.raises(EbbError, match=r"pictures \(N, C, H, W\)"):
        Empirical(Flow(), data[0])
    with pytest.raises(EbbError, match="floats or uint8"):
        Empirical(Flow(), data.long())
    with pytest.raises(EbbError, match="every one of the 6 pictures a label"):
        Empirical(Flow(), data, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(EbbError, match="shape \\(1, 4, 4\\), not \\(1, 4, 5\\)"):
        Empirical(Flow(), data)(draw(2, 1, 4, 5), times(2), {})
    for bad in ({"tile": 0}, {"mask_threshold": 1.5}, {"temperature": 0.0}, {"block": 0}):
        with pytest.raises(EbbError):
            Local(Flow(), data, **bad)
    with pytest.raises(EbbError):
        Wiener(Flow(), data[0], torch.eye(15))


def test_a_process_with_a_far_end_is_refused():
    from ebbtide.core import registry

    with pytest.raises(EbbError, match="without a far end"):
        Local(registry.make("process", {"name": "residual"}), smooth(6, 1, 4, 4))
