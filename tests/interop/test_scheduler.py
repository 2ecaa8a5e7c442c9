"""The drop-in: a plan as a scheduler of diffusers, held to diffusers' own and to our loop."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers as df
import pytest
import tiny
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.interop.fields import CLASSES
from ebbtide.interop.scheduler import EbbScheduler
from ebbtide.interop.schedulers import read

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
STEPS, SCALE = 7, 3.0
PLAN = ebb.Plan(solve="dpmpp-2m", grid={"name": "linear", "steps": 5, "first": 0.99})
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ALONE = [e for e in registry.entries("solve") if e.needs <= {"affine", "gaussian", "continuous"}]
BUILT = [registry.make("solve", {"name": e.name}) for e in ALONE]
ONCE = sorted(s.called for s in BUILT if s.calls == 1 and not s.reads)


def latents_of(name: str, pipe: Any) -> Tensor:
    like = ebb.load(pipe, **tiny.SIZE[name]).like
    assert isinstance(like, Tensor)
    return torch.randn((2, *like.shape), generator=torch.Generator().manual_seed(3))


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def network(x: Tensor, t: Any) -> Tensor:
    """A network of no meaning, that hears the time."""
    return (x + float(t) / 1000).sin() * 0.8


def by_hand(scheduler: Any, x: Tensor, generator: Any = None) -> Tensor:
    """The loop that every pipeline has."""
    x = x * scheduler.init_noise_sigma
    said = {} if generator is None else {"generator": generator}
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **said, return_dict=False)[0]
    return x


def noise(n: int = 2) -> Tensor:
    return torch.randn((n, 3, 4, 4), generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- in pipelines


@pytest.mark.parametrize(("name", "scheduler"), [(n, s) for n, all_ in tiny.MATCHED.items() for s in all_])
def test_made_from_a_scheduler_it_is_that_scheduler(shared: Path, name: str, scheduler: str) -> None:
    pipe = tiny.build(shared, name, scheduler)
    latents = latents_of(name, pipe)
    wanted = tiny.call(name, pipe, latents, STEPS, SCALE)
    pipe.scheduler = EbbScheduler.from_config(pipe.scheduler)
    assert gap(tiny.call(name, pipe, latents, STEPS, SCALE), wanted) < 1e-5


@pytest.mark.parametrize("name", tiny.SIZE)
def test_by_a_plan_it_is_the_attached_pipeline(shared: Path, name: str) -> None:
    """The same plan by the pipeline's own guidance and by ours; a grid of the plan's goes before lists made for nobody."""
    pipe = tiny.build(shared, name, tiny.MATCHED[name][0])
    latents = latents_of(name, pipe)
    attached = tiny.call(name, ebb.attach(PLAN, pipe), latents, STEPS, SCALE)
    own = tiny.call(name, pipe, latents, STEPS, SCALE)
    pipe.scheduler = EbbScheduler.from_plan(PLAN, pipe.scheduler)
    made = tiny.call(name, pipe, latents, STEPS, SCALE)
    assert gap(made, attached) < 1e-5
    assert gap(made, own) > 1e-4


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_image_to_image_and_callbacks(shared: Path, name: str) -> None:
    """A run that begins in the middle of the list, and latents that a callback changed."""
    text = tiny.build(shared, name, tiny.MATCHED[name][0])
    kind = {"sd": df.StableDiffusionImg2ImgPipeline, "flux": df.FluxImg2ImgPipeline}[name]
    pipe = tiny.ready(kind(**text.components, **({"requires_safety_checker": False} if name == "sd" else {})))
    side = tiny.SIZE[name]["height"]
    image = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(1))

    def half(pipe: Any, i: int, t: Any, inside: dict[str, Any]) -> dict[str, Any]:
        return {"latents": inside["latents"] * 0.5} if i == 1 else {}

    def made(**more: Any) -> Tensor:
        size = {} if name == "sd" else {"height": side, "width": side, "max_sequence_length": 32}
        g = torch.Generator().manual_seed(0)
        said = {"image": image, "strength": 0.6, "num_inference_steps": 6, "output_type": "pt", "generator": g}
        out: Tensor = pipe("low newer", **said, **size, **more).images
        return out

    wanted, changed = made(), made(callback_on_step_end=half)
    pipe.scheduler = EbbScheduler.from_config(pipe.scheduler)
    assert gap(made(), wanted) < 1e-5
    assert gap(made(callback_on_step_end=half), changed) < 1e-5
    assert gap(changed, wanted) > 1e-3


def test_a_pipeline_with_a_drop_in_is_loaded_and_attached(shared: Path) -> None:
    pipe = tiny.build(shared, "sd", "dpmpp")
    latents = latents_of("sd", pipe)
    wanted = tiny.call("sd", pipe, latents, STEPS, SCALE)
    pipe.scheduler = EbbScheduler.from_config(pipe.scheduler)
    assert gap(tiny.call("sd", ebb.attach(None, pipe), latents, STEPS, SCALE), wanted) < 1e-5
    pipe.scheduler = EbbScheduler.from_plan(PLAN, pipe.scheduler)
    for asked in ({}, {"timesteps": [900, 400, 30]}):
        by_plan = tiny.call("sd", pipe, latents, STEPS, SCALE, **asked)
        assert gap(tiny.call("sd", ebb.attach(None, pipe), latents, STEPS, SCALE, **asked), by_plan) < 1e-5
    assert (
        ebb.load(pipe, **tiny.SIZE["sd"]).process
        == ebb.load(tiny.build(shared, "sd", "ddim"), **tiny.SIZE["sd"]).process
    )


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize("name", ONCE)
def test_every_solver_that_asks_once_is_what_the_loop_makes(name: str) -> None:
    """Told the outputs, one at a time, it takes the steps of a loop that asks for them itself."""
    spec = {"name": name, **({"warmup": "adams"} if name == "pndm" else {})}  # which begins with several calls
    plan = ebb.Plan(solve=spec, grid={"name": "karras", "steps": 6})
    made = EbbScheduler.from_plan(plan, df.EulerDiscreteScheduler(**SD))
    made.set_timesteps(6)
    g = torch.Generator().manual_seed(5)
    seed = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(5)))
    found = read(df.EulerDiscreteScheduler(**SD), 6)
    model = ebb.load(
        lambda x, clock: network(x, clock[0]), process=found.process, like=torch.zeros(3, 4, 4), **found.border
    )
    cond = {"start": noise(1) * made.init_noise_sigma}
    wanted = ebb.sample(model, plan.replace(start="given"), cond=cond, n=1, seed=seed).x
    assert gap(by_hand(made, noise(1), g), wanted) < 1e-5


def test_many_solvers_ask_once() -> None:
    assert {"euler", "dpmpp-2m", "unipc", "deis", "ancestral", "dpmpp-2m-sde"} <= set(ONCE)


@pytest.mark.parametrize("form", ["x_0", "v", "edm"])
def test_other_predictions(form: str) -> None:
    """What else networks predict, and EDM's preconditioning, are read from the scheduler that it is made from."""
    own = {
        "x_0": df.DDIMScheduler(clip_sample=False, prediction_type="sample", **SD),
        "v": df.DDIMScheduler(clip_sample=False, prediction_type="v_prediction", **SD),
        "edm": df.EDMEulerScheduler(),
    }[form]
    made = EbbScheduler.from_config(own)
    for s in (own, made):
        s.set_timesteps(6)
    assert gap(by_hand(made, noise()), by_hand(own, noise())) < 2e-5


