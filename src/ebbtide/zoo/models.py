"""Trained networks as models: a folder of weights and the recipe.json beside them, opened and put behind the border."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.denoise.model import Model
from ebbtide.denoise.network import Network


def model_of(module: nn.Module, about: Mapping[str, Any], name: str, digest: str = "") -> Model:
    """A network of diffusers and what recipe.json says about it as a model.

    A network of one class was trained without labels, so it knows none. Raises EbbError for one that does not denoise.
    """
    if "process" not in about:
        raise EbbError(f"{name} predicts a {about.get('predicts', 'thing')}, so it cannot be sampled from.")
    null = about["nulls"]["label"]

    def call(module: Any, x: Tensor, clock: Tensor, cond: dict[str, Any]) -> Tensor:
        label = cond["label"] if "label" in cond else torch.full((len(x),), null)
        out: Tensor = module(x, clock, class_labels=label.to(x.device)).sample
        return out

    denoiser = Network(
        module,
        registry.make("process", about["process"]),
        predicts=about["predicts"],
        clock=about["clock"],
        steps=about["steps_of_clock"],
        nulls=about["nulls"],
        call=call,
    )
    labels = about["labels"] if about["labels"] > 1 else None
    return Model(name, denoiser, torch.zeros(about["shape"]), labels=labels, medium=about["medium"], digest=digest)


def open_model(folder: Path, name: str, device: str | torch.device | None = None) -> Model:
    """The model in a folder that `ebb train` left, or that ships; float32, on the device given.

    Raises EbbError when the folder holds no such model, and for weights that are corrupt or a pickle.
    """
    try:
        about = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise EbbError(f"{folder} holds no model of ebbtide: {error}.") from error
    if "process" not in about:
        return model_of(nn.Identity(), about, name)
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    file = folder / "diffusion_pytorch_model.safetensors"
    module: Any = DiTTransformer2DModel.from_config(config)
    _fill(module, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return model_of(module.to(device).eval().requires_grad_(False), about, name, digest)


def _fill(module: nn.Module, file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.exists():
        pickles = [p.name for s in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in file.parent.glob(s)]
        why = f"; {pickles[0]} is a pickle, which can run code when it is read: convert it" if pickles else ""
        raise EbbError(f"{file.parent} holds no weights in safetensors{why}.")
    try:
        tensors = {k: v.float() for k, v in load_file(file).items()}
        module.load_state_dict(tensors)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise EbbError(f"{file} cannot be read as weights of this model: {str(error).splitlines()[0]}") from error
