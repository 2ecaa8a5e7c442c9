"""Attached pipelines: the call stays, the loop is ours."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers as df
import pytest
import tiny
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
STEPS, SCALE = 7, 3.0
PLAN = ebb.Plan(solve="dpmpp-2m", grid={"name": "linear", "steps": 5, "first": 0.99})


def latents_of(name: str, pipe: Any) -> Tensor:
    like = ebb.load(pipe, **tiny.SIZE[name]).like
    assert isinstance(like, Tensor)
    return torch.randn((2, *like.shape), generator=torch.Generator().manual_seed(3))


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize(("name", "scheduler"), [(n, s) for n, all_ in tiny.MATCHED.items() for s in all_])
@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_without_a_plan_it_is_the_pipeline(shared: Path, name: str, scheduler: str, scale: float) -> None:
    pipe = tiny.build(shared, name, scheduler)
    latents = latents_of(name, pipe)
    wanted = tiny.call(name, pipe, latents, STEPS, scale)
    assert gap(tiny.call(name, ebb.attach(None, pipe), latents, STEPS, scale), wanted) < 1e-5


@pytest.mark.parametrize("name", tiny.SIZE)
def test_a_plan_is_what_ebbtide_makes_of_it(shared: Path, name: str) -> None:
    """The attached call and `ebb.sample` from the same start agree, and the plan matters."""
    pipe = tiny.build(shared, name, tiny.MATCHED[name][0])
    latents = latents_of(name, pipe)
    guided = PLAN.replace(guide={"name": "cfg", "scale": 2.0})
    attached = tiny.call(name, ebb.attach(PLAN, pipe), latents, 5, 2.0)
    model = ebb.load(pipe, **tiny.SIZE[name])
    cond = {**tiny.asked(name), "start": latents}
    own = ebb.sample(model, guided.replace(start="given"), cond=cond, n=2).pixels
    assert isinstance(own, Tensor)
    assert gap(attached, (own + 1) / 2) < 1e-5
    assert gap(attached, tiny.call(name, pipe, latents, 5, 2.0)) > 1e-4


def test_the_callers_word_goes_before_the_plans(shared: Path) -> None:
    pipe = tiny.build(shared, "sd")
    latents = latents_of("sd", pipe)
    plan = PLAN.replace(guide={"name": "cfg", "scale": 2.0})
    asked: dict[str, Any] = {**tiny.SIZE["sd"], "prompt": "low", "latents": latents[:1], "output_type": "latent"}

    def made(plan: ebb.Plan, **more: Any) -> Tensor:
        out: Tensor = ebb.attach(plan, pipe)(**asked, **more).images
        return out

    assert torch.equal(made(plan), made(PLAN, num_inference_steps=5, guidance_scale=2.0))
    assert torch.equal(made(plan, num_inference_steps=3), made(plan.replace(grid={**plan.grid, "steps": 3})))
    assert torch.equal(made(plan, guidance_scale=4.0), made(plan.replace(guide={"name": "cfg", "scale": 4.0})))
    assert not torch.allclose(made(plan), made(plan, guidance_scale=4.0), atol=1e-3)
    with pytest.raises(EbbError, match="has 2 steps of its own"):
        made(PLAN.replace(grid={"name": "explicit", "times": [1.0, 0.4, 0.0]}), num_inference_steps=3)


def test_callbacks_see_and_change_each_step(shared: Path) -> None:
    pipe = ebb.attach(PLAN, tiny.build(shared, "sd"))
    seen: list[Tensor] = []

    def watch(pipe: Any, i: int, t: Any, inside: dict[str, Any]) -> dict[str, Any]:
        seen.append(inside["latents"])
        return {"latents": inside["latents"] * 0} if i == 3 else {}

    asked: dict[str, Any] = {**tiny.SIZE["sd"], "prompt": "low", "output_type": "latent", "guidance_scale": 1.0}
    g = torch.Generator().manual_seed(0)
    out = pipe(**asked, generator=g, callback_on_step_end=watch).images
    assert len(seen) == 5
    assert torch.equal(out, seen[-1])
    free = pipe(**asked, generator=torch.Generator().manual_seed(0)).images
    assert not torch.allclose(out, free, atol=1e-3)


def test_a_callback_may_switch_guidance_off(shared: Path) -> None:
    """The example of diffusers' manual: half of the prompt embeddings are dropped on the way."""
    base = tiny.build(shared, "sd", "ddim")

    def off(pipe: Any, i: int, t: Any, inside: dict[str, Any]) -> dict[str, Any]:
        if i == 2:
            pipe._guidance_scale = 0.0
            return {"prompt_embeds": inside["prompt_embeds"].chunk(2)[-1]}
        return {}

    latents = latents_of("sd", base)
    more: dict[str, Any] = {"callback_on_step_end": off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    wanted = tiny.call("sd", base, latents, STEPS, SCALE, **more)
    assert gap(tiny.call("sd", ebb.attach(None, base), latents, STEPS, SCALE, **more), wanted) < 1e-5
    assert gap(wanted, tiny.call("sd", base, latents, STEPS, SCALE)) > 1e-4


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_image_to_image_by_strength(shared: Path, name: str) -> None:
    text = tiny.build(shared, name, tiny.MATCHED[name][0])
    kind = {"sd": df.StableDiffusionImg2ImgPipeline, "flux": df.FluxImg2ImgPipeline}[name]
    options = {"requires_safety_checker": False} if name == "sd" else {}
    pipe = kind(**text.components, **options)
    pipe.set_progress_bar_config(disable=True)
    side = tiny.SIZE[name]["height"]
    image = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(1))

    def made(pipe: Any, strength: float) -> Tensor:
        out: Tensor = pipe(
            "low newer",
            image=image,
            strength=strength,
            num_inference_steps=6,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            **({"height": side, "width": side, "max_sequence_length": 32} if name == "flux" else {}),
        ).images
        return out

    for strength in (0.5, 1.0):
        assert gap(made(ebb.attach(None, pipe), strength), made(pipe, strength)) < 1e-5
    assert gap(made(pipe, 0.5), made(pipe, 1.0)) > 1e-3


