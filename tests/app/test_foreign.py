"""Names and files of other libraries on the command line: what they become is what interop says, and is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ebbtide as ebb
from ebbtide.app.options import Options
from ebbtide.app.reading import Read
from ebbtide.app.request import plan_of
from ebbtide.core import registry
from ebbtide.core.plan import Plan

Run = Callable[..., Any]
DPM = {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "scaled_linear", "use_karras_sigmas": True}


def config(path: str = "scheduler_config.json", **fields: Any) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({**DPM, **fields}))
    return path


def plan(*, base: Plan | None = None, **typed: Any) -> Plan:
    return plan_of(Options(**typed), Read(base or Plan())).plan


def notes(told: Any) -> list[str]:
    return [line for line in told.err.splitlines() if line.startswith("note: ") and "labels" not in line]


# -------------------------------------------------------------------- scheduler configs


@pytest.mark.parametrize(
    "place", ["scheduler_config.json", "some/scheduler_config.json", "pipe/scheduler/scheduler_config.json"]
)
def test_a_scheduler_config_is_a_plan(toy: Any, run: Run, place: str) -> None:
    config(place)
    source = place if place == "scheduler_config.json" else place.split("/")[0]
    run(f"sample toy --plan {source} --steps 6 -n 2 --label 1 -o a.npz")
    written = Plan.load("a.plan.yaml").replace(run=None)
    assert written == ebb.interop.schedulers.read(place, 6).plan
    assert toy.calls == 6
    run("sample --plan a.plan.yaml -o b.npz")
    assert np.array_equal(np.load("a.npz")["x"], np.load("b.npz")["x"])


def test_options_go_over_a_scheduler_config(toy: Any, run: Run) -> None:
    config()
    run("sample toy --plan scheduler_config.json --solver heun --grid linear --steps 5 -n 1 -o a.npz")
    written = Plan.load("a.plan.yaml")
    assert (written.solve, written.grid) == ({"name": "heun"}, {"name": "linear", "steps": 5})
    assert written.process == ebb.interop.schedulers.read("scheduler_config.json", 5).plan.process


def test_what_a_config_says_in_vain_is_told_and_what_it_cannot_say_is_refused(toy: Any, run: Run) -> None:
    config(shift=3.0)
    assert "does not read 'shift'" in notes(run("sample toy --plan scheduler_config.json -n 1 -o a.npz"))[0]
    assert "does not read 'shift'" in notes(run("plan check scheduler_config.json"))[0]
    assert notes(run("sample toy --plan scheduler_config.json -n 1 -o b.npz --quiet")) == []
    for fields, word in (({"beta_strat": 1}, "did you mean beta_start"), ({"thresholding": True}, "thresholding")):
        config(**fields)
        told = run("sample toy --plan scheduler_config.json -n 1 -o c.npz", code=2)
        assert word in told.err
        assert len(told.err.splitlines()) == 1
    config(_class_name="NoSuchScheduler")
    assert "NoSuchScheduler" in run("plan show scheduler_config.json", code=2).err
    config()
    assert "at least 1" in run("sample toy --plan scheduler_config.json --steps 0 -o c.npz", code=2).err
    assert not Path("c.npz").exists()


def test_a_config_is_shown_as_a_plan_and_finds_its_times(toy: Any, run: Run) -> None:
    config()
    Path("taken.yaml").write_text(run("plan show scheduler_config.json").out)
    assert Plan.load("taken.yaml") == ebb.interop.schedulers.read("scheduler_config.json", 20).plan
    run("grid toy --plan scheduler_config.json --steps 3 -n 2 -o g.yaml")
    assert Plan.load("g.yaml").process == Plan.load("taken.yaml").process


# -------------------------------------------------------------------- sampler and scheduler names


@pytest.mark.parametrize(
    ("label", "grid"),
    [
        ("dpmpp_2m", None),
        ("DPM++ 2M", None),
        ("DPM++ 2M Karras", "karras"),
        ("dpmpp_2m_karras", "karras"),
        ("DPM++ 2M SGM Uniform", "sgm_uniform"),
        ("sample_dpmpp_2m", None),
    ],
)
def test_names_of_one_sampler_are_one_solver(label: str, grid: str | None) -> None:
    assert plan(solver=label, steps=7) == plan(solver="dpmpp-2m", grid=grid, steps=7)


@pytest.mark.parametrize("sampler", [s for s in ebb.interop.samplers.SAMPLERS if s not in registry.names("solve")])
def test_a_sampler_and_a_scheduler_are_the_plan_of_interop(sampler: str) -> None:
    for scheduler in ebb.interop.samplers.SCHEDULERS:
        if scheduler in registry.names("grid"):
            continue
        own = sampler in ebb.interop.samplers.OWN_LEVELS
        made = plan(solver=sampler, grid=None if own else scheduler, steps=7, process="vp-linear")
        assert made == ebb.interop.samplers.plan_of(sampler, scheduler, 7, process="vp-linear")


def test_a_scheduler_is_laid_between_the_levels_of_the_model(toy: Any, run: Run) -> None:
    run("sample toy --grid kl_optimal --steps 5 -n 1 -o a.npz")
    assert Plan.load("a.plan.yaml").grid == ebb.interop.samplers.grid_of("kl_optimal", 5, process="flow")


def test_names_of_this_package_mean_its_own_parts() -> None:
    assert plan(solver="deis").solve == {"name": "deis"}
    assert plan(solver="lms").solve == {"name": "lms"}
    assert plan(grid="beta", steps=5).grid == {"name": "beta", "steps": 5}


def test_parameters_can_be_typed_with_a_part_and_a_part_named_again_keeps_its_own() -> None:
    assert plan(solver="deis:order=2").solve == {"name": "deis", "order": 2}
    base = Plan(solve={"name": "deis", "order": 2}, grid={"name": "karras", "rho": 5, "steps": 9})
    assert plan(base=base, solver="deis", grid="karras") == base
    assert plan(base=base, solver="deis:order=3", steps=4) == base.replace(
        solve={"name": "deis", "order": 3}, grid={"name": "karras", "rho": 5, "steps": 4}
    )
    assert plan(base=base, grid="linear").grid == {"name": "linear", "steps": 9}


def test_what_a_name_became_is_told(toy: Any, run: Run) -> None:
    told = notes(run("sample toy --solver dpmpp_sde --grid ddim_uniform -n 1 -o a.npz"))
    assert told[0].startswith("note: the sampler dpmpp_sde is the solver dpmpp-2s-sde here; ")
    assert told[1] == "note: the scheduler ddim_uniform is the grid clock here"
    assert notes(run("sample toy --solver dpmpp-2m --grid karras -n 1 -o b.npz")) == []
    rows = json.loads(run("solvers toy -n 1 --fine 4 --calls 4 --solver dpmpp_2m,uni_pc --grid linear --json").out)[
        "rows"
    ]
    assert [r["solve"]["name"] for r in rows] == ["dpmpp-2m", "unipc"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("--solver dpmpp_2n", "or dpmpp-2m or"),
        ("--solver seeds_2", "the solver 'dpmpp-2m-sde'"),
        ("--solver 'DPM++ 2S a Karras'", "the solver 'dpmpp-2m-sde'"),
        ("--solver 'dpmpp_2m:order=2'", "no solve 'dpmpp_2m'"),
        ("--solver dpm_adaptive --grid karras", "leave --grid karras out"),
        ("--grid sgm_unifrom", "no grid 'sgm_unifrom'"),
        ("--grid sgm_uniform --steps 1000", "1 to 999 steps"),
    ],
)
def test_names_that_mean_nothing_are_one_sentence(toy: Any, run: Run, options: str, word: str) -> None:
    told = run(f"sample toy {options} -n 1 -o a.npz", code=2)
    assert word in told.err
    assert len(told.err.splitlines()) == 1
    assert toy.calls == 0


def test_a_solver_on_a_grid_cannot_be_compared_on_others(toy: Any, run: Run) -> None:
    assert "name the solver alone" in run("solvers toy --solver 'DPM++ 2M Karras'", code=2).err
