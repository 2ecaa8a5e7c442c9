"""Whole trajectories against diffusers' schedulers, by the plan that their own config becomes.

All agree to the last digits of float64 (the largest gap is 1e-13), but for what is not the same algorithm:

    3M, 3M SDE         the second difference is halved there, and has 1 taken off it in the SDE: see test_faults
    2S, 3S singlestep  its stages lie at the train steps between; equal where levels are even in log-SNR, as here. The second
                       stage of 3S is weighed as a midpoint step there, as in the paper here
    Euler with churn   the network is asked before the noise is raised, EDM asks after: see test_k_diffusion
    DDIM, PNDM         where the number of steps does not divide the clock, their steps do not end where the next begins
    PNDM without its warm-up, KDPM2 ancestral, flow Heun, SA-Solver's rule for two slopes: other algorithms, each told
    bh1 at the data, IPNDM's first step: not a number, and a division by 1e-8
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import peers
import pytest
import torch

from ebbtide.core import registry
from ebbtide.core.state import State
from ebbtide.interop.schedulers import read
from schedulers import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def lifted(monkeypatch: Any) -> Iterator[None]:
    """The peer in float64, and our draws in its place."""
    for module in peers.modules():
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", module.randn_tensor)
    peers.lift(monkeypatch)
    yield
    torch.set_default_dtype(torch.float32)


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def config(kind: str, **fields: Any) -> dict[str, Any]:
    return {"_class_name": kind, **fields}


DDIM = {"clip_sample": False}
DETERMINISTIC = {
    "ddim": config("DDIMScheduler", **DDIM),
    "ddim-sd": config("DDIMScheduler", **DDIM, **SD, steps_offset=1, set_alpha_to_one=False),
    "ddim-trailing": config("DDIMScheduler", **DDIM, timestep_spacing="trailing"),
    "ddim-v-zero": config(
        "DDIMScheduler",
        **DDIM,
        **SD,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
    ),
    "ddim-x0-cosine": config(
        "DDIMScheduler", **DDIM, beta_schedule="squaredcos_cap_v2", prediction_type="sample", steps_offset=1
    ),
    "euler": config("EulerDiscreteScheduler"),
    "euler-sd": config("EulerDiscreteScheduler", **SD, timestep_spacing="leading", steps_offset=1),
    "euler-karras": config("EulerDiscreteScheduler", **SD, use_karras_sigmas=True, prediction_type="v_prediction"),
    "euler-exponential": config("EulerDiscreteScheduler", **SD, use_exponential_sigmas=True),
    "euler-beta": config("EulerDiscreteScheduler", **SD, use_beta_sigmas=True),
    "euler-log": config("EulerDiscreteScheduler", **SD, interpolation_type="log_linear"),
    "euler-least": config("EulerDiscreteScheduler", **SD, use_karras_sigmas=True, final_sigmas_type="sigma_min"),
    "heun": config("HeunDiscreteScheduler"),
    "heun-karras": config("HeunDiscreteScheduler", use_karras_sigmas=True, timestep_spacing="trailing"),
    "2m": config("DPMSolverMultistepScheduler"),
    "2m-karras": config("DPMSolverMultistepScheduler", **SD, use_karras_sigmas=True),
    "2m-leading": config("DPMSolverMultistepScheduler", **SD, timestep_spacing="leading", steps_offset=1),
    "2m-trailing": config(
        "DPMSolverMultistepScheduler", **SD, timestep_spacing="trailing", prediction_type="v_prediction"
    ),
    "2m-lu": config("DPMSolverMultistepScheduler", **SD, use_lu_lambdas=True),
    "2m-beta": config("DPMSolverMultistepScheduler", **SD, use_beta_sigmas=True),
    "2m-clipped": config("DPMSolverMultistepScheduler", beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
    "1m": config("DPMSolverMultistepScheduler", solver_order=1),
    "2m-flow": config(
        "DPMSolverMultistepScheduler", use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    ),
    "edm": config("EDMEulerScheduler"),
    "edm-exponential": config("EDMEulerScheduler", sigma_schedule="exponential", sigma_max=20.0),
    "edm-2m": config("EDMDPMSolverMultistepScheduler"),
    "flow": config("FlowMatchEulerDiscreteScheduler"),
    "flow-shift": config("FlowMatchEulerDiscreteScheduler", shift=3.0),
    "flow-terminal": config("FlowMatchEulerDiscreteScheduler", shift=3.0, shift_terminal=0.1),
    "flow-karras": config("FlowMatchEulerDiscreteScheduler", shift=3.0, use_karras_sigmas=True),
}


MULTISTEP = {
    "lms": config("LMSDiscreteScheduler"),
    "lms-karras": config("LMSDiscreteScheduler", **SD, use_karras_sigmas=True),
    "deis": config("DEISMultistepScheduler", solver_order=2, lower_order_final=False),
    "deis-3": config("DEISMultistepScheduler", solver_order=3, lower_order_final=False),
    "deis-karras": config(
        "DEISMultistepScheduler", **SD, solver_order=3, use_karras_sigmas=True, lower_order_final=False
    ),
    "unipc": config("UniPCMultistepScheduler"),
    "unipc-bh1": config(
        "UniPCMultistepScheduler", solver_type="bh1", final_sigmas_type="sigma_min", lower_order_final=False
    ),
    "unipc-1": config("UniPCMultistepScheduler", solver_order=1),
    "unipc-3": config(
        "UniPCMultistepScheduler", solver_order=3, final_sigmas_type="sigma_min", lower_order_final=False
    ),
    "unipc-3-bh1": config(
        "UniPCMultistepScheduler",
        solver_order=3,
        solver_type="bh1",
        final_sigmas_type="sigma_min",
        lower_order_final=False,
    ),
    "2m-heun": config("DPMSolverMultistepScheduler", solver_type="heun"),
    "pndm": config("PNDMScheduler"),
    "kdpm2": config("KDPM2DiscreteScheduler"),
    "kdpm2-karras": config("KDPM2DiscreteScheduler", use_karras_sigmas=True),
    "2s": config("DPMSolverSinglestepScheduler", use_exponential_sigmas=True, lower_order_final=True),
    "2s-even": config("DPMSolverSinglestepScheduler", use_exponential_sigmas=True, lower_order_final=True),
    "2s-eps": config(
        "DPMSolverSinglestepScheduler",
        use_exponential_sigmas=True,
        lower_order_final=True,
        algorithm_type="dpmsolver",
        final_sigmas_type="sigma_min",
    ),
}


# whole steps of two calls and one to the data; levels between the train steps
STEPS = {"2s": 11, "2s-eps": 11, "euler": 12, "heun": 12, "lms": 12, "kdpm2": 12}


@pytest.mark.parametrize("name", [*DETERMINISTIC, *MULTISTEP])
def test_deterministic(name: str) -> None:
    gap = peers.gap({**DETERMINISTIC, **MULTISTEP}[name], STEPS.get(name, 10))
    assert gap < 1e-11, gap


STOCHASTIC = {
    "ddpm": config("DDPMScheduler", clip_sample=False),
    "ddpm-linspace": config(
        "DDPMScheduler", clip_sample=False, timestep_spacing="linspace", prediction_type="v_prediction"
    ),
    "ddpm-large": config("DDPMScheduler", clip_sample=False, variance_type="fixed_large"),
    "euler-ancestral": config("EulerAncestralDiscreteScheduler", **SD, timestep_spacing="leading", steps_offset=1),
    "1m-sde": config("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", solver_order=1),
    "2m-sde": config("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", **SD, use_karras_sigmas=True),
    "2m-sde-heun": config("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", solver_type="heun"),
    "lcm": config("LCMScheduler", timestep_scaling=1e8),
    "flow-stochastic": config("FlowMatchEulerDiscreteScheduler", shift=3.0, stochastic_sampling=True),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic(name: str) -> None:
    gap = peers.gap(STOCHASTIC[name], 10, peers.tape(12))
    assert gap < 1e-11, gap


def test_ddim_with_noise() -> None:
    noise = peers.tape(12)
    found = peers.gap(config("DDIMScheduler", **DDIM), 10, noise, {"eta": 0.6}, solve={"name": "euler", "eta": 0.6})
    assert found < 1e-11, found


@pytest.mark.parametrize(("steps", "data"), [(9, True), (10, True), (11, True), (9, False), (10, False)])
def test_3s_but_for_the_weight_of_its_second_stage(steps: int, data: bool) -> None:
    """The orders of all steps, the last ones lower. The class's own rule "heun" weighs the stage as the paper does."""
    c = config(
        "DPMSolverSinglestepScheduler",
        solver_order=3,
        use_exponential_sigmas=True,
        lower_order_final=True,
        algorithm_type="dpmsolver++" if data else "dpmsolver",
        final_sigmas_type="zero" if data else "sigma_min",
    )
    found = read(c, steps)
    states, _, start = peers.ours(found)
    scheduler = build(c)
    update = scheduler.singlestep_dpm_solver_second_order_update

    def stage(*args: Any, **named: Any) -> torch.Tensor:
        inside = scheduler.order_list[scheduler.step_index + 1 :][:1] == [3]
        scheduler.register_to_config(solver_type="heun" if inside else "midpoint")
        out: torch.Tensor = update(*args, **named)
        scheduler.register_to_config(solver_type="midpoint")
        return out

    scheduler.singlestep_dpm_solver_second_order_update = stage
    *_, last = peers.theirs(scheduler, steps, start, found)
    assert float((last - states[-1]).abs().max()) < 1e-11