def test_another_process_than_the_networks() -> None:
    """The levels of another process, on latents that the network knows: Euler's steps in sigma are the same."""
    flow = df.FlowMatchEulerDiscreteScheduler()
    times = torch.tensor([0.99, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
    same = registry.make("process", {"name": "vp-linear"}).time(registry.make("process", {"name": "flow"}).lam(times))
    straight, bent = (
        EbbScheduler.from_plan(
            ebb.Plan(process=name, grid={"name": "explicit", "times": [*listed[:-1].tolist(), 0]}), flow
        )
        for name, listed in ((None, times), ("vp-linear", same))
    )
    for s in (straight, bent):
        s.set_timesteps(4)
    torch.testing.assert_close(bent.timesteps, straight.timesteps)
    assert gap(by_hand(bent, noise()), by_hand(straight, noise())) < 1e-5


def test_lists_go_before_the_grid_of_a_plan() -> None:
    made = EbbScheduler.from_plan(PLAN, df.DDIMScheduler(**SD))
    made.set_timesteps(timesteps=[900, 500, 20])
    assert made.timesteps.tolist() == [900, 500, 20]
    assert made.sigmas[-1] == 0
    flow = EbbScheduler.from_plan(
        ebb.Plan(grid={"name": "shift", "steps": 3, "dynamic": True}), df.FlowMatchEulerDiscreteScheduler()
    )
    flow.set_timesteps(sigmas=[1.0, 0.7, 0.1], mu=0.3)
    torch.testing.assert_close(flow.sigmas, torch.tensor([1.0, 0.7, 0.1, 0.0]))
    flow.set_timesteps(
        sigmas=[1.0, 2 / 3, 1 / 3], mu=0.7
    )  # the list that pipelines make: the plan's grid, shifted by mu
    s = torch.tensor([1.0, 2 / 3, 1 / 3, 0.0])
    shift = torch.tensor(0.7).exp()
    torch.testing.assert_close(flow.sigmas, shift * s / (1 + (shift - 1) * s))


def test_noise_is_added_at_the_times_of_training() -> None:
    """Each element at its own step of the clock, as a training loop asks; and at the times of a run."""
    for own in (df.DDIMScheduler(**SD), df.DDPMScheduler(beta_schedule="squaredcos_cap_v2")):
        made = EbbScheduler.from_config(own)
        data, eps, steps = noise(3), noise(3).flip(0), torch.tensor([0, 417, 999])
        assert gap(made.add_noise(data, eps, steps), own.add_noise(data, eps, steps)) < 1e-5
    flow = df.FlowMatchEulerDiscreteScheduler(shift=3.0)
    made = EbbScheduler.from_config(flow)
    for s in (flow, made):
        s.set_timesteps(5)
    t = made.timesteps[2:3].expand(3)
    assert gap(made.scale_noise(data, t, eps), flow.scale_noise(data, flow.timesteps[2:3].expand(3), eps)) < 1e-5


# ---------------------------------------------------------------- saved and loaded


def test_it_survives_being_saved(shared: Path, tmp_path: Path) -> None:
    pipe = tiny.build(shared, "sd", "dpmpp-karras")
    latents = latents_of("sd", pipe)
    pipe.scheduler = EbbScheduler.from_plan(PLAN, pipe.scheduler)
    wanted = tiny.call("sd", pipe, latents, STEPS, SCALE)
    pipe.scheduler.save_pretrained(tmp_path / "alone")
    alone = EbbScheduler.from_pretrained(tmp_path / "alone")
    assert alone.config == {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    pipe.save_pretrained(tmp_path / "pipe")
    for again in (df.DiffusionPipeline, df.StableDiffusionPipeline):
        loaded = tiny.ready(again.from_pretrained(tmp_path / "pipe"))
        assert type(loaded.scheduler) is EbbScheduler
        assert torch.equal(tiny.call("sd", loaded, latents, STEPS, SCALE), wanted)
    model = ebb.load(tmp_path / "pipe", **tiny.SIZE["sd"])
    assert type(model.pipe.scheduler) is EbbScheduler


def test_it_goes_back_to_the_class_it_was_made_from() -> None:
    own = df.DPMSolverMultistepScheduler(use_karras_sigmas=True, **SD)
    made = EbbScheduler.from_plan(PLAN, own)
    back = df.DPMSolverMultistepScheduler.from_config(made.config)
    assert {k: back.config[k] for k in CLASSES[type(own).__name__]} == {
        k: own.config[k] for k in CLASSES[type(own).__name__]
    }
    assert EbbScheduler.from_config(made.config).config["plan"] == made.config["plan"]
    assert EbbScheduler.from_config(made, plan=None).config["plan"] is None


def test_it_is_asked_as_a_scheduler_is() -> None:
    """Pipelines look at these signatures to know what they may hand over."""
    assert {"timesteps", "sigmas", "mu", "device"} <= inspect.signature(EbbScheduler.set_timesteps).parameters.keys()
    assert "generator" in inspect.signature(EbbScheduler.step).parameters
    assert isinstance(EbbScheduler(), df.SchedulerMixin)


def test_nobody_else_pays_for_diffusers() -> None:
    said = "import sys, ebbtide, ebbtide.interop; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", said], check=True)


# ---------------------------------------------------------------- runs


def test_generators_say_the_noise() -> None:
    made = EbbScheduler.from_plan(
        ebb.Plan(solve="ancestral", grid={"name": "linear", "steps": 5}), df.DDIMScheduler(**SD)
    )

    def run(*seeds: int) -> Tensor:
        made.set_timesteps(5)
        return by_hand(made, noise(1).expand(len(seeds), -1, -1, -1), [torch.Generator().manual_seed(s) for s in seeds])

    both = run(5, 6)
    assert torch.equal(both[1:], run(6))
    assert gap(both[:1], both[1:]) > 1e-2


def test_a_jump_voids_the_history() -> None:
    """Back to an earlier timestep: the run from there is one that began there."""
    made = EbbScheduler.from_plan(
        ebb.Plan(solve="dpmpp-2m", grid={"name": "linear", "steps": 5}), df.DDIMScheduler(**SD)
    )
    made.set_timesteps(5)
    x = noise()
    first = by_hand(made, x)
    assert torch.equal(by_hand(made, x), first)  # from the first again, times not laid out anew
    made.step(network(x, 0), made.timesteps[0], x)
    far = made.step(network(x, 1), made.timesteps[2], x).prev_sample
    made.set_timesteps(5)
    assert torch.equal(far, made.step(network(x, 1), made.timesteps[2], x).prev_sample)


@pytest.mark.parametrize("kind", [copy.deepcopy, lambda s: EbbScheduler.from_config(s.config)])
def test_threads_with_copies_of_their_own(kind: Any) -> None:
    made = EbbScheduler.from_plan(ebb.Plan(solve="unipc", grid="karras"), df.EulerDiscreteScheduler(**SD))

    def run(k: int) -> Tensor:
        own = kind(made)
        own.set_timesteps(5 + k % 3)
        return by_hand(own, noise() + k)

    one_by_one = [run(k) for k in range(6)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, range(6)))
    assert all(torch.equal(a, b) for a, b in zip(one_by_one, together, strict=True))


