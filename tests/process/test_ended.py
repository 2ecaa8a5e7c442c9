"""Processes with an end: their chains against brute-force Gaussian conditioning, their ends, their published updates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.registry import make
from ebbtide.core.state import Pred

ENDED = {
    "bridge": {"name": "bridge", "kappa": 0.7},
    "ou-constant": {"name": "mean-reverting", "speed": "constant", "sigma": 0.3},
    "ou-linear": {"name": "mean-reverting", "speed": "linear"},
    "ou-cosine": {"name": "mean-reverting"},
    "rddm": {"name": "residual"},
    "rddm-even": {"name": "residual", "kappa": 1.0, "shift_speed": "constant", "noise_speed": "constant"},
    "rddm-mixed": {"name": "residual", "kappa": 0.5, "shift_speed": "increasing", "noise_speed": "decreasing"},
    "rddm-ddpm": {"name": "residual", "kappa": 1.0, "shift_speed": "diffusion", "noise_speed": "diffusion"},
    "resshift-4": {"name": "resshift"},
    "resshift-15": {"name": "resshift", "steps": 15, "power": 0.8, "noise_first": 0.04},
    "resfusion": {"name": "resfusion"},
    "resfusion-flat": {"name": "resfusion", "beta_min": 5.0, "beta_max": 5.0},
}
ends = pytest.mark.parametrize("name", ENDED)


def process(name: str):
    return make("process", ENDED[name])


def time(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def noise(n: int, seed: int = 0) -> Noise:
    return Noise(keys(range(seed, seed + n)), torch.zeros(n, dtype=torch.int64))


def pairs() -> tuple[Tensor, Tensor]:
    """All pairs (t, s) of a grid with the ends of time."""
    grid = torch.linspace(0, 1, 9, dtype=torch.float64)
    return tuple(torch.cartesian_prod(grid, grid).unbind(1))  # type: ignore[return-value]


def carried(name: str, p, s: Tensor, t: Tensor) -> Tensor:
    """cov(x_s, x_t | x0, y) for s < t, from each paper's own chain and nothing else."""
    if name == "bridge":
        # a free Brownian motion from x0, of variance kappa^2 t, conditioned on where it is at t = 1
        free = lambda u, v: 0.49 * torch.minimum(u, v)  # noqa: E731
        one = torch.ones_like(s)
        return free(s, t) - free(s, one) * free(t, one) / free(one, one)
    if name.startswith("ou"):
        # x_t = e^(-theta_t + theta_s) x_s + fresh noise
        return p.a(t) / p.a(s) * p.c(s) ** 2
    if name.startswith("resfusion"):
        # x - (y - x0) is a variance-preserving diffusion with signal weight m, and m = 1 - b
        return (1 - p.b(t)) / (1 - p.b(s)) * p.c(s) ** 2
    return p.c(s) ** 2  # x_t = x_s + (b_t - b_s)(y - x0) + fresh noise