def test_ipndm_but_for_its_first_step() -> None:
    """At a = 0 the peer divides noise by 1e-8 and goes on with x0 = 0, whatever the network said; from there on all agree."""
    c = config("IPNDMScheduler")
    found = read(c, 10)
    later = {"name": "explicit", "times": found.plan.grid["times"][1:]}
    states, _, start = peers.ours(found, grid=later)
    *_, last = peers.theirs(build(c), 10, start, found, skip=1)
    assert float((last - states[-1]).abs().max()) < 1e-11


def test_unipc_flow() -> None:
    """The peer starts a millionth below pure noise, to keep clear of log 0, and so does its plan."""
    c = config("UniPCMultistepScheduler", use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    assert read(c, 10).plan.grid["times"][0] == 1 - 1e-6
    assert peers.gap(c, 10) < 1e-11


@pytest.mark.parametrize("form", ["exponential", "linear"])
def test_a_dynamic_shift(form: str) -> None:
    """The pipeline's mu, as a number, and as the length of a state of 32 x 32 patches."""
    c = config("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True, time_shift_type=form)
    mu = 0.5 + (1024 - 256) * (1.15 - 0.5) / (4096 - 256)
    found = read(c, 10, mu=mu)
    states, _, start = peers.ours(found)
    scheduler = build(c)
    scheduler.set_timesteps(10, mu=mu)
    scheduler.set_timesteps = lambda steps: None
    *_, last = peers.theirs(scheduler, 10, start, found)
    assert float((last - states[-1]).abs().max()) < 1e-11
    by_size = registry.make("grid", read(c, 10).plan.grid)
    shown = State.blank(torch.zeros(1, 4, 64, 64), {}, [0])
    assert torch.allclose(by_size.points(None, shown), registry.make("grid", found.plan.grid).points(None, shown))


class Plain(int):
    """An order that never equals 2, so that the class's own rule for 2 is passed over."""

    def __eq__(self, other: object) -> bool:
        return int(self) != 2 and int(self) == other

    __hash__ = int.__hash__


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_sa_solver_but_for_its_rule_for_two_slopes(terms: int) -> None:
    """Noise is drawn in the middle of the run alone.

    Where it combines two slopes the class adds a term to the weights of the paper's algorithm, in the predictor so that it
    becomes DPM-Solver++(2M) at tau = 0. That rule is switched off here, and the paper's weights remain.
    """
    c = config("SASolverScheduler", **SD, predictor_order=terms, corrector_order=terms + 1, lower_order_final=False)
    found, noise = read(c, 10), peers.tape(12)
    states, _, start = peers.ours(found, noise)
    scheduler = build(c)
    weights = scheduler.get_coefficients_fn
    scheduler.get_coefficients_fn = lambda order, *a, **k: weights(int(order), *a, **k)
    for name in ("stochastic_adams_bashforth_update", "stochastic_adams_moulton_update"):
        update = getattr(scheduler, name)
        plain = lambda *a, order, update=update, **k: update(*a, order=Plain(order), **k)  # noqa: E731
        setattr(scheduler, name, plain)
    *_, last = peers.theirs(scheduler, 10, start, found, noise)
    assert float((last - states[-1]).abs().max()) < 1e-11
