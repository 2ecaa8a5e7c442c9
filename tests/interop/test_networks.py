"""Bare networks of diffusers and single files: the same answers as the network's own, and one sentence for what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.zoo.networks import UNet

DDPM = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": True}


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return UNet(size=8, widths=(8, 16), head=8).build()


@pytest.fixture(scope="module")
def folder(unet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks")
    unet.save_pretrained(path / "unet")
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(DDPM))
    return path


def answer(model: Any, x: torch.Tensor, t: float) -> torch.Tensor:
    cond = model.condition({"class_labels": torch.tensor([3, 4])}, 2)
    out: torch.Tensor = model.denoiser(x, torch.full((2,), t, dtype=torch.float64), cond).mean
    return out


def test_a_network_its_folder_and_its_file_are_one_model(unet: Any, folder: Path) -> None:
    """x0 = (x - c eps) / a of its own eps at the row of its table that a time stands for."""
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    models = [
        ebb.load(unet, process=DDPM),
        ebb.load(folder / "unet", process=folder / "scheduler"),
        ebb.load(file, config=folder / "unet", process=str(folder / "scheduler" / "scheduler_config.json")),
        ebb.load(file, config=folder / "unet" / "config.json", process=DDPM),
    ]
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    eps = unet(x, torch.tensor([499, 499]), class_labels=torch.tensor([3, 4])).sample
    from diffusers import DDPMScheduler

    alpha = DDPMScheduler.from_config(DDPM).alphas_cumprod[499]
    x0 = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()
    for model in models:
        assert model.like.shape == (1, 8, 8)
        assert model.medium == "image"
        assert torch.allclose(answer(model, x, 0.5), x0, atol=2e-5)
    out = ebb.sample(models[1], ebb.Plan(grid={"name": "linear", "steps": 3}), cond={"class_labels": 3}, n=2)
    assert len(out.images()) == 2


def test_a_variance_beside_the_mean_is_left_out() -> None:
    torch.manual_seed(0)
    from diffusers import DiTTransformer2DModel

    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 8, "patch_size": 4}
    dit = DiTTransformer2DModel(**shape, in_channels=2, out_channels=4, num_embeds_ada_norm=5)
    x, label = torch.randn(2, 2, 8, 8), {"class_labels": torch.tensor([0, 1])}
    model = ebb.load(dit, process="flow")
    said = model.denoiser(x, torch.full((2,), 0.5, dtype=torch.float64), label).mean
    assert torch.allclose(said, x - 0.5 * dit(x, torch.full((2,), 500.0), **label).sample[:, :2], atol=1e-6)


def test_a_call_of_ones_own_is_given_the_network() -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, **blocks)
    seen: list[Any] = []

    def call(network: Any, x: torch.Tensor, clock: torch.Tensor, cond: Any) -> Any:
        seen.append(network)
        return network(x, clock).sample

    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5, dtype=torch.float64)
    ours, theirs = (ebb.load(unet, process="flow", **own).denoiser(x, t, {}).mean for own in ({"call": call}, {}))
    assert seen == [unet]
    assert torch.equal(ours, theirs)


def test_one_file_in_a_pipeline(shared: Path, tmp_path: Path) -> None:
    """The denoiser is the file's, whatever lies in its place in the folder; the rest is the folder's."""
    pipe = tiny.build(shared, "sd")
    pipe.save_pretrained(tmp_path / "pipe")
    torch.manual_seed(1)
    for p in pipe.unet.parameters():
        p.data += 0.01 * torch.randn_like(p)
    pipe.unet.save_pretrained(tmp_path / "tuned")
    (tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    file = tmp_path / "tuned" / "diffusion_pytorch_model.safetensors"
    mine, own = (ebb.load(v, **c) for v, c in ((file, {"config": tmp_path / "pipe"}), (pipe, {})))
    plan = ebb.Plan(grid={"name": "linear", "steps": 2})
    a, b = (ebb.sample(m, plan, cond="low newer", n=1).x for m in (mine, own))
    assert torch.equal(a, b)


BAD: dict[str, tuple[Callable[[Path, Any], Any], str]] = {
    "no process": (lambda f, n: ebb.load(n), "nothing says on what this UNet2DModel was trained"),
    "a pickle": (lambda f, n: ebb.load(f / "model.ckpt"), "is a pickle"),
    "no file": (lambda f, n: ebb.load(f / "gone.safetensors", config=f), "there is no file"),
    "no config": (lambda f, n: ebb.load(f / "odd.safetensors"), "config=FOLDER"),
    "another's": (lambda f, n: ebb.load(f / "odd.safetensors", config=f / "unet", process="flow"), "cannot be opened"),
    "nobody's": (lambda f, n: ebb.load(f / "odd.safetensors", config=f, process="flow"), "No such file"),
    "no weights": (lambda f, n: ebb.load(f / "bare", process="flow"), "misses its weights"),
    "no class": (
        lambda f, n: ebb.load(f / "odd.safetensors", config=f / "strange", process="flow"),
        "has no UNet2DModle",
    ),
    "its authors' layout": (
        lambda f, n: ebb.load(f / "ldm.safetensors", config=f / "unet", process="flow"),
        "from_single_file",
    ),
    "a dtype of an object": (lambda f, n: ebb.load(n, process="flow", dtype=torch.float16), "are for files"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(folder: Path, unet: Any, name: str) -> None:
    (folder / "model.ckpt").write_bytes(b"\x80\x04")
    save_file({"a": torch.zeros(1)}, folder / "odd.safetensors")
    save_file({"model.diffusion_model.a": torch.zeros(1)}, folder / "ldm.safetensors")
    for sub, kind in (("bare", "UNet2DModel"), ("strange", "UNet2DModle")):
        (folder / sub).mkdir(exist_ok=True)
        (folder / sub / "config.json").write_text(json.dumps({"_class_name": kind}))
    call, word = BAD[name]
    with pytest.raises(EbbError, match=word) as told:
        call(folder, unet)
    assert "\n" not in str(told.value)
