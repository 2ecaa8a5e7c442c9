"""Starts that are given data: where they begin, the law they begin in, and what they say when it is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model, process

MEANS = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]], dtype=torch.float64)


def model(name: str = "vp-linear", **border: Any) -> Model:
    g = GaussianMixture(process(name), [1, 1, 2], MEANS, 0.04, labels=[0, 1, 2])
    return ebb.load(g, like=torch.zeros(2, dtype=torch.float64), **border)


def source(n: int) -> Tensor:
    return torch.linspace(-1, 1, 2 * n, dtype=torch.float64).reshape(n, 2)


class Told(Denoiser):
    """Answers with the data itself, and keeps the conditions that it is asked under."""

    def __init__(self) -> None:
        self.process, self.seen = process("flow"), []

    def __call__(self, x: Any, t: Tensor, cond: dict[str, Any]) -> Pred:
        self.seen.append(sorted(cond))
        return Pred(mean=torch.zeros_like(x))


# ---------------------------------------------------------------- encoded


@pytest.mark.parametrize(("steps", "strength"), [(50, 0.8), (20, 0.75), (10, 0.3), (7, 0.99), (100, 0.29), (4, 0.2)])
def test_strength_makes_as_many_steps_as_diffusers(steps: int, strength: float):
    """int(strength n), its rounding included; the times are the last of the grid."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(steps)
    pipe = type("Pipe", (), {"scheduler": scheduler})()
    make = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps
    _, theirs = make(pipe, steps, strength, "cpu")
    grid = {"name": "log-snr", "steps": steps}
    plan = ebb.Plan(grid=grid, start={"name": "encoded", "strength": strength})
    seen = [s.state.t for s in ebb.run(model(), plan, cond={"source": source(3)}, n=3)]
    whole = [s.state.t for s in ebb.run(model(), ebb.Plan(grid=grid), n=3)]
    assert len(seen) == theirs
    assert all(torch.equal(a, b) for a, b in zip(seen, whole[steps - theirs :], strict=True))


def test_the_start_is_the_forward_process_at_that_time():
    n = 40_000
    x0 = torch.tensor([[0.7, -1.2]], dtype=torch.float64)
    plan = ebb.Plan(grid={"name": "linear", "steps": 8}, start={"name": "encoded", "strength": 0.5})
    _, state = begin(model(), plan, cond={"source": x0}, n=n)
    p = model().process
    t = torch.full((1,), 0.5, dtype=torch.float64)
    assert bool((state.t == 0.5).all())
    assert bool((state.i == 4).all())
    assert float((state.x.mean(0) - p.a(t) * x0[0]).abs().max()) < 5 * float(p.c(t)) / n**0.5
    assert abs(float(state.x.std(0).mean() / p.c(t)) - 1) < 5 / (2 * n) ** 0.5


def test_strength_0_gives_the_source_back_and_strength_1_forgets_it():
    still = ebb.Plan(start={"name": "encoded", "strength": 0})
    out = ebb.sample(model(), still, cond={"source": source(5)}, n=5)
    assert torch.equal(out.x, source(5))
    assert out.calls == 0
    whole = ebb.Plan(start={"name": "encoded", "strength": 1}, grid={"name": "linear", "steps": 10})
    flow = model("flow")  # where the data weighs exactly nothing at t = 1
    a, b = (ebb.sample(flow, whole, cond={"source": s}, n=5).x for s in (source(5), -source(5)))
    assert torch.equal(a, b)
    assert torch.equal(a, ebb.sample(flow, whole.replace(start="prior"), n=5).x)


def test_the_further_it_goes_back_the_more_changes():
    """At small strength a sample stays in the mode that its source lies in; from t = 1 it forgets it."""
    n = 600
    x0 = MEANS[0].expand(n, 2).clone()
    stay = []
    for strength in (0.1, 0.4, 0.7, 1.0):
        plan = ebb.Plan(
            start={"name": "encoded", "strength": strength}, grid={"name": "linear", "steps": 40}, solve="heun"
        )
        out = ebb.sample(model(), plan, cond={"source": x0}, n=n)
        stay.append(float((torch.cdist(out.x, MEANS).argmin(1) == 0).double().mean()))
    assert stay[0] == 1
    assert stay == sorted(stay, reverse=True)
    assert abs(stay[-1] - 0.25) < 5 * (0.25 * 0.75 / n) ** 0.5


def test_last_keeps_the_number_of_steps_as_comfyui_does():
    denoise, n = 0.35, 12
    grid = {"name": "karras", "steps": int(n / denoise)}
    plan = ebb.Plan(grid=grid, start={"name": "encoded", "last": n})
    steps = list(ebb.run(model("ve"), plan, cond={"source": source(2)}, n=2))
    whole = list(ebb.run(model("ve"), ebb.Plan(grid=grid), n=2))
    assert len(steps) == n
    assert torch.equal(steps[0].state.t, whole[-n].state.t)


