"""What a call of an attached pipeline may hold: each against the pipeline's own call, without a plan of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import more
import pytest
import tiny
import torch
from torch import Tensor, nn

import ebbtide as ebb
from ebbtide.core import registry

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
NEAR = 1e-5
SCHEDULER = {"sd": "dpmpp", "sd3": "flow-euler", "flux": "flow-euler-dynamic", "wan": "flow-unipc"}
TEXT = ("sd", "sd3", "flux", "wan")


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def call(pipe: Any, name: str, **asked: Any) -> Tensor:
    asked = {"output_type": "pt", "num_inference_steps": 5, **tiny.SIZE[name], **asked}
    return torch.as_tensor(pipe(**asked, return_dict=False)[0])


def seeded(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(n)]


def encoded(pipe: Any, name: str) -> dict[str, Any]:
    """Two prompts and their negatives, encoded by the pipeline."""
    ids = {"prompt": tiny.PROMPTS["prompt"], "negative_prompt": tiny.PROMPTS["negative"]}
    with torch.no_grad():
        if name == "sd":
            cond, null = pipe.encode_prompt(
                **ids, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
            )
            return {"prompt_embeds": cond, "negative_prompt_embeds": null}
        if name == "wan":
            cond, null = pipe.encode_prompt(**ids, max_sequence_length=16)
            return {"prompt_embeds": cond, "negative_prompt_embeds": null}
        if name == "sd3":
            keys = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
            return dict(zip(keys, pipe.encode_prompt(**ids, prompt_2=None, prompt_3=None), strict=True))
        both = [pipe.encode_prompt(tiny.PROMPTS[k], None, max_sequence_length=32)[:2] for k in ("prompt", "negative")]
        keys = (("prompt_embeds", "pooled_prompt_embeds"), ("negative_prompt_embeds", "negative_pooled_prompt_embeds"))
        return {k: v for ks, vs in zip(keys, both, strict=True) for k, v in zip(ks, vs, strict=True)}


def guided(name: str) -> dict[str, float]:
    return {tiny.SCALE.get(name, "guidance_scale"): 3.0}


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("many", [False, True])
def test_generators(shared: Path, name: str, many: bool) -> None:
    """One generator, or a list of one for each element, draws the noise that it draws without us."""
    pipe = tiny.build(shared, name, SCHEDULER[name])
    asked = {"prompt": tiny.PROMPTS["prompt"], **guided(name), "negative_prompt": tiny.PROMPTS["negative"]}
    wanted, again = (
        call(p, name, generator=seeded(2) if many else seeded(1)[0], **asked) for p in (pipe, ebb.attach(None, pipe))
    )
    assert gap(wanted, again) < NEAR
    other = [torch.Generator().manual_seed(7)] * 2 if many else torch.Generator().manual_seed(7)
    assert gap(call(pipe, name, generator=other, **asked), wanted) > 1e-3


@pytest.mark.parametrize("name", TEXT)
def test_encoded_prompts(shared: Path, name: str) -> None:
    pipe = tiny.build(shared, name, SCHEDULER[name])
    asked = {**encoded(pipe, name), **guided(name)}
    wanted, again = (call(p, name, generator=seeded(2), **asked) for p in (pipe, ebb.attach(None, pipe)))
    assert gap(wanted, again) < NEAR
    said = {"prompt": tiny.PROMPTS["prompt"], "negative_prompt": tiny.PROMPTS["negative"], **guided(name)}
    assert gap(call(ebb.attach(None, pipe), name, generator=seeded(2), **said), again) < 1e-5


@pytest.mark.parametrize("name", TEXT)
def test_latents_in_and_out(shared: Path, name: str) -> None:
    """Latents given, latents handed back; several pictures of one prompt."""
    pipe = tiny.build(shared, name, SCHEDULER[name])
    like = ebb.load(pipe, **tiny.SIZE[name]).like
    assert isinstance(like, Tensor)
    latents = torch.randn((2, *like.shape), generator=torch.Generator().manual_seed(3))
    each = "num_videos_per_prompt" if name == "wan" else "num_images_per_prompt"
    asked = {"prompt": "low newer", each: 2, "output_type": "latent", **guided(name), "negative_prompt": "er"}
    wanted, again = (call(p, name, latents=latents.clone(), **asked) for p in (pipe, ebb.attach(None, pipe)))
    assert wanted.shape == latents.shape
    assert gap(wanted, again) < 1e-4 * float(wanted.abs().max())
    assert gap(wanted[:1], wanted[1:]) > 1e-2


@pytest.mark.parametrize("name", TEXT)
def test_callbacks_that_change_latents_and_prompts(shared: Path, name: str) -> None:
    # UniPC of diffusers corrects from the latents before the callback, and so forgets them
    pipe = tiny.build(shared, name, "flow-dpmpp" if name == "wan" else SCHEDULER[name])

    def changed(pipe: Any, i: int, t: Any, inside: dict[str, Any]) -> dict[str, Any]:
        if i == 1:
            return {"latents": inside["latents"] * 0.5 + 0.1}
        return {"prompt_embeds": inside["prompt_embeds"].flip(1)} if i == 2 else {}

    asked: dict[str, Any] = {
        "prompt": tiny.PROMPTS["prompt"],
        "negative_prompt": tiny.PROMPTS["negative"],
        **guided(name),
    }
    names = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    wanted, again = (
        call(p, name, generator=seeded(2), callback_on_step_end=changed, **names, **asked)
        for p in (pipe, ebb.attach(None, pipe))
    )
    assert gap(wanted, again) < NEAR
    assert gap(call(pipe, name, generator=seeded(2), **asked), wanted) > 1e-3


def test_a_callback_may_stop_the_run(shared: Path) -> None:
    """`interrupt`, as the manual has it: the pipeline skips the steps that are left."""
    pipe = tiny.build(shared, "sd", "dpmpp")

    def stop(pipe: Any, i: int, t: Any, inside: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = i == 2
        return {}

    asked = {"prompt": "low", "output_type": "latent", "callback_on_step_end": stop}
    wanted, again = (call(p, "sd", generator=seeded(1), **asked) for p in (pipe, ebb.attach(None, pipe)))
    assert gap(wanted, again) < 1e-4 * float(wanted.abs().max())


def test_lists_of_times(shared: Path) -> None:
    flux, sd = tiny.build(shared, "flux", "flow-euler-dynamic"), tiny.build(shared, "sd", "euler")
    for pipe, name, asked in (
        (flux, "flux", {"sigmas": [1.0, 0.6, 0.5, 0.1]}),
        (sd, "sd", {"timesteps": [950, 600, 333, 40]}),
        (sd, "sd", {"sigmas": [12.0, 3.0, 1.0, 0.2, 0.0]}),
    ):
        said = {"prompt": "low", "num_inference_steps": 4, **asked}
        wanted, again = (call(p, name, generator=seeded(1), **said) for p in (pipe, ebb.attach(None, pipe)))
        assert gap(wanted, again) < NEAR


@pytest.mark.parametrize("name", ["inpaint", "inpaint_joined"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting(shared: Path, name: str, strength: float) -> None:
    """The unet of four channels keeps the picture at every step, the one of nine is told what to keep."""
    pipe, asked = more.build(shared, name)
    asked = {**asked, "strength": strength, "guidance_scale": 3.0, "negative_prompt": "er", "prompt": "low newer"}
    wanted, again = (call(p, "sd", generator=seeded(1), **asked) for p in (pipe, ebb.attach(None, pipe)))
    assert gap(wanted, again) < NEAR
    other = {**asked, "mask_image": 1 - asked["mask_image"]}
    assert gap(call(pipe, "sd", generator=seeded(1), **other), wanted) > 1e-3


def test_times_told_to_every_token(shared: Path) -> None:
    """Wan 2.2 tells each token the time; where all are told the same one, so do we."""
    pipe = tiny.build(shared, "wan", "flow-unipc")
    pipe.register_to_config(expand_timesteps=True)
    wanted, again = (call(p, "wan", prompt="low", generator=seeded(1)) for p in (pipe, ebb.attach(None, pipe)))
    assert gap(wanted, again) < NEAR


@pytest.mark.parametrize("process", ["edm", "flow"])
def test_another_process_on_the_pipelines_latents(shared: Path, process: str) -> None:
    """Steps through the same levels of another process make the same pictures, and callbacks see the network's latents."""
    pipe = tiny.build(shared, "sd", "ddim")
    own = ebb.load(pipe, **tiny.SIZE["sd"]).process
    times = torch.tensor([0.99, 0.7, 0.4, 0.1], dtype=torch.float64)
    there = registry.make("process", {"name": process})
    seen: list[list[Tensor]] = []

    def made(plan: ebb.Plan) -> Tensor:
        seen.append([])

        def watch(pipe: Any, i: int, t: Any, inside: dict[str, Any]) -> dict[str, Any]:
            seen[-1].append(inside["latents"])
            return {"latents": inside["latents"] + 0.01} if i == 1 else {}

        asked = {"prompt": "low", "num_inference_steps": 4, "output_type": "latent", "callback_on_step_end": watch}
        return call(ebb.attach(plan, pipe), "sd", generator=seeded(1), **asked)

    here = made(ebb.Plan(grid={"name": "explicit", "times": [*times.tolist(), 0]}))
    same = there.time(own.lam(times)).tolist()
    other = made(ebb.Plan(process=process, grid={"name": "explicit", "times": [*same, 0]}))
    size = float(here.abs().max())
    assert gap(here, other) < 1e-5 * size
    assert all(gap(a, b) < 1e-5 * size for a, b in zip(*seen, strict=True))


