"""The names of k-diffusion and ComfyUI as plans."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.interop.samplers import DIFFERS, SAMPLERS, SCHEDULERS, UNSUPPORTED, grid_of, plan_of, solver_of

COMFY = """
    euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0 exp_heun_2_x0_sde dpm_2 dpm_2_ancestral
    lms dpm_fast dpm_adaptive dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_cfg_pp
    dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm ipndm ipndm_v
    deis res_multistep res_multistep_cfg_pp res_multistep_ancestral res_multistep_ancestral_cfg_pp gradient_estimation
    gradient_estimation_cfg_pp er_sde seeds_2 seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2
"""
SD: dict[str, Any] = {"name": "vp-table", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def levels(spec: dict[str, Any], process: Any) -> Tensor:
    """sigma at the times of a grid but the last."""
    made = registry.make("process", process)
    times = registry.make("grid", spec).points(made, None)
    assert times[-1] == 0
    return (-made.lam(times[:-1])).exp()


@pytest.mark.parametrize("name", COMFY.split())
def test_every_name_is_a_solver_or_says_why_not(name: str) -> None:
    plain = name.removesuffix("_gpu")
    assert (plain in SAMPLERS) != (plain in UNSUPPORTED)
    if plain in UNSUPPORTED:
        with pytest.raises(EbbError, match=f"'{name}' has no counterpart.*take '{UNSUPPORTED[plain][1]}'"):
            plan_of(name)
        assert UNSUPPORTED[plain][1] in SAMPLERS
    else:
        assert solver_of("sample_" + name).items() <= plan_of(name, steps=5).solve.items()


def test_the_notes_are_about_names_that_exist() -> None:
    assert set(DIFFERS) <= set(SAMPLERS)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_runs(sampler: str) -> None:
    process = registry.make("process", SD)
    mixture = GaussianMixture(process, [1.0], torch.zeros(1, 2, dtype=torch.float64) + 0.7, 0.3)
    model = ebb.load(mixture, like=torch.zeros(2, dtype=torch.float64))
    x = ebb.sample(model, plan_of(sampler, "karras", 24, process=SD), n=200, seed=3).x
    assert abs(float(x.mean()) - 0.7) < 0.12
    assert float(x.var()) == pytest.approx(0.3, rel=0.6) or sampler == "lcm"  # LCM jumps to the mean of the data


@pytest.mark.parametrize("process", [SD, "flow"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 20, 30])
def test_every_scheduler_makes_as_many_steps_as_asked(scheduler: str, process: Any, steps: int) -> None:
    process = {"name": process} if isinstance(process, str) else process
    found = levels(grid_of(scheduler, steps, process=process), process)
    assert len(found) == steps
    assert bool((found[1:] < found[:-1]).all())


def test_schedulers_visit_the_levels_of_their_definition() -> None:
    made = registry.make("process", SD)
    table = made.rows.exp()
    n, total = 20, 1000
    sigma = lambda name: levels(grid_of(name, n, process=SD), SD)  # noqa: E731
    at = lambda index: torch.from_numpy(np.exp(np.interp(index, np.arange(total), made.rows.numpy())))  # noqa: E731

    assert torch.allclose(sigma("normal"), at(np.linspace(total - 1, 0, n)), rtol=1e-9)
    assert torch.allclose(sigma("sgm_uniform"), at(np.linspace(total - 1, 0, n + 1)[:-1]), rtol=1e-9)
    assert torch.allclose(sigma("simple"), table[[-(1 + int(k * total / n)) for k in range(n)]], rtol=1e-9)
    assert torch.allclose(sigma("ddim_uniform"), table[list(range(1, total, total // n))[::-1]], rtol=1e-9)
    ends = float(table[-1]), float(table[0])
    for name in ("karras", "exponential", "kl_optimal"):
        assert sigma(name)[[0, -1]].tolist() == pytest.approx(ends, rel=1e-9)
    thirty = levels(grid_of("simple", 30, process=SD), SD)
    assert torch.allclose(thirty, table[[-(1 + int(k * total / 30)) for k in range(30)]], rtol=1e-9)


def test_a_flow_counts_its_levels_in_time_and_shifts_them() -> None:
    shifted = registry.make("grid", grid_of("normal", 10, process="flow", shift=3.0)).points(None, None)
    even = torch.linspace(1, 0.001, 10, dtype=torch.float64)
    assert torch.allclose(shifted[:-1], 3 * even / (1 + 2 * even))
    karras = registry.make("grid", grid_of("karras", 10, process="flow")).points(None, None)
    roots = karras[:-1] ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff().mean().expand(9), rtol=1e-9)
    assert karras[0] == 1
    assert float(karras[-2]) == pytest.approx(0.001)
    with pytest.raises(EbbError, match="process='flow'"):
        grid_of("normal", 10, process=SD, shift=3.0)


def test_fast_spends_what_it_is_given_and_adaptive_chooses() -> None:
    process = registry.make("process", SD)
    mixture = GaussianMixture(process, [1.0], torch.zeros(1, 2, dtype=torch.float64), 0.3)
    model = ebb.load(mixture, like=torch.zeros(2, dtype=torch.float64))
    for calls in (1, 2, 3, 4, 7, 9, 12, 14):
        assert ebb.sample(model, plan_of("dpm_fast", "karras", calls, process=SD)).calls == calls
    assert plan_of("dpm_adaptive", "karras").grid["name"] == "adaptive"


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(EbbError, match="did you mean dpmpp_2m"):
        plan_of("dpmpp_2mm")
    with pytest.raises(EbbError, match="did you mean karras"):
        plan_of("euler", "karas")
    with pytest.raises(EbbError, match="not 1000"):
        plan_of("euler", "normal", 1000)
    with pytest.raises(EbbError, match="levels of noise"):
        plan_of("euler", "karras", process={"name": "masked", "vocab": 3})
