"""Half precision: the products and convolutions inside of a network in bfloat16, its ends and answers as they were.

    y = bf16(W) bf16(x) + b, sums in float32;   bf16(v) = v (1 + d), |d| <= 2^-8

Linear and convolution layers inside of repeated blocks (anything below an `nn.ModuleList`; where there is none, all) hold
their weights in bfloat16 and run under `torch.autocast`, which keeps norms and softmaxes in float32. What lies outside -
the first layer, the last, the embedding of the time - reads and gives what it did, so neither x nor the time is rounded.

Shapes   any; floating point answers have the dtype of the original's
Source   Kalamkar et al. 2019, "A study of bfloat16 for deep learning training" (arXiv 1905.12322), section 2
Off      enabled = false is the network itself.
Differs  a cast of everything drifts twice as far on `digits`, and rounds whole times beyond 256.
Drift    of x0, the largest of 20 levels, and of samples after 20 Euler steps (bench/rewrites.py): 2.7e-3 and 4.8e-3 on
         `digits`, 8.8e-3 and 4.4e-3 on a small UNet with random weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ebbtide.core.errors import EbbError
from ebbtide.core.registry import part
from ebbtide.network.rewrite import Rewrite, copied, given

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@part("network", "bf16", paper="1905.12322", needs={"module"}, off={"enabled": False})
class BF16(Rewrite):
    """Half precision: the products and convolutions inside of a network in bfloat16, its ends and answers as they were."""

    enabled: bool = True

    def __call__(self, network: nn.Module, record: Any = None) -> nn.Module:
        home = next((p.device.type for p in network.parameters()), "cpu")
        wide = [p.dtype for p in network.parameters() if p.is_floating_point() and p.dtype != torch.bfloat16]
        made = copied(network)
        layers = {k: m for k, m in made.named_modules() if isinstance(m, _LAYERS) and m.weight.dtype in wide}
        if not layers:
            raise EbbError("'bf16' finds no linear or convolution layer that is not in bfloat16 already; leave it out.")
        lists = [f"{k}." for k, m in made.named_modules() if isinstance(m, nn.ModuleList)]
        inner = {k for k in layers if k.startswith(tuple(lists))} or set(layers)
        for name, layer in layers.items():
            if name in inner:
                given(layer, **{k: p.to(torch.bfloat16) for k, p in layer.named_parameters(recurse=False)})
            else:
                layer.forward = functools.partial(_whole, layer.forward, layer.weight.dtype)  # type: ignore[method-assign]
        # partials, unlike closures, are copied with what they hold, so that the copy can be rewritten again
        made.forward = functools.partial(_half, made.forward, home, wide[0])
        return made


def _half(forward: Callable[..., Any], home: str, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    """The network's answer, computed under autocast."""
    with torch.autocast(home, torch.bfloat16):
        out = forward(*args, **kwargs)
    return tree_map(lambda v: v.to(dtype) if isinstance(v, Tensor) and v.dtype == torch.bfloat16 else v, out)


def _whole(forward: Callable[..., Any], dtype: torch.dtype, x: Tensor, *args: Any) -> Any:
    """A layer's answer in the dtype of its weights."""
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.to(dtype), *args)
