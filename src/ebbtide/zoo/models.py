"""Models from files: a trained network with the recipe.json beside it, or pictures with a closed-form denoiser."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core import registry
from ebbtide.core.errors import EbbError, nearest
from ebbtide.denoise.model import Model
from ebbtide.denoise.network import TIMES, Network

_KINDS = {
    "DiTTransformer2DModel": "diffusers.models.transformers.dit_transformer_2d",
    "UNet2DModel": "diffusers.models.unets.unet_2d",
    "AutoencoderKL": "diffusers.models.autoencoders.autoencoder_kl",
    "ModernBertForMaskedLM": "transformers",
    "LlamaForCausalLM": "transformers",
    "ebbtide.zoo.emoji.Painter": "ebbtide.zoo.emoji",
    "ebbtide.zoo.series.SeriesTransformer": "ebbtide.zoo.series",
    "ebbtide.zoo.video.VideoTransformer": "ebbtide.zoo.video",
    "ebbtide.zoo.policy.PolicyTransformer": "ebbtide.zoo.policy",
}


def model_of(module: nn.Module, about: Mapping[str, Any], name: str, digest: str = "") -> Model:
    """A network of diffusers or transformers and what recipe.json says about it as a model.

    A network of one class was trained without labels, so it knows none. Raises EbbError for one that does not denoise.
    """
    if "process" not in about:
        raise EbbError(f"{name} predicts a {about.get('predicts', 'thing')}, so it cannot be sampled from.")
    process = registry.make("process", about["process"])
    if about["medium"] == "text":
        return _written(module, process, about, name, digest)
    if "prompt" in about:
        return _told(module, process, about, name, digest)
    if about["medium"] == "video":
        from ebbtide.zoo.video import video_model

        return video_model(module, process, about, name, digest)
    if about["medium"] == "actions":
        from ebbtide.zoo.policy import policy_model

        return policy_model(module, process, about, name, digest)
    if about["medium"] == "series":
        from ebbtide.zoo.series import series_model

        return series_model(module, process, about, name, digest)
    if "beside" in about:
        return _beside(module, process, about, name, digest)
    from ebbtide.learn.trajectory import far

    null = about["nulls"]["label"]

    def call(module: Any, x: Tensor, clock: Tensor, cond: dict[str, Any]) -> Tensor:
        label = cond["label"] if "label" in cond else torch.full((len(x),), null)
        if "until" in cond:
            x = far(x, (clock - cond["until"]) / about["steps_of_clock"])
        out: Tensor = module(x, clock, class_labels=label.to(x.device)).sample
        return out

    labels = about["labels"] if about["labels"] > 1 else None
    denoiser, like = denoiser_of(module, process, about, call), torch.zeros(about["shape"])
    return Model(name, denoiser, like, labels=labels, medium=about["medium"], digest=digest)


def denoiser_of(module: nn.Module, process: Any, about: Mapping[str, Any], call: Callable[..., Tensor]) -> Network:
    """A network with what recipe.json says of its predictions and its clock; `call` is how it is asked."""
    return Network(
        module,
        process,
        predicts=about["predicts"],
        clock=about["clock"],
        steps=about["steps_of_clock"],
        nulls=about["nulls"],
        call=call,
        jumps=about.get("far", False),
    )


def _beside(module: nn.Module, process: Any, about: Mapping[str, Any], name: str, digest: str) -> Model:
    from ebbtide.learn.restoring import shown

    said = about["beside"]
    leaf = said["name"]

    def call(module: Any, x: Tensor, clock: Tensor, cond: dict[str, Any]) -> Tensor:
        if leaf not in cond:
            raise EbbError(f"{name} sees a picture beside its own: give cond={{{leaf!r}: tensor shaped like x}}.")
        t, beside = TIMES[about["clock"]](clock.double().cpu(), about["steps_of_clock"]), cond[leaf].to(x)
        if said.get("once") and bool((t < 1).any()):
            raise EbbError(f"{name} was taught at the first time alone: sample it in one step, grid linear, steps 1.")
        x = x if said.get("shown", True) else torch.zeros_like(x)
        seen = shown(process, x, t, beside, said["spread"]) if "spread" in said else torch.cat([x, beside], 1)
        task = torch.full((len(x),), said["task"], device=x.device) if "task" in said else None
        out: Tensor = module(seen, clock, class_labels=task).sample
        return out

    denoiser, like = denoiser_of(module, process, about, call), torch.zeros(about["shape"])
    return Model(name, denoiser, like, medium=about["medium"], digest=digest)


def _written(module: nn.Module, process: Any, about: Mapping[str, Any], name: str, digest: str) -> Model:
    from ebbtide.interop.transformers.model import build
    from ebbtide.zoo.text import Characters, decode

    (length,), alphabet = about["shape"], about["alphabet"]
    options = {"mask": process.mask, "length": length, "schedule": process.schedule, "name": name}
    # short rows are filled with white space, which is left out of what is shown
    pad = next((k for k, c in enumerate(alphabet) if c.isspace()), 0)
    model: Any = build(module, Characters(alphabet), pad=pad, **options)
    # every underscore is a character to write: only the word for a mask stands for one of them
    writing = replace(model.writing, blank=r"\[MASK\]")
    return replace(model, digest=digest, writing=writing, decode=lambda row: decode(row, alphabet).rstrip())


def _told(module: nn.Module, process: Any, about: Mapping[str, Any], name: str, digest: str) -> Model:
    from ebbtide.zoo.emoji import PromptModel, Words

    def call(module: Any, x: Tensor, clock: Tensor, cond: dict[str, Any]) -> Tensor:
        out: Tensor = module(x, clock, cond["words"].to(x.device))
        return out

    denoiser = denoiser_of(module, process, about, call)
    said = about["prompt"]
    info = {"prompts": said["examples"]}
    like, read = torch.zeros(about["shape"]), Words(said["words"].split(), said["length"])
    return PromptModel(name, denoiser, like, medium=about["medium"], digest=digest, info=info, read=read)


def open_model(folder: Path, name: str, device: str | torch.device | None = None) -> Model:
    """The model in a folder that `ebb train` left, or that ships; float32, on the device given.

    Raises EbbError when the folder holds no such model, and for weights that are corrupt or a pickle.
    """
    about, _ = _about(folder)
    if "process" not in about:
        return model_of(nn.Identity(), about, name)
    module, about, digest = network(folder)
    return model_of(module.to(device), about, name, digest)


def network(folder: Path) -> tuple[nn.Module, dict[str, Any], str]:
    """The bare module in a folder that `ebb train` left, what recipe.json says, and a hash of the weights.

    float32, on the CPU, `eval()`, no gradients. Raises EbbError as `open_model` does.
    """
    about, config = _about(folder)
    name = config.get("_class_name") or next(iter(config.get("architectures") or ["nothing"]))
    if name not in _KINDS:
        raise EbbError(f"{folder} holds a network of class {name}; ebbtide trains {', '.join(_KINDS)}.")
    kind: Any = getattr(importlib.import_module(_KINDS[name]), name.rsplit(".", 1)[-1])
    with torch.random.fork_rng(devices=[]):
        if "_class_name" in config:
            module, file = kind.from_config(config), folder / "diffusion_pytorch_model.safetensors"
        else:
            module, file = kind(kind.config_class.from_dict(config)).float(), folder / "model.safetensors"
    _fill(module, file)
    if "routing" in about:
        from ebbtide.zoo.routing import routed, windows

        module = routed(module, windows(module.inner_dim, **about["routing"]))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return module.eval().requires_grad_(False), about, digest


def _about(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        about = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        return about, json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise EbbError(f"{folder} holds no model of ebbtide: {error}.") from error


def data_model(path: str | Path, denoiser: str = "local", size: int | None = None, process: str = "flow") -> Model:
    """Pictures as a model, with no network: a folder or an .npz file and a closed-form denoiser of what is in it.

    denoiser  "local" makes new pictures, "exact" repeats those that are there, "wiener" is the best linear one
    size      make all pictures this many pixels square
    process   the Gaussian process that is sampled in

    Raises EbbError when there is no readable picture, and for a denoiser that does not exist.
    """
    from ebbtide.denoise.data import Empirical, Wiener
    from ebbtide.denoise.local import Local
    from ebbtide.zoo.data import load_pictures

    known: dict[str, Any] = {"local": Local, "exact": Empirical, "wiener": lambda p, x, labels: Wiener.fit(p, x)}
    if denoiser not in known:
        raise EbbError(f"there is no denoiser {denoiser!r} of pictures; {nearest(denoiser, known)}")
    pictures = load_pictures(path, size)
    labels = None if denoiser == "wiener" else pictures.labels
    made = known[denoiser](registry.make("process", {"name": process}), pictures.pixels, labels)
    about = {"data": str(path), "denoiser": denoiser, "size": size}
    return Model(
        name=Path(path).stem,
        denoiser=made,
        like=torch.zeros(pictures.pixels.shape[1:]),
        labels=None if labels is None else int(labels.max()) + 1,
        medium="image",
        digest=pictures.digest[:16],
        info={k: v for k, v in about.items() if v is not None},
    )


def _fill(module: nn.Module, file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.exists():
        pickles = [p.name for s in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in file.parent.glob(s)]
        why = f"; {pickles[0]} is a pickle, which can run code when it is read: convert it" if pickles else ""
        raise EbbError(f"{file.parent} holds no weights in safetensors{why}.")
    try:
        tensors = {k: v.float() for k, v in load_file(file).items()}
        for twin, first in getattr(module, "all_tied_weights_keys", {}).items():
            tensors.setdefault(twin, tensors[first])  # one tensor under two names is written once
        module.load_state_dict(tensors)
    except (SafetensorError, OSError, RuntimeError, KeyError) as error:
        raise EbbError(f"{file} cannot be read as weights of this model: {str(error).splitlines()[0]}") from error