# ---------------------------------------------------------------- adapters and hooks


class LowRank(nn.Module):
    """A linear map with a low-rank one beside it, as adapters put it there; its strength may change."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.inner, self.strength = inner, 1.0
        self.down = nn.Parameter(torch.randn((2, inner.in_features), generator=g) * 0.5)
        self.up = nn.Parameter(torch.randn((inner.out_features, 2), generator=g) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + self.strength * (x @ self.down.T @ self.up.T)
        return out


def adapted(denoiser: nn.Module) -> list[LowRank]:
    """The queries of every attention of a denoiser, adapted."""
    made = []
    for module in list(denoiser.modules()):
        if isinstance(getattr(module, "to_q", None), nn.Linear):
            module.to_q = LowRank(module.to_q)  # type: ignore[assignment,arg-type]
            made.append(module.to_q)
    return made


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_adapters_put_in_before_and_after(shared: Path, name: str) -> None:
    """Low-rank weights are those of the pipeline: put in after attaching, made stronger, and switched off again."""
    pipe = tiny.build(shared, name, SCHEDULER[name])
    attached = ebb.attach(None, pipe)
    plain = call(attached, name, prompt="low", generator=seeded(1))
    found = adapted(getattr(pipe, "unet" if name == "sd" else "transformer"))
    assert found
    seen = [plain]
    for strength in (1.0, 2.0):
        for one in found:
            one.strength = strength
        wanted, again = (call(p, name, prompt="low", generator=seeded(1)) for p in (pipe, attached))
        assert gap(wanted, again) < NEAR
        assert gap(seen[-1], again) > 1e-4
        seen.append(again)
    for one in found:
        one.strength = 0.0
    assert gap(call(attached, name, prompt="low", generator=seeded(1)), plain) < NEAR


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_hooks_run_around_every_call(shared: Path, name: str) -> None:
    """What offloading does: weights are brought before a call and taken away after it, by hooks or by a new `forward`."""
    pipe = tiny.build(shared, name, SCHEDULER[name])
    denoiser = getattr(pipe, "unet" if name == "sd" else "transformer")
    wanted = call(pipe, name, prompt="low", generator=seeded(1))
    kept = {k: v.detach().clone() for k, v in denoiser.named_parameters()}
    runs: list[str] = []

    def bring(module: nn.Module, args: Any, kwargs: Any) -> None:
        runs.append("in")
        for k, v in module.named_parameters():
            v.data = kept[k]

    def take(module: nn.Module, args: Any, out: Any) -> None:
        runs.append("out")
        for v in module.parameters():
            v.data = torch.full((), float("nan")).expand(v.shape)

    denoiser.register_forward_pre_hook(bring, with_kwargs=True)
    denoiser.register_forward_hook(take)
    own = denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        runs.append("on")
        return own(*args, **kwargs)

    attached = ebb.attach(None, pipe)
    denoiser.forward = forward  # as accelerate does, on an attached pipeline too
    assert gap(call(attached, name, prompt="low", generator=seeded(1)), wanted) < NEAR
    assert runs == ["in", "on", "out"] * 5
