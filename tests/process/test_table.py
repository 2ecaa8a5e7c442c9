"""The training clock of DDPM: its rows, what lies between them, and its ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ebbtide.core import registry
from ebbtide.core.errors import EbbError

SCHEDULES = ("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2")


def table(**params: Any) -> Any:
    return registry.make("process", {"name": "vp-table", **params})


def rows(steps: int = 1000) -> Tensor:
    return (torch.arange(steps, dtype=torch.float64) + 1) / steps


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rows_are_the_products_of_the_chain(schedule: str, zero: bool) -> None:
    from diffusers import DDPMScheduler

    fields = {"beta_schedule": schedule, "beta_start": 0.00085, "beta_end": 0.012}
    peer = DDPMScheduler(**fields, rescale_betas_zero_snr=zero).alphas_cumprod.double()
    a = table(**fields, zero_terminal=zero).a(rows())
    # the peer's table is float32: a product of a thousand roundings
    assert float((a**2 - peer).abs().max()) < 3e-6
    assert a[-1] == 0 if zero else a[-1] > 0


def test_each_step_of_the_chain_adds_its_beta() -> None:
    p = table(betas=[0.1, 0.2, 0.5], steps=3)
    t = rows(3)
    assert torch.allclose((p.a(t[1:]) / p.a(t[:-1])) ** 2, torch.tensor([0.8, 0.5], dtype=torch.float64), atol=1e-15)
    w = p.weights(t[:1], t[1:2])
    assert w.noise**2 == pytest.approx(0.2, abs=1e-15)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_preserves_variance_and_inverts(schedule: str, zero: bool) -> None:
    p = table(beta_schedule=schedule, zero_terminal=zero)
    t = torch.linspace(0, 1, 20011, dtype=torch.float64)
    assert float((p.a(t) ** 2 + p.c(t) ** 2 - 1).abs().max()) < 1e-14
    assert float((p.time(p.lam(t)) - t)[:-1].abs().max()) < 1e-12
    lam = p.lam(t)
    assert bool((lam[1:] < lam[:-1]).all())
    assert p.a(t)[0] == 1
    assert p.c(t)[0] == 0
    ends = torch.tensor([1e3, -1e3], dtype=torch.float64)
    assert float((p.time(ends) - torch.tensor([0.0, 1.0])).abs().max()) < 1e-12


def test_between_rows_time_is_what_samplers_in_sigma_ask_for() -> None:
    """np.interp over log sigma, as k-diffusion and diffusers turn a level into a train step."""
    import numpy as np

    p = table(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    log_sigma = -p.lam(rows()).numpy()
    wanted = np.linspace(log_sigma[0], log_sigma[-1], 777)
    index = np.interp(wanted, log_sigma, np.arange(1000))
    found = p.time(-torch.from_numpy(wanted)) * 1000 - 1
    assert float((found - torch.from_numpy(index)).abs().max()) < 1e-9


def test_the_terminal_cell_is_a_line_in_signal_to_noise() -> None:
    p = table(zero_terminal=True)
    t = torch.tensor([0.999, 0.99925, 0.9995, 0.99975, 1.0], dtype=torch.float64)
    ratio = p.a(t) / p.c(t)
    assert torch.allclose(ratio / ratio[0], torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64), atol=1e-9)


def test_rates_are_those_of_the_law() -> None:
    """da/dt by the process against finite differences, at rows and between them: from the side where a cell begins."""
    p = table()
    t, d = torch.tensor([0.0, 0.2503, 0.7, 0.99], dtype=torch.float64), 1e-7
    for rate, f in zip(p.rates(t)[:2], (p.a, p.c), strict=True):
        assert torch.allclose(rate, (f(t + d) - f(t)) / d, rtol=1e-4, atol=1e-5)


def test_bad_tables_are_named() -> None:
    with pytest.raises(EbbError, match="give steps=2"):
        table(betas=[0.1, 0.2])
    with pytest.raises(EbbError, match="beta_schedule"):
        table(beta_schedule="quadratic")
    with pytest.raises(EbbError, match="beta_end"):
        table(beta_end=1.5)


def test_the_cosine_rows_tend_to_the_cosine_process() -> None:
    fine = table(beta_schedule="squaredcos_cap_v2", steps=4000)
    cosine = registry.make("process", {"name": "vp-cosine"})
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    assert float((fine.a(t) - cosine.a(t)).abs().max()) < math.pi / 4000