def test_interleaved_copies() -> None:
    made = EbbScheduler.from_config(df.DPMSolverMultistepScheduler(**SD))
    made.set_timesteps(5)
    a, b = copy.deepcopy(made), copy.deepcopy(made)
    x, y = noise(), -noise()
    wanted = by_hand(copy.deepcopy(made), x), by_hand(copy.deepcopy(made), y)
    for t in made.timesteps:
        x = a.step(network(x, t), t, x).prev_sample
        y = b.step(network(y, t), t, y).prev_sample
    assert torch.equal(x, wanted[0])
    assert torch.equal(y, wanted[1])


def test_half_precision_keeps_its_state() -> None:
    made = EbbScheduler.from_config(df.FlowMatchEulerDiscreteScheduler())
    made.set_timesteps(40)
    x = noise().bfloat16()
    out = by_hand(made, x)
    assert out.dtype == torch.bfloat16
    made.set_timesteps(40)
    assert gap(out.float(), by_hand(made, x.float())) < 0.02


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("plan", "word"),
    [
        ({"solve": "heun"}, "asks the network 2 times a step.*use ebb.attach"),
        ({"guide": {"name": "cfg", "scale": 2.0}}, "no hand in 'guide'.*use ebb.attach"),
        ({"solve": "heun", "grid": "adaptive"}, "use ebb.attach"),
        ({"solve": "dpmpp-2m", "grid": "adaptive"}, "finds its times on the way|needs"),
        ({"start": "truncated"}, "starts where its pipeline does"),
        ({"solve": "confidence"}, "needs"),
    ],
)
def test_plans_that_a_scheduler_cannot_run(plan: dict[str, Any], word: str) -> None:
    with pytest.raises(EbbError, match=word):
        EbbScheduler.from_plan(ebb.Plan(**plan), df.DDIMScheduler(**SD))