def test_two_threads_are_one_after_the_other(shared: Path) -> None:
    pipe = ebb.attach(PLAN.replace(solve={"name": "euler", "eta": 0.7}), tiny.build(shared, "sd"))

    def made(k: int) -> Tensor:
        asked: dict[str, Any] = {**tiny.SIZE["sd"], "num_inference_steps": 4 + k % 3, "guidance_scale": 1.0 + k % 2}
        out: Tensor = pipe("low", generator=torch.Generator().manual_seed(k), output_type="pt", **asked).images
        return out

    one_by_one = [made(k) for k in range(8)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(made, range(8)))
    assert all(torch.equal(a, b) for a, b in zip(one_by_one, together, strict=True))
    assert not torch.equal(one_by_one[0], one_by_one[6])


def test_generators_say_the_noise_of_the_steps(shared: Path) -> None:
    """A list of generators: each element's noise is its own, whoever its neighbours are."""
    pipe = ebb.attach(PLAN.replace(solve={"name": "euler", "eta": 1.0}), tiny.build(shared, "sd"))
    asked: dict[str, Any] = {**tiny.SIZE["sd"], "guidance_scale": 1.0, "output_type": "latent"}

    def made(*seeds: int) -> Tensor:
        given = [torch.Generator().manual_seed(s) for s in seeds]
        out: Tensor = pipe(["low"] * len(seeds), generator=given, **asked).images
        return out

    both = made(5, 6)
    size = float(both.abs().max())
    assert gap(both[1:] / size, made(6) / size) < 1e-5
    assert gap(both[:1] / size, both[1:] / size) > 1e-2


def test_it_is_a_pipeline_of_its_kind(shared: Path, tmp_path: Path) -> None:
    base = tiny.build(shared, "sd")
    before = dict(base.__dict__)
    pipe = ebb.attach(PLAN, base)
    assert isinstance(pipe, df.StableDiffusionPipeline)
    assert pipe.unet is base.unet
    assert inspect.signature(pipe.__call__) == inspect.signature(base.__call__)
    pipe("low", **tiny.SIZE["sd"], output_type="latent")
    assert base.__dict__ == before
    pipe.save_pretrained(tmp_path / "saved")
    again = df.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(again) is df.StableDiffusionPipeline
    assert type(again.scheduler) is type(base.scheduler)
    once = ebb.attach(PLAN, pipe)
    assert type(once) is type(pipe)


def test_what_cannot_be_attached(shared: Path) -> None:
    pipe = tiny.build(shared, "sd")
    with pytest.raises(EbbError, match="starts where its pipeline does"):
        ebb.attach(PLAN.replace(start="given"), pipe)
    with pytest.raises(EbbError, match="finds its times on the way"):
        ebb.attach(PLAN.replace(solve="heun", grid="adaptive"), pipe)("low", **tiny.SIZE["sd"])
    with pytest.raises(EbbError, match="guidance_rescale"):
        ebb.attach(PLAN, pipe)("low", guidance_rescale=0.5)
