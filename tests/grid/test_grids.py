"""Grids against the packages whose lists they are, and against the laws that define them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.state import State
from ebbtide.denoise.exact import Gaussian
from ebbtide.denoise.model import process
from ebbtide.grid.beta import beta_cdf, beta_quantile


def points(name: str, over: str = "flow", shape: tuple[int, ...] = (2,), **parameters: Any) -> Tensor:
    """The times of a grid on a process, for elements of this shape."""
    state = State.blank(torch.zeros(1, *shape), {}, [0])
    return registry.make("grid", {"name": name, **parameters}).points(process(over), state)


def sigma(times: Tensor, over: str) -> Tensor:
    """c / a at times."""
    return (-process(over).lam(times)).exp()


@pytest.mark.parametrize("n", [1, 2, 3, 10, 50])
@pytest.mark.parametrize(
    "spec",
    [
        {"name": "quadratic"},
        {"name": "beta"},
        {"name": "beta", "space": "noise"},
        {"name": "linear-quadratic"},
        {"name": "shift"},
        {"name": "shift", "dynamic": True},
        {"name": "shift", "terminal": 0.1, "last": 0.01},
        {"name": "clock"},
        {"name": "clock", "spacing": "leading"},
        {"name": "clock", "spacing": "linspace", "spare": True},
        {"name": "kl-optimal"},
        {"name": "bent"},
        *({"name": "karras", "rho": rho} for rho in (0.3, 1.0, 3.0, 30.0)),
    ],
    ids=lambda s: ",".join(map(str, s.values())),
)
def test_every_list_is_n_falling_steps_that_end_in_the_data(spec: dict[str, Any], n: int):
    for over in ("flow", "vp-linear", "ve"):
        times = points(over=over, steps=n, shape=(4, 8, 8), **spec)
        assert len(times) == n + 1
        assert float(times[-1]) == 0
        assert float(times[0]) <= 1
        assert bool((times[1:] < times[:-1]).all()), (over, times)


# ---------------------------------------------------------------- against the packages


def test_beta_quantiles_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    p = np.linspace(0, 1, 41)
    for a, b in [(0.6, 0.6), (0.3, 2.0), (5.0, 0.5), (1.0, 1.0), (0.05, 0.05), (100.0, 60.0)]:
        ours = np.array([beta_quantile(float(v), a, b) for v in p])
        np.testing.assert_allclose(ours, stats.beta.ppf(p, a, b), rtol=1e-12, atol=1e-300)
        np.testing.assert_allclose([beta_cdf(float(v), a, b) for v in p], stats.beta.cdf(p, a, b), rtol=1e-12)


def test_even_beta_is_even():
    assert torch.allclose(points("beta", alpha=1, beta=1, steps=7), points("linear", steps=7), atol=1e-15)


def test_beta_of_a_list_of_levels_is_that_of_diffusers():
    pytest.importorskip("scipy")
    from diffusers import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler(use_beta_sigmas=True, beta_schedule="scaled_linear", beta_end=0.012)
    theirs.set_timesteps(9)
    first, last = float(theirs.sigmas[0]), float(theirs.sigmas[-2])
    ours = points("beta", "ve", space="noise", steps=9, sigma_min=last, sigma_max=first)
    assert torch.allclose(sigma(ours, "ve")[:-1], theirs.sigmas[:-1].double(), rtol=2e-6)


@pytest.mark.parametrize("n", [2, 3, 8, 9, 64])
def test_linear_quadratic_is_mochis(n: int):
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

    theirs = torch.tensor(linear_quadratic_schedule(n, 0.025), dtype=torch.float64)
    assert torch.allclose(points("linear-quadratic", steps=n)[:-1], theirs, atol=1e-14)
    theirs = torch.tensor(linear_quadratic_schedule(n, 0.02, linear_steps=1), dtype=torch.float64)
    assert torch.allclose(points("linear-quadratic", steps=n, threshold=0.02, linear_steps=1)[:-1], theirs, atol=1e-14)


def test_linear_quadratic_is_smooth_where_its_pieces_meet():
    """The slopes on both sides of the joint agree, to the curvature of one step."""
    t = points("linear-quadratic", steps=4000)
    steps = t[:-1] - t[1:]
    assert float(steps[1998]) == pytest.approx(float(steps[2001]), rel=0.1)
    levels = points("linear-quadratic", "ve", steps=8, sigma_max=10.0)
    assert torch.allclose(sigma(levels, "ve")[:-1], 10 * points("linear-quadratic", steps=8)[:-1], rtol=1e-9)


def flow_scheduler(**config: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def test_fixed_shift_is_that_of_the_flow_scheduler():
    theirs = flow_scheduler(shift=3.0)
    theirs.set_timesteps(12)
    last = 3.0 / 1000 / (1 + 2 / 1000)  # shifted once by the constructor; its schedule shifts it again
    assert torch.allclose(points("shift", steps=12, last=last), theirs.sigmas.double(), atol=1e-6)


@pytest.mark.parametrize("side", [16, 64, 128])
@pytest.mark.parametrize("form", ["exponential", "linear"])
def test_shift_by_resolution_is_that_of_flux(side: int, form: str):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    theirs = flow_scheduler(use_dynamic_shifting=True, time_shift_type=form)
    mu = calculate_shift((side // 2) ** 2, 256, 4096, 0.5, 1.15)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 10, 10), mu=mu)
    ours = points("shift", steps=10, dynamic=True, form=form, shape=(16, side, side))
    assert torch.allclose(ours, theirs.sigmas.double(), atol=1e-6)
    told = points("shift", steps=10, dynamic=True, form=form, length=(side // 2) ** 2)
    assert torch.equal(ours, told)


def test_a_stretched_shift_is_that_of_the_flow_scheduler():
    theirs = flow_scheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 10, 10), mu=1.15)
    ours = points("shift", steps=10, shift=math.exp(1.15), terminal=0.1)
    assert torch.allclose(ours, theirs.sigmas.double(), atol=1e-6)


def test_a_shift_moves_the_log_snr_of_a_flow_by_a_constant():
    plain, bent = points("linear", steps=10)[1:-1], points("shift", steps=10, shift=5.0)[1:-1]
    gap = process("flow").lam(plain) - process("flow").lam(bent)
    assert torch.allclose(gap, torch.full_like(gap, math.log(5)), atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 10, 20, 33, 250])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_spacings_are_those_of_ddim(spacing: str, n: int):
    from diffusers import DDIMScheduler

    offset = 1 if spacing == "leading" else 0
    theirs = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(n)
    ours = points("clock", spacing=spacing, steps=n, offset=offset)
    index = ours[:-1] * 1000 - 1
    if n == 1 and spacing == "linspace":  # numpy's list of one begins at 0, which is no noise at all
        assert index.tolist() == [999]
    else:
        assert index.round().long().tolist() == theirs.timesteps.tolist()
    assert float((index - index.round()).abs().max()) < 1e-9


@pytest.mark.parametrize("n", [2, 10, 15])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_spare_spacings_are_those_of_dpm_solver(spacing: str, n: int):
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(timestep_spacing=spacing)
    theirs.set_timesteps(n)
    ours = points("clock", spacing=spacing, steps=n, spare=True)
    assert (ours[:-1] * 1000 - 1).round().long().tolist() == theirs.timesteps.tolist()


def test_unrounded_linspace_is_that_of_euler():
    from diffusers import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler(timestep_spacing="linspace")
    theirs.set_timesteps(7)
    ours = points("clock", spacing="linspace", steps=7, rounded=False)
    assert torch.allclose(ours[:-1] * 1000 - 1, theirs.timesteps.double(), atol=1e-4)


@pytest.mark.parametrize("rho", [0.5, 1.0, 2.0, 7.0, 40.0])
def test_karras_takes_any_rho(rho: float):
    from diffusers import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler()
    between = np.array([80.0, 0.002])
    reference = torch.as_tensor(theirs._convert_to_karras(between, 9)) if rho == 7 else None
    found = sigma(points("karras", "ve", steps=9, rho=rho, sigma_max=40.0, sigma_min=0.02), "ve")[:-1]
    root = found ** (1 / rho)
    gaps = root[1:] - root[:-1]
    assert torch.allclose(gaps, gaps.mean().expand(8), rtol=1e-6)
    if reference is not None:
        wide = sigma(points("karras", "edm", steps=9), "edm")[:-1]
        assert torch.allclose(wide, reference.double(), rtol=1e-6)


# ---------------------------------------------------------------- laws


def test_kl_optimal_divides_the_angle_evenly():
    found = sigma(points("kl-optimal", "ve", steps=9, sigma_min=0.05, sigma_max=40.0), "ve")[:-1]
    angle = found.atan()
    gaps = angle[:-1] - angle[1:]
    assert torch.allclose(gaps, gaps.mean().expand(8), atol=1e-9)
    assert float(found[0]) == pytest.approx(40.0)


def test_kl_optimal_is_the_best_list_for_euler_on_a_unit_gaussian():
    """There one step's gain falls short of the true one by cos(turn of the angle), so even turns lose least."""
    gaussian = Gaussian(process("ve"), torch.zeros(1), torch.eye(1, dtype=torch.float64))
    model = ebb.load(gaussian, like=torch.zeros(1, dtype=torch.float64))
    lost = {}
    for name in ("kl-optimal", "karras", "exponential"):
        plan = ebb.Plan(grid={"name": name, "steps": 10, "sigma_min": 0.05, "sigma_max": 40.0})
        _, state = begin(model, plan, n=3)
        end = ebb.sample(model, plan, n=3).x
        lost[name] = (end / state.x * math.hypot(1, 40.0)).squeeze(1)
    turn = (math.atan(40.0) - math.atan(0.05)) / 9
    want = math.cos(turn) ** 9 * math.cos(math.atan(0.05))
    assert lost["kl-optimal"].tolist() == pytest.approx([want] * 3, rel=1e-9)
    assert want > max(float(lost["karras"][0]), float(lost["exponential"][0]))