def test_what_its_class_is_not_handed() -> None:
    made = EbbScheduler.from_config(df.DDIMScheduler(clip_sample=False, **SD))
    with pytest.raises(EbbError, match="DDIMScheduler is not handed 'timesteps'; give a plan"):
        made.set_timesteps(timesteps=[900, 1])
    flow = df.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    EbbScheduler.from_plan(PLAN, flow).set_timesteps(5, mu=0.4)  # refused by the class, of no use to the plan


def test_schedulers_and_configs_that_are_refused() -> None:
    with pytest.raises(EbbError, match="asks the network 2 times a step"):
        EbbScheduler.from_config(df.HeunDiscreteScheduler(**SD))
    with pytest.raises(EbbError, match="TCDScheduler"):
        EbbScheduler.from_config(df.TCDScheduler())
    with pytest.raises(EbbError, match="does not name its class"):
        EbbScheduler.from_config(df.DDIMScheduler().config)
    with pytest.raises(EbbError, match="no field 'beta_strat'"):
        EbbScheduler("DDIMScheduler", beta_strat=1)
    made = EbbScheduler.from_plan(
        PLAN.replace(grid={"name": "explicit", "times": [1.0, 0.4, 0.0]}), df.DDIMScheduler(**SD)
    )
    with pytest.raises(EbbError, match="call set_timesteps first"):
        made.step(noise(), 1, noise())
    with pytest.raises(EbbError, match="has 2 steps of its own"):
        made.set_timesteps(3)
    with pytest.raises(EbbError, match="fall at every step"):
        made.set_timesteps(timesteps=[10, 500])
