"""Bare networks of diffusers, and single files: weights that come without the pipeline around them.

    ebb.load(UNet2DModel(...), process="vp-linear", predicts="eps", clock="train-index")
    ebb.load("unet/", process="scheduler/")                     a folder, and the scheduler that says what it was trained on
    ebb.load("model.safetensors", config="unet/", process=...)  one file, and the folder or config.json of what it is of
    ebb.load("model.safetensors", config="pipeline/")           the denoiser of a pipeline whose other parts lie there

Conditions are the arguments of the network's forward by name: cond={"class_labels": 3}, say.

Source   huggingface/diffusers 0.42 (Apache-2.0): ModelMixin and its files
Differs  a checkpoint in the layout of its authors is for diffusers' `from_single_file`: give `ebb.load` what that makes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.interop import schedulers
from ebbtide.interop.fields import OF_THE_SAMPLER
from ebbtide.interop.files import class_of, content, glance
from ebbtide.interop.pipelines.folder import INDEX, check_weights, open_pipeline
from ebbtide.interop.pipelines.hearing import SLOTS

CONFIG = "config.json"
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def is_network(source: Any) -> bool:
    """Whether this is a network of diffusers, the folder of one, or a single file of weights."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if (path / "recipe.json").exists():  # our own
            return False
        return path.suffix in (".safetensors", *_PICKLES) or "_class_name" in glance(path / CONFIG)
    library = sys.modules.get("diffusers")  # whoever made a model of its imported it
    return library is not None and isinstance(source, library.ModelMixin)


def opened(source: Any, config: Any = None, dtype: Any = None) -> Any:
    """The network, or the pipeline of a single file that holds one, in evaluation mode.

    config   of a single file: the folder of a pipeline or network, or its config.json; weights of a denoiser there do not count
    dtype    of the weights of a file or folder; float32 by default

    Raises EbbError for weights that are missing, pickles or of another network, and a class that is unknown.
    """
    if not isinstance(source, str | os.PathLike):
        if config is not None or dtype is not None:
            raise EbbError("config and dtype are for files; a network is what it is: use network.to(dtype).")
        return source.eval()
    path = Path(source)
    if path.is_dir():
        check_weights(path)
        kind = class_of(path, content(path / CONFIG))
        return _made(path, lambda: kind.from_pretrained(path, local_files_only=True, use_safetensors=True), dtype)
    if path.suffix in _PICKLES:
        raise EbbError(f"{path} is a pickle, which can run code when it is read: convert it to safetensors.")
    if not path.is_file():
        raise EbbError(f"there is no file {path}.")
    if config is None:
        raise EbbError(f"{path} holds weights alone: say of what, config=FOLDER with a {CONFIG} or {INDEX}.")
    folder = Path(config)
    if (folder / INDEX).exists():
        slot = next((s for s in SLOTS if (folder / s / CONFIG).exists()), None)
        if slot is None:
            raise EbbError(f"{folder} is the folder of a pipeline without a denoiser's {CONFIG} in {', '.join(SLOTS)}.")
        return open_pipeline(folder, dtype, **{slot: opened(path, folder / slot, dtype)})
    about = folder if folder.is_file() else folder / CONFIG
    said = content(about)
    kind = class_of(about, said)
    return _made(path, lambda: _filled(kind.from_config(said), path), dtype)


def load(
    source: Any,
    *,
    process: Any = None,
    like: Tensor | None = None,
    config: Any = None,
    dtype: Any = None,
    **border: Any,
) -> Any:
    """A network as a model.

    process   of its training: a process, or the scheduler that it was trained with (an object, a folder, its config),
              which also says what it predicts and how it counts time
    like      one element; by default as the network's config says
    border    what `ebb.load` takes for networks: predicts, clock, steps, nulls, labels, medium; for the pipeline of a single
              file what `ebb.load` takes for pipelines

    Raises EbbError as `opened` does, and where nothing says on what the network was trained.
    """
    from ebbtide import api
    from ebbtide.interop import pipelines

    network = opened(source, config, dtype)
    if pipelines.is_pipeline(network):
        return pipelines.load(network, **{"name": str(source), **border})
    kind = type(network).__name__
    if process is None:
        raise EbbError(
            f"nothing says on what this {kind} was trained: give process='vp-linear', say, or its scheduler."
        )
    if _is_scheduler(process):
        found = schedulers.read(process, 2, ignore=OF_THE_SAMPLER, mu=0.0)
        process, border = found.process, {**found.border, **border}
    like = _element(network) if like is None else like
    name = str(source) if isinstance(source, str | os.PathLike) else kind
    if "call" in border:  # whoever says how it is called means the network itself
        call = border["call"]
        border["call"] = lambda bare, x, clock, cond: call(bare.network, x, clock, cond)
    return api.load(_Bare(network), process=process, like=like, **{"name": name, "medium": _medium(like), **border})


class _Bare(torch.nn.Module):
    """A network that answers with a tensor: (x, clock, **arguments)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, clock: Tensor, **cond: Any) -> Tensor:
        """The prediction."""
        out: Tensor = self.network(x, clock, **cond, return_dict=False)[0]
        return out


def _element(network: Any) -> Tensor:
    """Zeros like one element. Raises EbbError where the config does not say its shape."""
    c = network.config
    size, channels = c.get("sample_size"), c.get("in_channels")
    if size is None or channels is None:
        raise EbbError(f"this {type(network).__name__} does not say how large its samples are: give like=zeros(shape).")
    high, wide = (size, size) if isinstance(size, int) else size
    return torch.zeros(channels, high, wide)


def _medium(like: Tensor) -> str | None:
    return "image" if like.ndim == 3 and like.shape[0] in (1, 3) else None


def _is_scheduler(process: Any) -> bool:
    if isinstance(process, dict):
        return "_class_name" in process
    if isinstance(process, str | os.PathLike):
        return Path(process).exists()
    library = sys.modules.get("diffusers")
    return library is not None and isinstance(process, library.SchedulerMixin)


def _made(path: Path, make: Any, dtype: Any) -> Any:
    from safetensors import SafetensorError

    try:
        made = make()
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise EbbError(f"{path} cannot be opened: {str(error).splitlines()[0]}") from error
    made = made if dtype is None else made.to(dtype)
    return made.eval() if isinstance(made, torch.nn.Module) else made


def _filled(network: Any, file: Path) -> Any:
    from safetensors.torch import load_file

    tensors = load_file(file)
    if any(k.startswith("model.diffusion_model.") for k in tensors):
        raise ValueError("it is laid out as its authors did; open it by diffusers' from_single_file, and load that.")
    network.load_state_dict(tensors)
    return network
