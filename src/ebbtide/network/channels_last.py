"""Channels last: convolution weights, and so all that flows between them, with the channels of a pixel side by side.

    x[b, c, i, j] at offset ((b H + i) W + j) C + c   instead of   ((b C + c) H + i) W + j

Shapes   (B, C, H, W); answers lie in memory as those of the original do
Source   PyTorch, "Channels last memory format"; the layout that oneDNN convolves without reordering
Off      enabled = false is the network itself.
Differs  the numbers are the same up to the order of sums. Refused where no 2-D convolution reaches over its neighbours:
         the patch embedding of a transformer is a matrix product.
Drift    of x0, the largest of 20 levels, and of samples after 20 Euler steps (bench/rewrites.py): 1e-6 and 3e-7 on a small
         UNet with random weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ebbtide.core.errors import EbbError
from ebbtide.core.registry import part
from ebbtide.network.rewrite import Rewrite, copied, given


@part("network", "channels-last", needs={"module"}, off={"enabled": False})
class ChannelsLast(Rewrite):
    """Channels last: convolution weights, and so all that flows between them, with the channels of a pixel side by side."""

    enabled: bool = True

    def __call__(self, network: nn.Module, record: Any = None) -> nn.Module:
        made = copied(network)
        layers = [m for m in made.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        if not any(m.kernel_size > m.stride for m in layers):
            raise EbbError(
                "'channels-last' orders memory for 2-D convolutions, and this network has none that reaches over its "
                "neighbours; leave it out."
            )
        for layer in layers:
            given(layer, weight=layer.weight.detach().contiguous(memory_format=torch.channels_last))
        made.register_forward_hook(_plain)
        return made


def _plain(network: nn.Module, args: Any, out: Any) -> Any:
    """The answer as the original lays it out."""
    return tree_map(lambda v: v.contiguous() if isinstance(v, Tensor) else v, out)
