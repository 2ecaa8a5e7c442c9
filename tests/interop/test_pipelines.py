"""diffusers' pipelines as models: their pictures by our loop, held to those of their own call."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import diffusers as df
import pytest
import tiny
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.interop.pipelines.matching import first, matching

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
STEPS, SCALE = 7, 3.0


def noise(model: ebb.Model) -> Tensor:
    assert isinstance(model.like, Tensor)
    return torch.randn((2, *model.like.shape), generator=torch.Generator().manual_seed(3))


def ours(name: str, model: Any, latents: Tensor, scale: float = SCALE) -> Tensor:
    """Pictures in [0, 1] of two prompts, by the plan that matches the pipeline's own call."""
    plan = matching(model, STEPS, scale).replace(start="given")
    cond = {**tiny.asked(name), "start": first(model, STEPS, latents)}
    pixels = ebb.sample(model, plan, cond=cond, n=2).pixels
    assert isinstance(pixels, Tensor)
    return (pixels + 1) / 2


def gap(name: str, model: Any, wanted: Tensor, latents: Tensor, scale: float = SCALE) -> float:
    return float((ours(name, model, latents, scale) - wanted).abs().max())


@pytest.mark.parametrize(("name", "scheduler"), [(n, s) for n, all_ in tiny.MATCHED.items() for s in all_])
def test_the_pictures_are_the_pipelines_own(shared: Path, name: str, scheduler: str) -> None:
    pipe = tiny.build(shared, name, scheduler)
    model = ebb.load(pipe, **tiny.SIZE[name])
    latents = noise(model)
    wanted = tiny.call(name, pipe, latents, STEPS, SCALE)
    assert gap(name, model, wanted, latents) < 1e-5
    assert float(wanted.std()) > 0.02  # pictures of something


@pytest.mark.parametrize("name", tiny.SIZE)
def test_without_guidance_too(shared: Path, name: str) -> None:
    pipe = tiny.build(shared, name, tiny.MATCHED[name][0])
    model = ebb.load(pipe, **tiny.SIZE[name])
    latents = noise(model)
    assert gap(name, model, tiny.call(name, pipe, latents, STEPS, 1.0), latents, 1.0) < 1e-5


def swapped(model: Any) -> Any:
    return dataclasses.replace(model, voice=dataclasses.replace(model.voice, first=not model.voice.first))


def spoken(model: Any, **changed: Any) -> Any:
    """The model with another voice toward its network."""
    voice = dataclasses.replace(model.voice, **changed)
    return dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, call=voice))