def test_quadratic_times_have_even_roots():
    root = points("quadratic", steps=6, first=0.8).sqrt()
    assert torch.allclose(root[:-1] - root[1:], root[0].expand(6) / 6)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ({"name": "clock", "steps": 11, "clock": 10}, "no 11 steps"),
        ({"name": "clock", "steps": 10, "clock": 10, "spacing": "leading", "offset": 1}, "leaves the clock"),
        ({"name": "clock", "spacing": "trailing", "offset": 1}, "leading"),
        ({"name": "linear-quadratic", "steps": 4, "threshold": 0.9}, "below"),
        ({"name": "linear-quadratic", "steps": 4, "linear_steps": 4}, "below steps"),
        ({"name": "shift", "max_length": 256}, "above base_length"),
        ({"name": "bent", "base_points": 4, "keep": 9}, "keep"),
    ],
)
def test_what_cannot_be_is_said(grid: dict[str, Any], told: str):
    with pytest.raises(EbbError, match=told):
        ebb.Plan(grid=grid)


def test_the_bent_list_is_even_in_its_power_of_time_between_two_levels_of_karras():
    bent = points("bent", "vp-scaled-linear", steps=8, sigma_min=0.0292, sigma_max=14.4)
    base = points("karras", "vp-scaled-linear", steps=12, sigma_min=0.0292, sigma_max=14.4)
    assert bent[[0, 7]].tolist() == pytest.approx(base[[0, 9]].tolist(), abs=1e-12)
    roots = bent[:-1] ** (1 / 1.2)
    assert torch.allclose(roots[1:] - roots[:-1], ((roots[-1] - roots[0]) / 7).expand(7), atol=1e-9)
