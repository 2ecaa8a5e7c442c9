"""Denoising task routing: each noise level has its own sliding window of active channels in every block.

    o(t) = round((t / (T - 1))^alpha (C - C'))     C' = floor(beta C)           m_t = 1 on o(t) ... o(t) + C' - 1, else 0
    x <- where(m_t, block(m_t x), x)               in every block, in training and in sampling

Neighbouring levels share almost all channels, distant ones fewer. With alpha > 1 the window hardly moves at little noise and
fast at much. There is nothing to learn in it: parameters, their number and the files that hold them are those of the plain
network, and what recipe.json says of `routing` puts the windows back.

Shapes   windows (T, C) bool; x (B, tokens, C); the clock (B,) from 0 to T, its nearest row is taken
Paper    Park et al. 2023, "Denoising task routing for diffusion models" (arXiv 2310.07138), section 4
Source   byeongjun-park/DTR, models/taskrouting.py (the table)
Off      beta=1: all channels at all levels, bit for bit the plain network.
Differs  there the block also writes to channels outside the window (block(m x) + (1 - m) x); here these pass it untouched.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.zoo.networks import DiT


def windows(channels: int, alpha: float = 4.0, beta: float = 0.8, levels: int = 1000) -> Tensor:
    """The table (levels, channels) bool. Raises EbbError where no channel would be active."""
    active = int(beta * channels)
    if not (0 < active <= channels and levels > 1 and alpha > 0):
        raise EbbError(
            f"windows of {beta:g} of {channels} channels at {levels} levels: give beta in (0, 1], alpha > 0."
        )
    first = (torch.linspace(0, 1, levels, dtype=torch.float64) ** alpha * (channels - active)).round()
    place = torch.arange(channels) - first[:, None]
    return (place >= 0) & (place < active)


def routed(network: nn.Module, table: Tensor) -> nn.Module:
    """The same diffusers DiT, its blocks open to the channels of this table (T, C) alone.

    Raises EbbError for a network of another width.
    """
    width = network.inner_dim
    if table.shape[1] != width:
        raise EbbError(f"a table of {table.shape[1]} channels fits no network of {width}.")
    blocks: Any = network.transformer_blocks
    for block in blocks:
        # a partial that names the block: copies of the network are given copies of it
        block.forward = functools.partial(_through, block, table)
    return network


def _through(block: nn.Module, table: Tensor, x: Tensor, *args: Any, timestep: Tensor, **kwargs: Any) -> Tensor:
    level = timestep.round().long().clamp(0, len(table) - 1)
    mask = table.to(x.device)[level][:, None]
    return torch.where(mask, type(block).forward(block, x * mask, *args, timestep=timestep, **kwargs), x)


@dataclass(frozen=True)
class RoutedDiT(DiT):
    """A `DiT` whose blocks have windows: see `windows`."""

    alpha: float = 4.0
    beta: float = 0.8

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`, with the weights of a `DiT` of this noise."""
        return routed(super().build(noise), windows(self.heads * self.width, self.alpha, self.beta))

    def about(self) -> dict[str, Any]:
        return {**super().about(), "routing": {"alpha": self.alpha, "beta": self.beta}}
