"""A small autoencoder, so that recipes and systems can work on latents: 32 x 32 pixels and 8 x 8 x 4 numbers.

    z = E(x),  D(z) ~ x;   sides of pictures are made multiples of 8 by repeating their border: 28 -> 32

Diffusers' `AutoencoderKL` of half a million weights. Its latents have variance 1 (see `learn.autoencoding`), and its decoder
fits `Model(decode=...)`.

Data     LeCun, Cortes, Burges, "The MNIST database of handwritten digits"
Paper    Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models" (arXiv 2112.10752), section 3.1
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.zoo.data import Pictures
from ebbtide.zoo.networks import draw

NAME = "digits-autoencoder"
_MULTIPLE = 8


def padded(pictures: Pictures) -> Pictures:
    """The pictures with sides that are multiples of 8, their borders repeated all around."""
    high, wide = (-side % _MULTIPLE for side in pictures.pixels.shape[-2:])
    if not high and not wide:
        return pictures
    sides = (wide // 2, wide - wide // 2, high // 2, high - high // 2)
    return Pictures(pad(pictures.pixels, sides, mode="replicate"), pictures.labels, pictures.names)


@dataclass(frozen=True)
class Autoencoder:
    """Diffusers' `AutoencoderKL` as a recipe describes it: one residual block a size, no attention."""

    size: int = 32
    channels: int = 1
    latents: int = 4
    widths: tuple[int, ...] = (16, 32, 64)

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`, its weights drawn from `noise`."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        blocks = len(self.widths)
        with torch.random.fork_rng(devices=[]):
            module = AutoencoderKL(
                in_channels=self.channels,
                out_channels=self.channels,
                down_block_types=("DownEncoderBlock2D",) * blocks,
                up_block_types=("UpDecoderBlock2D",) * blocks,
                block_out_channels=self.widths,
                layers_per_block=1,
                latent_channels=self.latents,
                norm_num_groups=8,
                sample_size=self.size,
                scaling_factor=1.0,
                mid_block_add_attention=False,
            )
        if noise is not None:
            draw(module, noise)
        return module.eval()

    def write(self, module: nn.Module, folder: Path) -> None:
        """A folder that `from_pretrained` reads, weights in float16."""
        cast(Any, copy.deepcopy(module).half()).save_pretrained(folder)

    def about(self) -> dict[str, Any]:
        """Pictures, and how small their latents are."""
        small = self.size // 2 ** (len(self.widths) - 1)
        shape = [self.channels, self.size, self.size]
        latent = [self.latents, small, small]
        return {"medium": "image", "shape": shape, "range": [-1, 1], "labels": 1, "latent": latent}


def load(folder: str | Path | None = None) -> Any:
    """The shipped `AutoencoderKL`, or one that `ebb train` left in a folder; float32, `eval()`, no gradients.

    Raises EbbError when the folder holds none.
    """
    from ebbtide.zoo import folder as shipped
    from ebbtide.zoo.models import network

    module, about, _ = network(shipped(NAME) if folder is None else Path(folder))
    if "latent" not in about:
        raise EbbError(f"{folder} holds no autoencoder: train one with `ebb train {NAME}`.")
    return module


def encode(module: Any, x: Tensor, batch: int = 250) -> Tensor:
    """The latents (N, c, h, w) of pictures (N, C, H, W) in [-1, 1]: the means, without noise."""
    with torch.no_grad():
        return torch.cat([module.encode(part).latent_dist.mean for part in x.split(batch)])


def decode(module: Any, z: Tensor, batch: int = 250) -> Tensor:
    """The pictures (N, C, H, W) that latents (N, c, h, w) stand for."""
    with torch.no_grad():
        return torch.cat([module.decode(part).sample for part in z.split(batch)])
