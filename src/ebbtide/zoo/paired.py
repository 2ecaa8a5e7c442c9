"""Pictures in pairs: what is to be predicted and what is seen beside it, and the small U-Net that sees both.

    x (n, 2, C, H, W):   x[:, 0] what is predicted,   x[:, 1] what goes with it

    degraded   y = up(pool_f(blur_s(x)) + noise z):   few, soft, noisy pixels, brought back to the size of x
               blur_s a Gaussian of s pixels, pool_f the mean of f x f pixels, up bilinear;  z of each picture from its own key

Objectives that learn from pairs (`learn.restoring`, `learn.reflow`) read them in this order. A network that is shown what goes
with its input has it as further channels; in a model that is the condition named by `beside` in recipe.json.

Shapes   pictures (n, C, H, W) in [-1, 1]; sides divide by f
Source   the bicubic-free half of the degradations of Yue, Wang, Loy 2023 (arXiv 2307.12348), section 4.1; concatenated
         conditions: Saharia et al. 2021, "Palette" (2111.05826), section 3
"""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, fold, keys
from ebbtide.zoo.data import Pictures
from ebbtide.zoo.networks import draw


def blur(x: Tensor, width: float) -> Tensor:
    """x (n, C, H, W) under a Gaussian of this standard deviation in pixels; what is outside repeats the border."""
    reach = max(1, math.ceil(2 * width))
    line = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    bell = (-(line**2) / (2 * width**2)).exp()
    bell = (bell / bell.sum()).expand(x.shape[1], 1, 1, -1)
    x = pad(x, (reach,) * 4, mode="replicate")
    return conv2d(conv2d(x, bell, groups=x.shape[1]), bell.transpose(2, 3), groups=x.shape[1])


def degrade(x: Tensor, noise: Noise, factor: int = 4, soft: float = 1.0, grain: float = 0.1) -> Tensor:
    """The degraded pictures of x (n, C, H, W), shaped like x; `noise` has n keys.

    factor   f, pixels a side that become one
    soft     s, the blur before it, in pixels
    grain    standard deviation of the noise on what is left
    """
    if x.shape[-1] % factor or x.shape[-2] % factor:
        raise EbbError(
            f"pictures of {x.shape[-2]} x {x.shape[-1]} have no whole blocks of {factor}; give another size."
        )
    small = avg_pool2d(blur(x, soft), factor)
    small = small + grain * noise.normal(small)
    return interpolate(small, scale_factor=factor, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Degraded:
    """Pictures, each with its degraded version: the same one whenever it is asked for.

    seed     of the noise on them
    digest   sha256 of all of these
    """

    pictures: Pictures
    seed: int = 0
    digest: str = field(default="")

    def __post_init__(self) -> None:
        if not self.digest:
            said = repr((self.pictures.digest, "degraded", self.seed))
            object.__setattr__(self, "digest", hashlib.sha256(said.encode()).hexdigest())

    @property
    def pixels(self) -> Tensor:
        """Of the pictures as they were."""
        return self.pictures.pixels

    def __len__(self) -> int:
        return len(self.pictures)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The pairs `index` (n,): pictures and what became of them, (n, 2, C, H, W) float32, and labels."""
        x, labels = self.pictures.rows(index)
        noise = Noise(fold(keys([self.seed]), index), torch.zeros(len(index), dtype=torch.int64))
        return torch.stack([x, degrade(x, noise)], 1), labels


@dataclass(frozen=True)
class PairedUNet:
    """Diffusers' `UNet2DModel` that is shown a picture beside its state, as further channels; it knows no labels.

    pairs    what goes with a picture: a name of `PAIRS`
    Paper: Saharia et al. 2021 (arXiv 2111.05826), section 3. Differs: one residual block a size, and few channels.
    """

    pairs: str = "degraded"
    size: int = 28
    channels: int = 1
    widths: tuple[int, ...] = (16, 32, 48)
    head: int = 24

    @property
    def told(self) -> int:
        """How many tasks it is told apart by a label; 0 where there is one task and no label."""
        return 0

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`; its last layer begins as zero."""
        from diffusers.models.unets.unet_2d import UNet2DModel

        low = len(self.widths) - 1
        with torch.random.fork_rng(devices=[]):
            module = UNet2DModel(
                sample_size=self.size,
                in_channels=2 * self.channels,
                out_channels=self.channels,
                block_out_channels=self.widths,
                layers_per_block=1,
                down_block_types=(*("DownBlock2D",) * low, "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", *("UpBlock2D",) * low),
                attention_head_dim=self.head,
                norm_num_groups=8,
                num_class_embeds=self.told or None,
            )
        if noise is not None:
            draw(module, noise)
            with torch.no_grad():
                module.conv_out.weight.zero_()
        return module.eval()

    def write(self, module: nn.Module, folder: Path) -> None:
        """A folder that `from_pretrained` reads, weights in float16."""
        cast(Any, copy.deepcopy(module).half()).save_pretrained(folder)

    def about(self) -> dict[str, Any]:
        """Pictures, without labels."""
        shape = [self.channels, self.size, self.size]
        return {"medium": "image", "shape": shape, "range": [-1, 1], "labels": 1, "pairs": self.pairs}


@dataclass(frozen=True)
class SwitchedUNet(PairedUNet):
    """The same with a label that says what is asked of it: an embedding that is added to that of the time."""

    pairs: str = "shapes"
    size: int = 20
    widths: tuple[int, ...] = (16, 32, 32)
    head: int = 16
    tasks: int = 2

    @property
    def told(self) -> int:
        return self.tasks


PAIRS = {"degraded": Degraded}
"""The data sets of pairs that a recipe can ask for, made from pictures."""
