"""The networks that recipes train, described by frozen numbers; the modules are the ecosystem's own classes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise


def draw(module: nn.Module, noise: Noise, scale: float | None = None) -> None:
    """Fill every matrix with keyed normal draws of variance 2 / (fan in + fan out), or `scale`^2; biases with zeros.

    Source: Glorot, Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", eq. 12.
    """
    with torch.no_grad():
        for k, (name, weight) in enumerate(module.named_parameters()):
            if weight.ndim > 1:
                flat: Tensor = noise.fold(k).normal(torch.empty(1, weight.numel()))
                fans = weight[0].numel() + weight.shape[0] * weight[0, 0].numel()
                weight.copy_(flat.reshape(weight.shape) * (scale or math.sqrt(2 / fans)))
            elif name.endswith("bias"):
                weight.zero_()


def save(module: nn.Module, folder: Path, kind: str, config: dict[str, Any]) -> None:
    """config.json, which names the class by its path, and the weights in float16, for modules that are ours."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().half().contiguous() for k, v in module.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": kind, **config}, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class DiT:
    """Diffusers' `DiTTransformer2DModel`: class-conditional, time and label by adaptive layer norm.

    Its label table has one row more than there are classes: the last means "no label".
    Paper: Peebles & Xie 2023, "Scalable diffusion models with transformers" (arXiv 2212.09748), section 3.
    """

    size: int = 28
    channels: int = 1
    patch: int = 4
    layers: int = 5
    heads: int = 3
    width: int = 32
    classes: int = 10

    @property
    def planes(self) -> int:
        """Channels that it is shown beside its state."""
        return 0

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`: in train mode this class drops labels by itself, from the global generator."""
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        with torch.random.fork_rng(devices=[]):
            module = DiTTransformer2DModel(
                num_attention_heads=self.heads,
                attention_head_dim=self.width,
                in_channels=self.channels + self.planes,
                out_channels=self.channels,
                num_layers=self.layers,
                sample_size=self.size,
                patch_size=self.patch,
                activation_fn="gelu-approximate",
                num_embeds_ada_norm=self.classes,
                norm_type="ada_norm_zero",
            )
        if noise is not None:
            draw(module, noise)
            with torch.no_grad():
                # As in the paper, every block and the output begin as the identity and as zero.
                for block in module.transformer_blocks:
                    draw(block.norm1.emb, noise.fold(1), 0.02)
                    block.norm1.linear.weight.zero_()
                for layer in (module.proj_out_1, module.proj_out_2):
                    layer.weight.zero_()
        return module.eval()

    def write(self, module: nn.Module, folder: Path) -> None:
        """A folder that `from_pretrained` reads, weights in float16."""
        import copy

        cast(Any, copy.deepcopy(module).half()).save_pretrained(folder)

    def about(self) -> dict[str, Any]:
        """Pictures, one label each."""
        shape = [self.channels, self.size, self.size]
        return {"medium": "image", "shape": shape, "range": [-1, 1], "labels": self.classes}


@dataclass(frozen=True)
class StudentDiT(DiT):
    """A `DiT` that begins as a shipped one of its shape, its teacher.

    teacher   the name of that model
    far       whether it is shown beside its state, as a plane of numbers, how far a step along its answer is to lead: t - s.
              What reads that plane begins as zero, so at first the student says what the teacher does
    """

    teacher: str = "digits"
    far: bool = False

    @property
    def planes(self) -> int:
        return int(self.far)

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`; `noise` is not drawn from. Raises EbbError for a teacher of another shape."""
        from ebbtide.zoo import folder
        from ebbtide.zoo.models import network

        module = super().build()
        if noise is None:
            return module
        known = network(folder(self.teacher))[0].state_dict()
        first = "pos_embed.proj.weight"
        known[first] = nn.functional.pad(known[first], (0, 0, 0, 0, 0, self.planes))
        try:
            module.load_state_dict(known)
        except RuntimeError as error:
            why = str(error).splitlines()[1].strip()
            raise EbbError(f"{self.teacher} cannot teach a network of another shape: {why}") from error
        return module

    def about(self) -> dict[str, Any]:
        return {**super().about(), "far": self.far}


@dataclass(frozen=True)
class UNet:
    """Diffusers' `UNet2DModel`: class-conditional, convolutions at three sizes, attention at the smallest.

    Its label table has one row more than there are classes: the last means "no label".
    Paper: Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic models" (arXiv 2006.11239), appendix B.
    Differs: one residual block a size, and a label beside the time. Sides must be multiples of 4.
    """

    size: int = 28
    channels: int = 1
    widths: tuple[int, ...] = (24, 48, 96)
    head: int = 32
    classes: int = 10

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`; as in the paper its last layer begins as zero."""
        from diffusers.models.unets.unet_2d import UNet2DModel

        low = len(self.widths) - 1
        with torch.random.fork_rng(devices=[]):
            module = UNet2DModel(
                sample_size=self.size,
                in_channels=self.channels,
                out_channels=self.channels,
                block_out_channels=self.widths,
                layers_per_block=1,
                down_block_types=(*("DownBlock2D",) * low, "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", *("UpBlock2D",) * low),
                attention_head_dim=self.head,
                norm_num_groups=8,
                num_class_embeds=self.classes + 1,
            )
        if noise is not None:
            draw(module, noise)
            with torch.no_grad():
                module.conv_out.weight.zero_()
        return module.eval()

    def write(self, module: nn.Module, folder: Path) -> None:
        """A folder that `from_pretrained` reads, weights in float16."""
        import copy

        cast(Any, copy.deepcopy(module).half()).save_pretrained(folder)

    def about(self) -> dict[str, Any]:
        """Pictures, one label each."""
        shape = [self.channels, self.size, self.size]
        return {"medium": "image", "shape": shape, "range": [-1, 1], "labels": self.classes}
