"""Checkpoints of training: one safetensors file that appears whole or not at all.

    net.<name>, avg.<name>     weights and their average            buffers are rebuilt, never stored
    m.<name>, s.<name>         AdamW's first and second moments     header: step, running loss, recipe, data

Never a pickle: a checkpoint from a stranger can hold numbers, not code.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ebbtide.core.errors import EbbError

NAME = "checkpoint.safetensors"


def save(
    file: Path,
    about: dict[str, Any],
    network: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    loss: float,
) -> None:
    """Write everything a run needs to go on."""
    from safetensors.torch import save_file

    tensors = {f"avg.{k}": v.detach().contiguous() for k, v in average.named_parameters()}
    for name, weight in network.named_parameters():
        tensors[f"net.{name}"] = weight.detach().contiguous()
        if state := optimiser.state.get(weight):
            tensors[f"m.{name}"], tensors[f"s.{name}"] = state["exp_avg"], state["exp_avg_sq"]
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    save_file(tensors, part, {"ebbtide": json.dumps({**about, "step": step, "loss": loss})})
    with open(part, "rb+") as handle:
        os.fsync(handle.fileno())
    os.replace(part, file)


def _open(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as f:
            about = json.loads((f.metadata() or {}).get("ebbtide", "null"))
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise EbbError(f"{file} cannot be read as a training checkpoint: {error}.") from error
    if not isinstance(about, dict) or "step" not in about:
        raise EbbError(f"{file} is a safetensors file, but no training checkpoint of ebbtide.")
    return tensors, about


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Where two JSON values part, in words: "lr was 0.001, now 0.002"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{name}.{k}" if name else k)]
    return [] if old == new else [f"{name} was {old!r}, now {new!r}"]


def _refuse(file: Path, apart: list[str]) -> None:
    if apart:
        raise EbbError(
            f"{file.parent} holds a run that differs: {'; '.join(apart)}. Give another folder to start afresh there."
        )


def _fill(module: nn.Module, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(tensors[f"{prefix}.{name}"])


def load(
    file: Path, about: dict[str, Any], network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[int, float]:
    """Fill network, average and optimiser; returns the steps done and the running loss.

    Raises EbbError when the checkpoint belongs to another recipe, seed or data set, and names what differs.
    """
    tensors, said = _open(file)
    _refuse(file, differences({k: said.get(k) for k in about}, json.loads(json.dumps(about))))
    _fill(network, tensors, "net")
    _fill(average, tensors, "avg")
    for name, weight in network.named_parameters():
        if f"m.{name}" in tensors:
            first, second = (tensors[f"{k}.{name}"].to(weight.device) for k in "ms")
            step = torch.tensor(float(said["step"]))
            optimiser.state[weight] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
    return int(said["step"]), float(said["loss"])


def load_average(file: Path, network: dict[str, Any], average: nn.Module) -> dict[str, Any]:
    """Fill a module with the averaged weights alone; returns what the checkpoint says of itself.

    `network` is the description the module was built from. Raises EbbError when the checkpoint holds another.
    """
    tensors, said = _open(file)
    _refuse(file, differences(said["recipe"]["network"], json.loads(json.dumps(network)), "network"))
    _fill(average, tensors, "avg")
    return said