FAULTS: dict[str, Any] = {
    "the null rows are taken for the prompt's": ("sd", "ddim", swapped),
    "the time is told in the other direction": ("sd3", "flow-euler", lambda m: spoken(m, told=lambda t, n: n - t)),
    "times are not made whole": ("wan", "flow-dpmpp", lambda m: spoken(m, whole=None)),
    "another prediction": ("dit", "ddim", lambda m: dataclasses.replace(
        m, denoiser=dataclasses.replace(m.denoiser, predicts="v"))),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows(shared: Path, fault: str) -> None:
    name, scheduler, plant = FAULTS[fault]
    pipe = tiny.build(shared, name, scheduler)
    model = ebb.load(pipe, **tiny.SIZE[name])
    latents = noise(model)
    wanted = tiny.call(name, pipe, latents, STEPS, SCALE)
    assert gap(name, plant(model), wanted, latents) > 1e-4


@pytest.mark.parametrize("name", tiny.SIZE)
def test_loading_and_sampling_leave_the_pipeline_as_it_was(shared: Path, name: str) -> None:
    pipe = tiny.build(shared, name)
    pipe.scheduler.set_timesteps(5)
    parts, clock, config = dict(pipe.__dict__), pipe.scheduler.timesteps.clone(), dict(pipe.config)
    watched = ("scheduler", "unet", "transformer")  # a VAE for video keeps caches of its own
    inside = {k: set(vars(v)) for k, v in parts.items() if k in watched}
    model = ebb.load(pipe, **tiny.SIZE[name])
    out = ebb.sample(model, ebb.Plan(grid={"name": "linear", "steps": 2}), cond=tiny.asked(name), n=2)
    assert len(out.pixels) == 2
    assert pipe.__dict__.keys() == parts.keys()
    assert all(pipe.__dict__[k] is v for k, v in parts.items())
    assert {k: set(vars(v)) for k, v in parts.items() if k in watched} == inside
    assert torch.equal(pipe.scheduler.timesteps, clock)
    assert dict(pipe.config) == config


@pytest.mark.parametrize("name", tiny.SIZE)
def test_an_element_alone_is_that_of_a_batch(shared: Path, name: str) -> None:
    model = ebb.load(tiny.build(shared, name), **tiny.SIZE[name])
    plan = ebb.Plan(grid={"name": "linear", "steps": 3}, guide={"name": "cfg", "scale": 2.0})
    asked = tiny.asked(name)
    both = ebb.sample(model, plan, cond=asked, n=2, seed=5)
    alone = ebb.sample(model, plan, cond={k: v[1] for k, v in asked.items()}, n=1, seed=6)
    assert isinstance(both.x, Tensor)
    size = float(both.x.abs().max())  # untrained networks do not stay near 1
    torch.testing.assert_close(both.x[1:] / size, alone.x / size, atol=1e-5, rtol=0)
    assert not torch.allclose(both.x[:1], both.x[1:], atol=1e-2)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_half_precision(shared: Path, name: str) -> None:
    """Times that were rounded on their way to the network are recognised, and the state keeps float32."""
    pipe = tiny.build(shared, name).to(torch.bfloat16)
    model = ebb.load(pipe, **tiny.SIZE[name])
    out = ebb.sample(model, ebb.Plan(grid={"name": "linear", "steps": 2}), cond="low", n=1)
    assert isinstance(out.x, Tensor)
    assert out.x.dtype == torch.float32
    whole = ebb.load(tiny.build(shared, name), **tiny.SIZE[name])
    wanted = ebb.sample(whole, ebb.Plan(grid={"name": "linear", "steps": 2}), cond="low", n=1)
    assert isinstance(wanted.x, Tensor)
    assert float((out.x - wanted.x).abs().max() / wanted.x.abs().max()) < 0.05


def test_a_folder_is_its_pipeline(shared: Path, tmp_path: Path) -> None:
    pipe = tiny.build(shared, "sd")
    pipe.save_pretrained(tmp_path / "sd")
    plan = ebb.Plan(solve="dpmpp-2m", grid={"name": "linear", "steps": 4}, guide={"name": "cfg", "scale": 2.0})
    made = [
        ebb.sample(ebb.load(source, **tiny.SIZE["sd"]), plan, cond=tiny.PROMPTS, n=2)
        for source in (pipe, str(tmp_path / "sd"))
    ]
    assert torch.equal(made[0].x, made[1].x)
    assert [i.size for i in made[1].images()] == [(32, 32)] * 2
    assert made[1].save(tmp_path / "two.png")[0].exists()
    again = ebb.Plan.load(tmp_path / "two.png")
    assert again.run is not None
    assert again.run["cond"] == tiny.PROMPTS
    assert again.run["model"] == str(tmp_path / "sd")


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_previews_by_a_tiny_autoencoder(shared: Path, name: str) -> None:
    """The pipeline unpacks and scales, the small decoder draws: as it would by itself, and never for the samples."""
    pipe = tiny.build(shared, name)
    channels = pipe.vae.config.latent_channels
    torch.manual_seed(0)
    widths: dict[str, Any] = {f"{k}_block_out_channels": (8, 8, 8, 8) for k in ("encoder", "decoder")}
    blocks = {"num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)}
    small = df.AutoencoderTiny(latent_channels=channels, **widths, **blocks).eval()
    model, plain = ebb.load(pipe, preview=small, **tiny.SIZE[name]), ebb.load(pipe, **tiny.SIZE[name])
    x = noise(model)
    rows = pipe._unpack_latents(x, *(tiny.SIZE[name]["height"],) * 2, pipe.vae_scale_factor) if name == "flux" else x
    with torch.no_grad():
        wanted = torch.cat([small.decode(row[None]).sample for row in rows]).clamp(-1, 1)
    assert float((model.preview(x) - wanted).abs().max()) < 1e-5
    assert torch.equal(model.pixels(x), plain.pixels(x))
    assert torch.equal(plain.preview(x), plain.pixels(x))
    assert pipe.vae is not small


# ---------------------------------------------------------------- bad input


def test_a_preview_of_other_latents_is_refused(shared: Path) -> None:
    pipe = tiny.build(shared, "sd3")
    with pytest.raises(EbbError, match=r"preview is a decoder of the latents .* \(4 channels\).* reads 9"):
        ebb.load(pipe, preview=df.AutoencoderTiny(latent_channels=9), **tiny.SIZE["sd3"])


class Odd(torch.nn.Module):
    """A denoiser around another that wants one argument more."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(self, sample: Tensor, when: Tensor, encoder_hidden_states: Tensor, **rest: Any) -> Any:
        return self.inner(sample, when, encoder_hidden_states, **rest)


def test_a_denoiser_that_is_told_no_timestep_is_refused(shared: Path) -> None:
    pipe = tiny.build(shared, "sd")
    pipe.unet = Odd(pipe.unet)
    with pytest.raises(EbbError, match=r"no argument 'timestep' .it takes sample, when, encoder_hidden_states"):
        ebb.load(pipe, **tiny.SIZE["sd"])


def test_an_argument_that_changes_on_the_way_is_named(shared: Path) -> None:
    pipe = tiny.build(shared, "sd")
    kind = type(pipe.unet)
    count = iter(range(99))

    class Counted(type(pipe)):  # type: ignore[misc]
        @property
        def cross_attention_kwargs(self) -> dict[str, Any]:
            return {"place": torch.tensor([float(next(count))])}

    pipe.__class__ = Counted
    assert isinstance(pipe.unet, kind)
    with pytest.raises(EbbError, match=r"'cross_attention_kwargs.place' of this denoiser changes from step to step"):
        ebb.load(pipe, **tiny.SIZE["sd"])


def test_a_long_prompt_says_where_it_was_cut(shared: Path) -> None:
    model = ebb.load(tiny.build(shared, "sd"), **tiny.SIZE["sd"])
    words = " ".join(["low", "newer"] * 60)
    with pytest.warns(UserWarning, match=r"prompt is \d+ tokens long and tokenizer .* reads 77: it ends there after '"):
        model.condition(words, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.condition("low newer", 1)


@pytest.mark.parametrize(
    ("cond", "word"),
    [
        ({"negative": "wider"}, "holds no prompt"),
        ({"prompt": "low", "promt_2": "er"}, "is not asked for 'promt_2'"),
        ({"prompt": ["low", "er", "w"]}, "'prompt' lists 3 values for 2 samples"),
    ],
)
def test_conditions_that_do_not_fit(shared: Path, cond: Any, word: str) -> None:
    model = ebb.load(tiny.build(shared, "sd"), **tiny.SIZE["sd"])
    with pytest.raises(EbbError, match=word):
        ebb.sample(model, cond=cond, n=2)


def test_sizes_and_labels_that_do_not_fit(shared: Path) -> None:
    pipe = tiny.build(shared, "sd")
    with pytest.raises(EbbError, match="not asked for 'hight'; did you mean height"):
        ebb.load(pipe, hight=32)
    with pytest.raises(EbbError, match="divisible by 8"):
        ebb.load(pipe, height=33, width=32)
    model = ebb.load(tiny.build(shared, "dit"))
    with pytest.raises(EbbError, match=r"labels 0 to 999, not \[1000\]"):
        ebb.sample(model, cond=[1000], n=1)
    with pytest.raises(EbbError, match="needs a label"):
        ebb.sample(model, n=1)


def test_folders_that_cannot_be_opened(shared: Path, tmp_path: Path) -> None:
    home = tmp_path / "sd"
    tiny.build(shared, "sd").save_pretrained(home)
    weights = next((home / "unet").glob("*.safetensors"))
    away = weights.rename(tmp_path / weights.name)
    with pytest.raises(EbbError, match="unet misses its weights"):
        ebb.load(home)
    (home / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(EbbError, match="is a pickle"):
        ebb.load(home)
    away.rename(weights)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(EbbError, match="cannot be opened"):
        ebb.load(home)
    index = json.loads((home / "model_index.json").read_text())
    for changed, word in (
        ({"_class_name": "StableDifusionPipeline"}, "did you mean StableDiffusionPipeline"),
        ({"_class_name": ["pipeline", "Mine"]}, "code, which is not run"),
        ({"second": ["diffusers", "UNet2DModel"]}, "misses its second"),
    ):
        (home / "model_index.json").write_text(json.dumps({**index, **changed}))
        with pytest.raises(EbbError, match=word):
            ebb.load(home)
    (home / "model_index.json").write_text("{")
    with pytest.raises(EbbError, match="cannot be read"):
        ebb.load(home)
