"""diffusers' configs as plans: every field known, read, told or refused by name."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import ebbtide as ebb
from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.interop.fields import CLASSES
from ebbtide.interop.schedulers import read

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
BOUND = sorted(set(CLASSES) - {"KDPM2AncestralDiscreteScheduler"})


def config(kind: str, **fields: Any) -> dict[str, Any]:
    return {"_class_name": kind, **({"clip_sample": False} if "clip_sample" in CLASSES[kind] else {}), **fields}


@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_the_fields_and_defaults_are_the_classes_own(kind: str) -> None:
    """A new field of a class is seen here before a config holds it."""
    signature = inspect.signature(getattr(diffusers, kind).__init__).parameters
    theirs = {k: v.default for k, v in signature.items() if k not in ("self", "args", "kwargs")}
    empty = {"disable_corrector": []}
    assert {**theirs, **{k: v for k, v in empty.items() if k in theirs}} == CLASSES[kind]


@pytest.mark.parametrize("kind", BOUND)
def test_a_file_a_folder_a_dict_and_a_scheduler_are_one(kind: str, tmp_path: Path) -> None:
    fields = {k: v for k, v in config(kind).items() if k != "_class_name"}
    live = getattr(diffusers, kind)(**fields)
    live.save_config(tmp_path)
    found = read(live, 12)
    for source in (
        tmp_path,
        tmp_path / "scheduler_config.json",
        json.loads((tmp_path / "scheduler_config.json").read_text()),
    ):
        assert read(source, 12) == found
    assert Plan.from_dict(json.loads(found.plan.to_json())) == found.plan


def test_unknown_fields_are_named_and_may_be_set_aside() -> None:
    strange = config("DDIMScheduler", beta_strat=0.1)
    with pytest.raises(EbbError, match=r"no field 'beta_strat'; did you mean beta_start"):
        read(strange, 10)
    assert read(strange, 10, ignore=["beta_strat"]) == read(config("DDIMScheduler"), 10)


def test_fields_of_another_class_are_told() -> None:
    """Configs in the wild keep what an earlier class left: diffusers does not read it, and neither do we."""
    found = read(config("EulerDiscreteScheduler", skip_prk_steps=True, set_alpha_to_one=False), 10)
    assert found.plan == read(config("EulerDiscreteScheduler"), 10).plan
    assert [n for n in found.notes if "skip_prk_steps" in n]
    assert len(found.notes) == 2


@pytest.mark.parametrize(
    ("kind", "fields", "word"),
    [
        ("DDIMScheduler", {"clip_sample": True}, "clip_sample"),
        ("DDIMScheduler", {"thresholding": True}, "thresholding"),
        ("DDIMScheduler", {"beta_schedule": "laplace"}, "beta_schedule"),
        ("DDIMScheduler", {"prediction_type": "noise"}, "prediction_type"),
        ("DDIMScheduler", {"timestep_spacing": "cosine"}, "timestep_spacing"),
        ("DDIMScheduler", {"steps_offset": 500}, "steps_offset"),
        ("DDPMScheduler", {"variance_type": "learned_range"}, "variance_type"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "choose one"),
        ("EulerDiscreteScheduler", {"interpolation_type": "cubic"}, "interpolation_type"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "algorithm_type"),
        ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order"),
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "one"}, "final_sigmas_type"),
        ("DPMSolverSinglestepScheduler", {"solver_type": "heun"}, "solver_type"),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ("SASolverScheduler", {"algorithm_type": "noise_prediction"}, "algorithm_type"),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, "disable_corrector"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "use_dynamic_shifting": True}, "mu"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas"),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, "prediction_type"),
        ("EDMEulerScheduler", {"sigma_schedule": "linear"}, "sigma_schedule"),
        ("LCMScheduler", {"original_inference_steps": 5}, "original_inference_steps"),
        ("IPNDMScheduler", {"trained_betas": [0.1]}, "trained_betas"),
        ("KDPM2AncestralDiscreteScheduler", {}, "no counterpart"),
    ],
)
def test_what_cannot_be_honoured_is_named(kind: str, fields: dict[str, Any], word: str) -> None:
    with pytest.raises(EbbError, match=word):
        read(config(kind, **fields), 10)


def test_a_default_that_cannot_be_honoured_is_named_too() -> None:
    with pytest.raises(EbbError, match=r"clip_sample=True.*ignore=\['clip_sample'\]"):
        read({"_class_name": "DDIMScheduler"}, 10)
    assert read({"_class_name": "DDIMScheduler"}, 10, ignore=["clip_sample"]) == read(config("DDIMScheduler"), 10)


def test_bad_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(EbbError, match="did you mean DDIMScheduler"):
        read({"_class_name": "DDIMSchedular"}, 10)
    with pytest.raises(EbbError, match="no counterpart"):
        read({"_class_name": "UnCLIPScheduler"}, 10)
    with pytest.raises(EbbError, match="_class_name"):
        read({"beta_start": 0.1}, 10)
    with pytest.raises(EbbError, match="cannot be read"):
        read(tmp_path / "none.json", 10)
    (tmp_path / "scheduler_config.json").write_text("[1]")
    with pytest.raises(EbbError, match="mapping"):
        read(tmp_path, 10)
    with pytest.raises(EbbError, match="not from int"):
        read(3, 10)
    for steps in (0, 1001):
        with pytest.raises(EbbError, match="steps"):
            read(config("DDIMScheduler"), steps)


TOLD = {
    "DDIMScheduler": {"steps_offset": 1, "prediction_type": "v_prediction"},
    "EulerDiscreteScheduler": {"use_karras_sigmas": True},
    "DPMSolverMultistepScheduler": {"timestep_spacing": "trailing"},
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
    "IPNDMScheduler": {},
    "LCMScheduler": {},
}


@pytest.mark.parametrize("kind", sorted(TOLD))
def test_the_network_is_told_the_peers_times(kind: str) -> None:
    """The border's clock, at every call of a run."""
    c = config(kind, **TOLD[kind])
    found, told = read(c, 7), []

    def network(x: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
        told.append(float(clock[0]))
        return torch.zeros_like(x)

    process = registry.make("process", found.process)
    model = ebb.load(network, process=process, like=torch.zeros(2, dtype=torch.float64), **found.border)
    ebb.sample(model, found.plan)
    scheduler = getattr(diffusers, kind)(**{k: v for k, v in c.items() if k != "_class_name"})
    scheduler.set_timesteps(7)
    wanted = scheduler.timesteps.double().tolist()
    assert told == pytest.approx(wanted, rel=1e-5, abs=0.02)  # theirs are looked up in a float32 table


def test_levels_below_the_clipped_one_are_left_out() -> None:
    c = config("DPMSolverMultistepScheduler", beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1)
    found = read(c, 10)
    first = registry.make("process", found.process).lam(torch.tensor(found.plan.grid["times"][:1], dtype=torch.float64))
    assert -5.1 <= float(first) < -4.9
    assert read({**c, "lambda_min_clipped": -math.inf}, 10).plan.grid["times"][0] == 1.0


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("kind", "fields", "listed"),
    [
        ("EulerDiscreteScheduler", {}, {"sigmas": [12.0, 3.0, 1.0, 0.2, 0.0]}),
        ("EulerDiscreteScheduler", {}, {"timesteps": [950, 600, 333, 40]}),
        ("DDPMScheduler", {}, {"timesteps": [950, 600, 333, 40]}),
        ("DPMSolverMultistepScheduler", {}, {"timesteps": [950, 600, 333, 40]}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {"sigmas": [1.0, 0.7, 0.2]}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.1}, {"sigmas": [1.0, 0.7, 0.2]}),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, {"sigmas": [1.0, 0.7, 0.2], "mu": 0.8}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 2.0}, {"sigmas": [0.98, 0.7, 0.2]}),
    ],
)
def test_a_list_makes_the_levels_of_the_class(kind: str, fields: dict[str, Any], listed: dict[str, Any]) -> None:
    made = {k: v for k, v in config(kind, **fields).items() if k != "_class_name"}
    live = getattr(diffusers, kind)(**made)
    arrays = (
        {"sigmas": torch.tensor(listed["sigmas"]).numpy()} if kind.startswith("UniPC") else {}
    )  # it does arithmetic
    live.set_timesteps(**{**listed, **arrays})
    found = read(live, **listed)
    process = registry.make("process", found.process)
    grid: Any = found.plan.grid
    levels = torch.tensor(grid.get("sigmas") or grid["times"], dtype=torch.float64)
    if "times" in grid and found.process["name"] != "flow":
        levels = torch.where(levels == 0, 0.0, (-process.lam(levels)).exp())
    wanted = getattr(live, "sigmas", None)
    if wanted is None:
        kept = live.alphas_cumprod[torch.tensor(listed["timesteps"])].double()
        wanted = torch.cat([((1 - kept) / kept).sqrt(), torch.zeros(1)])
    torch.testing.assert_close(levels, wanted.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "fields", "listed", "word"),
    [
        ("EulerDiscreteScheduler", {}, {"sigmas": [3.0, 0.0], "timesteps": [900, 1]}, "not both"),
        ("EulerDiscreteScheduler", {}, {"sigmas": [3.0, 0.0], "steps": 5}, "2 values cannot be 5 steps"),
        (
            "EulerDiscreteScheduler",
            {"use_karras_sigmas": True},
            {"timesteps": [900, 1]},
            "a list of times stands in its place",
        ),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, {"sigmas": [1.0, 0.5]}, "shifted by mu"),
        ("IPNDMScheduler", {}, {"timesteps": [900, 1]}, "takes no list of timesteps"),
    ],
)
def test_lists_that_are_refused(kind: str, fields: dict[str, Any], listed: dict[str, Any], word: str) -> None:
    with pytest.raises(EbbError, match=word):
        read(config(kind, **fields), **listed)