# ---------------------------------------------------------------- given and warm


@pytest.mark.parametrize("solve", ["euler", "heun"])
def test_a_given_start_goes_on_where_a_run_stopped(solve: str):
    """The second half from the latents of the first is the whole run, bit for bit: one-step solvers remember nothing."""
    times = [1.0, 0.8, 0.55, 0.3, 0.1, 0.0]
    first, second = ({"name": "explicit", "times": v} for v in (times[:4], times[3:]))
    whole = ebb.sample(model(), ebb.Plan(solve=solve, grid={"name": "explicit", "times": times}), n=4)
    half = ebb.sample(model(), ebb.Plan(solve=solve, grid=first), n=4)
    rest = ebb.sample(model(), ebb.Plan(solve=solve, grid=second, start="given"), cond={"start": half.x}, n=4)
    assert torch.equal(rest.x, whole.x)


@pytest.mark.parametrize(("shift", "axis"), [(0, 1), (1, 1), (2, 1), (9, 1), (1, 2)])
def test_a_warm_start_drops_the_first_and_repeats_the_last(shift: int, axis: int):
    like = torch.zeros(4, 3, dtype=torch.float64)
    x = torch.arange(24, dtype=torch.float64).reshape(2, 4, 3)
    plan = ebb.Plan(
        grid={"name": "linear", "steps": 2, "first": 0.1}, start={"name": "warm", "shift": shift, "axis": axis}
    )
    _, state = begin(ebb.load(Told(), like=like), plan, cond={"previous": x}, n=2)
    rows = x.movedim(axis, 0)
    wanted = torch.stack([rows[min(k + shift, len(rows) - 1)] for k in range(len(rows))])
    assert torch.equal(state.x.movedim(axis, 0), wanted)
    assert bool((state.t == 0.1).all())


def test_a_warm_start_with_noise_is_the_encoded_one():
    grid = {"name": "linear", "steps": 3, "first": 0.4}
    warm = ebb.Plan(grid=grid, start={"name": "warm", "noise": True})
    encoded = ebb.Plan(grid=grid, start={"name": "encoded", "strength": 1})
    a = ebb.sample(model(), warm, cond={"previous": source(3)}, n=3)
    b = ebb.sample(model(), encoded, cond={"source": source(3)}, n=3)
    assert torch.equal(a.x, b.x)


# ---------------------------------------------------------------- what is missing is told


@pytest.mark.parametrize(("name", "leaf"), [("encoded", "source"), ("given", "start"), ("warm", "previous")])
def test_what_is_missing_or_wrong_is_told(name: str, leaf: str):
    plan = ebb.Plan(start=name)
    bad: list[tuple[dict[str, Any], str]] = [
        ({}, rf"start '{name}' needs .*give cond=\{{'{leaf}': tensor"),
        ({leaf: torch.zeros(3, 5, dtype=torch.float64)}, r"\(3, 5\) where the samples are \(3, 2\)"),
        ({leaf: torch.zeros(3, 2, dtype=torch.int64)}, "int64 where the samples are of torch.float64"),
    ]
    for cond, words in bad:
        with pytest.raises(EbbError, match=words) as told:
            ebb.sample(model(), plan, cond=cond, n=3)
        assert "\n" not in str(told.value)


def test_a_grid_that_finds_its_times_on_the_way_is_refused():
    plan = ebb.Plan(start="encoded", grid="adaptive", solve="heun")
    with pytest.raises(EbbError, match=r"known beforehand, such as 'linear'.*not 'adaptive'"):
        ebb.sample(model(), plan, cond={"source": source(2)}, n=2)
    with pytest.raises(EbbError, match="axis 4, but x has axes 0 to 1"):
        ebb.sample(model(), ebb.Plan(start={"name": "warm", "axis": 4}), cond={"previous": source(2)}, n=2)


@pytest.mark.parametrize(("name", "leaf"), [("encoded", "source"), ("given", "start"), ("warm", "previous")])
def test_the_network_never_sees_what_was_spent(name: str, leaf: str):
    told = Told()
    like = torch.zeros(2, dtype=torch.float64)
    cond = {leaf: source(2), "label": torch.tensor([0, 1])}
    ebb.sample(ebb.load(told, like=like), ebb.Plan(start=name, grid={"name": "linear", "steps": 4}), cond=cond, n=2)
    assert told.seen
    assert all(names == ["label"] for names in told.seen)