@ends
def test_eta_one_is_the_posterior_of_the_papers_chain(name):
    p = process(name)
    t, s = (v[(pairs()[1] < pairs()[0]) & (pairs()[0] < 1)] for v in pairs())
    s, t = s[s > 0], t[s > 0]
    gain = carried(name, p, s, t) / p.c(t) ** 2
    w = p.weights(t, s, 1.0)
    torch.testing.assert_close(w.x, gain)
    torch.testing.assert_close(w.noise**2, p.c(s) ** 2 - gain**2 * p.c(t) ** 2, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(w.x0, p.a(s) - gain * p.a(t), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(w.y, p.b(s) - gain * p.b(t), rtol=1e-9, atol=1e-13)


@ends
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_every_move_keeps_the_marginals(name, eta):
    p = process(name)
    t, s = pairs()
    w = p.weights(t, s, eta)
    assert all(bool(torch.isfinite(v).all()) for v in w)
    up = s > t  # the forward transition does not know x0: it stands in for it with what x_t shows
    torch.testing.assert_close(w.x * p.a(t) + w.x0, p.a(s), rtol=0, atol=1e-12)
    torch.testing.assert_close(w.x * p.b(t) + w.y, p.b(s), rtol=0, atol=1e-12)
    torch.testing.assert_close((w.x * p.c(t)) ** 2 + w.noise**2, p.c(s) ** 2, rtol=0, atol=1e-12)
    assert bool((w.x0[up] == 0).all())
    still = s == t
    assert bool((w.x[still] == 1).all())
    assert all(bool((v[still] == 0).all()) for v in (w.x0, w.y, w.noise))


@ends
def test_the_ends_of_time(name):
    p = process(name)
    zero, one = time(0.0), time(1.0)
    assert (p.a(zero), p.b(zero), p.c(zero)) == (1, 0, 0)
    lam = p.lam(torch.linspace(0, 1, 200, dtype=torch.float64))
    assert bool((lam.diff() < 0).all())
    between = lam[5:195:7]
    torch.testing.assert_close(p.lam(p.time(between)), between, rtol=1e-7, atol=1e-7)
    # the start lets y stand in for the data: it is corrupt(y, 1) with the same noise
    y = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = one.expand(5)
    start = p.prior(torch.zeros_like(y), t, noise(5), {"y": y})
    torch.testing.assert_close(start, p.corrupt(y, t, noise(5), {"y": y}))


@ends
def test_moves_by_statistics(name):
    """corrupt(t) then move(t -> s) with the true data has the mean and spread of corrupt(s); so has a way back up."""
    p, n = process(name), 20000
    x0, y = torch.full((n, 2), 1.5), torch.tensor([-1.0, 0.5]).expand(n, 2)
    cond, pred = {"y": y}, Pred(mean=x0)
    for t, s in ((1.0, 0.55), (0.8, 0.3), (0.3, 0.8)):
        at, to = time(t).expand(n), time(s).expand(n)
        x = p.corrupt(x0, at, noise(n), cond)
        for eta in (0.0, 1.0):
            got = p.move(x, pred if s < t else None, at, to, eta, noise(n, 10**6), cond)
            a, b, c = p.a(time(s)).item(), p.b(time(s)).item(), p.c(time(s)).item()
            centre = a * 1.5 + b * torch.tensor([-1.0, 0.5])
            torch.testing.assert_close(got.mean(0), centre, rtol=0, atol=5 * c / math.sqrt(n) + 1e-6)
            torch.testing.assert_close(got.std(0), torch.full((2,), c), rtol=0.03, atol=1e-6)


@ends
def test_units_with_times_of_their_own(name):
    """Frames at times of their own move as they would alone, to the bit; shared times too."""
    p = process(name)
    gen = torch.Generator().manual_seed(1)
    x, x0, y = (torch.randn(2, 3, 5, generator=gen) for _ in range(3))
    t = time(1.0, 0.7, 0.2).expand(2, 3)
    s = time(0.4, 0.7, 0.9).expand(2, 3)
    key = Noise(keys([4, 9], (3,)), torch.zeros(2, 3, dtype=torch.int64))
    whole = p.move(x, Pred(mean=x0), t, s, 0.5, key, {"y": y})
    assert torch.equal(whole[:, 1], x[:, 1])
    for f in range(3):
        one = Noise(key.key[:, f : f + 1], key.i[:, f : f + 1])
        cut = [v[:, f : f + 1] for v in (x, x0, y, t, s)]
        alone = p.move(cut[0], Pred(mean=cut[1]), cut[3], cut[4], 0.5, one, {"y": cut[2]})
        torch.testing.assert_close(whole[:, f : f + 1], alone, rtol=2e-6, atol=2e-6)  # floats and tensors round apart
        w, v = p.weights(cut[3], cut[4], 0.5), p.weights_of(cut[3], cut[4], 0.5)
        assert all(a == b[0, 0] for a, b in zip(w, v, strict=True))


def test_the_bridge_ends_at_y_to_the_bit_and_starts_with_fresh_noise():
    p = process("bridge")
    y = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    x0 = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    one = time(1.0).expand(4)
    x = p.corrupt(x0, one, noise(4), {"y": y})
    assert torch.equal(x, y)
    assert torch.equal(p.prior(torch.zeros_like(y), one, noise(4), {"y": y}), y)
    torch.testing.assert_close(p.move(x, Pred(mean=x0), one, one * 0, 0.0, noise(4), {"y": y}), x0)
    assert p.weights(one, one / 2, 0.0).noise == p.c(time(0.5)).item()  # nothing to keep: all noise is new


@pytest.mark.parametrize("steps", [4, 15])
def test_resshift_visits_the_papers_times(steps):
    """sqrt(eta_t) grows by the paper's recursion, and the posterior is its equation with eta_t and eta_{t-1}."""
    p = make("process", {"name": "resshift", "steps": steps})
    growth = (0.99 / 0.1**2) ** (1 / (2 * (steps - 1)))
    eta = [0.1**2 * growth ** (2 * (k / (steps - 1)) ** 0.3 * (steps - 1)) for k in range(steps)]
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    torch.testing.assert_close(p.b(t), torch.tensor(eta, dtype=torch.float64))
    assert p.c(t[:1]).item() == pytest.approx(0.2)
    for k in range(1, steps):
        w = p.weights(t[k : k + 1], t[k - 1 : k], 1.0)
        assert w.x == pytest.approx(eta[k - 1] / eta[k])
        assert w.x0 == pytest.approx(1 - eta[k - 1] / eta[k])
        assert w.y == pytest.approx(0, abs=1e-12)
        assert w.noise**2 == pytest.approx(4 * eta[k - 1] / eta[k] * (eta[k] - eta[k - 1]))


def test_resshift_returns_to_the_data_along_its_posterior():
    p, n = process("resshift-4"), 6
    gen = torch.Generator().manual_seed(4)
    x0, y = (torch.randn(n, 3, generator=gen, dtype=torch.float64) for _ in range(2))
    x = p.prior(torch.zeros_like(x0), time(1.0).expand(n), noise(n), {"y": y})
    for k in (4, 3, 2, 1):
        at, to = time(k / 4).expand(n), time((k - 1) / 4).expand(n)
        x = p.move(x, Pred(mean=x0), at, to, 1.0, noise(n, 100 * k), {"y": y})
    torch.testing.assert_close(x, x0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["rddm", "rddm-even", "rddm-mixed", "rddm-ddpm"])
def test_residual_takes_the_papers_step(name):
    """I_s = I_t - (A_t - A_s) R - (B_t - sqrt(B_s^2 - sigma^2)) eps + sigma z, sigma^2 = e (B_t^2 - B_s^2) B_s^2 / B_t^2."""
    p = process(name)
    x, x0, y = torch.randn(3, 1, 50, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    z = noise(1).normal(x)
    for t, s, e in ((0.9, 0.5, 0.0), (1.0, 0.35, 1.0), (0.6, 0.1, 0.49)):
        at, to = time(t), time(s)
        drift, big, small = y - x0, p.c(at).item(), p.c(to).item()
        shift_t, shift_s = p.b(at).item(), p.b(to).item()
        eps = (x - x0 - shift_t * drift) / big
        var = e * (big**2 - small**2) * small**2 / big**2
        paper = x - (shift_t - shift_s) * drift - (big - math.sqrt(small**2 - var)) * eps + math.sqrt(var) * z
        w = p.weights(at, to, math.sqrt(e))
        ours = p.apply(w, x, [(w.x0, x0)], {"y": y}, noise(1))
        torch.testing.assert_close(ours, paper, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("speed", ["constant", "decreasing", "increasing"])
def test_speeds_of_the_residual_are_what_they_say(speed):
    """b and c^2 / kappa^2 grow from 0 to 1 at a rate that is a constant, or falls to nought, or rises from nought."""
    p = make("process", {"name": "residual", "kappa": 0.5, "shift_speed": speed, "noise_speed": speed})
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    line = {
        "constant": torch.ones(100),
        "decreasing": torch.arange(100, 0, -1) - 0.5,
        "increasing": torch.arange(100) + 0.5,
    }
    rate = (line[speed] / line[speed].sum()).double()
    torch.testing.assert_close(p.b(t).diff(), rate, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close((p.c(t) ** 2).diff(), 0.25 * rate, rtol=1e-6, atol=1e-12)


def test_residual_of_a_diffusion_is_ddim_when_y_is_nothing():
    t, s = (v[pairs()[1] < pairs()[0]] for v in pairs())
    ours, ddim = (p.weights(t, s) for p in (process("rddm-ddpm"), make("process", {"name": "vp-linear"})))
    for k in ("x", "x0", "noise"):
        torch.testing.assert_close(getattr(ours, k), getattr(ddim, k), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "speed"), [("ou-constant", 0), ("ou-linear", 1), ("ou-cosine", 2)])
def test_mean_reversion_solves_its_stochastic_equation(name, speed):
    """Mean and variance by small Euler steps of dm = r (y - m) dt, dv = 2 r (sigma^2 - v) dt, the rate r as published."""
    p = process(name)
    n = 40000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    f = math.pi / 2 * (u + 0.008) / 1.008
    first = math.cos(math.pi / 2 * 0.008 / 1.008) ** 2
    rate = [torch.ones(n).double(), 1e-4 + (0.02 - 1e-4) * u, 1 - f.cos() ** 2 / first][speed]
    rate = rate * -math.log(p.last) / rate.mean()
    mean, var, found = 1.0, 0.0, []  # from x0 = 1 towards y = 0
    for k, r in enumerate(rate.tolist()):
        mean += -r * mean / n
        var += 2 * r * (p.sigma**2 - var) / n
        if (k + 1) % (n // 8) == 0:
            found.append(((k + 1) / n, mean, var))
    t, mean, var = (torch.tensor(v, dtype=torch.float64) for v in zip(*found, strict=True))
    torch.testing.assert_close(p.a(t), mean, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(p.c(t) ** 2, var, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(p.a(t) + p.b(t), torch.ones_like(t))
    assert p.a(time(1.0)).item() == pytest.approx(p.last)


def test_resfusion_ends_where_the_data_has_no_weight():
    p = process("resfusion")
    one = time(1.0)
    assert p.a(one).item() == pytest.approx(0, abs=1e-15)
    assert p.b(one).item() == pytest.approx(0.5)
    assert p.c(one).item() == pytest.approx(math.sqrt(0.75))
    # on the clock of vp-linear: the same m, only stretched
    whole = make("process", {"name": "vp-linear"})
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    cut = whole.time(time(math.log(0.5 / math.sqrt(0.75))))
    torch.testing.assert_close(1 - p.b(t), whole.a(t * cut), rtol=1e-9, atol=1e-12)


def test_what_is_missing_or_out_of_range_is_said():
    p = process("bridge")
    with pytest.raises(EbbError, match="far end"):
        p.prior(torch.zeros(1, 2), time(1.0), noise(1), {})
    with pytest.raises(EbbError, match="noise_first"):
        make("process", {"name": "resshift", "kappa": 0.1})
    with pytest.raises(EbbError, match="beta_max"):
        make("process", {"name": "resfusion", "beta_max": 1.0})
    with pytest.raises(EbbError, match="kappa"):
        make("process", {"name": "bridge", "kappa": 0})
