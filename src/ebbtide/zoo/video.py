"""Video, small: a diffusion transformer over the patches of all frames, in which every frame has its own time.

    c_f = time(t_f) + class(y);   h_fs <- h_fs + g(c_f) attend(n(h; c)),   n(h_fs; c_f) = norm(h_fs) (1 + b(c_f)) + d(c_f)

All patches of all frames attend to one another, or, where `causal`, to those of their own frame and of earlier ones. One set
of weights is trained for both, every second clip of a batch causally: which it is, is asked at each call, for each clip.
Nothing of a position is learnt, so a clip may have another number of frames than those it was trained on.

Shapes   x (B, F, C, S, S), clock (B,) or (B, F), class_labels (B,), causal a bool or (B,)
Paper    Peebles & Xie 2023, "Scalable diffusion models with transformers" (arXiv 2212.09748), section 3; times of frames:
         Liu et al. 2024, "Redefining temporal modeling in video diffusion" (2410.03160), section 3; frames that see the past:
         Yin et al. 2024, "From slow bidirectional to fast autoregressive video diffusion models" (2412.07772), section 4.1
Differs  one attention over space and time, where FVDM's network has two; a clip here is 256 patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.denoise.model import Model
from ebbtide.denoise.network import Network
from ebbtide.learn.flow_matching import UnitMatching
from ebbtide.zoo.models import denoiser_of
from ebbtide.zoo.networks import draw, save


class Block(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by what the frame is told."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        from diffusers.models.attention import FeedForward
        from diffusers.models.attention_processor import Attention

        wide = heads * width
        self.norm1 = nn.LayerNorm(wide, eps=1e-6, elementwise_affine=False)
        self.attn1 = Attention(wide, heads=heads, dim_head=width, bias=True)
        self.norm2 = nn.LayerNorm(wide, eps=1e-6, elementwise_affine=False)
        self.ff = FeedForward(wide, activation_fn="gelu-approximate")
        self.modulation = nn.Linear(wide, 6 * wide)

    def forward(self, h: Tensor, told: Tensor, mask: Tensor | None) -> Tensor:
        """h (B, F, P, width) under told (B, F, 1, width)."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.modulation(told).chunk(6, -1)
        seen = (self.norm1(h) * (1 + scale) + shift).flatten(1, 2)
        h = h + gate * self.attn1(seen, attention_mask=mask).reshape(h.shape)
        out: Tensor = h + gate_ff * self.ff(self.norm2(h) * (1 + scale_ff) + shift_ff)
        return out


class VideoTransformer(nn.Module):
    """(x, clock, class_labels, causal) to the prediction, shaped like x."""

    def __init__(self, channels: int, patch: int, layers: int, heads: int, width: int, classes: int) -> None:
        super().__init__()
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        wide = heads * width
        self.patch, self.heads, self.wide = patch, heads, wide
        self.proj_in = nn.Linear(channels * patch**2, wide)
        self.time_proj = Timesteps(wide, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(wide, wide)
        self.class_embed = nn.Embedding(classes + 1, wide)
        self.transformer_blocks = nn.ModuleList(Block(heads, width) for _ in range(layers))
        self.norm_out = nn.LayerNorm(wide, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(wide, 2 * wide)
        self.proj_out = nn.Linear(wide, channels * patch**2)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VideoTransformer:
        """The module that a config.json describes."""
        return cls(**{k: v for k, v in config.items() if not k.startswith("_")})

    def forward(self, x: Tensor, clock: Tensor, class_labels: Tensor, causal: bool | Tensor = False) -> Tensor:
        """The prediction at x (B, F, C, S, S)."""
        n, frames, channels, high, wide = x.shape
        p, rows, columns = self.patch, high // self.patch, wide // self.patch
        cut = x.reshape(n, frames, channels, rows, p, columns, p).permute(0, 1, 3, 5, 2, 4, 6)
        h = self.proj_in(cut.reshape(n, frames, rows * columns, -1)) + self.positions(frames, rows, columns).to(x)
        clock = clock.reshape(n, -1).expand(n, frames)
        time = self.time_embed(self.time_proj(clock.flatten()).to(x.dtype)).reshape(n, frames, -1)
        told = nn.functional.silu(time + self.class_embed(class_labels)[:, None])[:, :, None]
        mask = self.mask(n, frames, rows * columns, causal).to(x.device) if _any(causal) else None
        for block in self.transformer_blocks:
            h = block(h, told, mask)
        shift, scale = self.modulation(told).chunk(2, -1)
        out: Tensor = self.proj_out(self.norm_out(h) * (1 + scale) + shift)
        back = out.reshape(n, frames, rows, columns, channels, p, p).permute(0, 1, 4, 2, 5, 3, 6)
        return back.reshape(x.shape)

    def positions(self, frames: int, rows: int, columns: int) -> Tensor:
        """Sines and cosines of frame, row and column, (F, P, width)."""
        from diffusers.models.embeddings import get_timestep_embedding as waves

        f, r, c = (
            waves(torch.arange(k), size, max_period=100)
            for k, size in ((frames, self.wide // 2), (rows, self.wide // 4), (columns, self.wide // 4))
        )
        shape = (frames, rows, columns, -1)
        parts = (f[:, None, None], r[None, :, None], c[None, None])
        return torch.cat([v.expand(shape) for v in parts], -1).reshape(frames, rows * columns, self.wide)

    def mask(self, n: int, frames: int, patches: int, causal: bool | Tensor) -> Tensor:
        """Who may look at whom, (B * heads, F P, F P)."""
        frame = torch.arange(frames).repeat_interleave(patches)
        past = frame[:, None] >= frame
        free = ~torch.as_tensor(causal, dtype=torch.bool).cpu().reshape(-1, 1, 1).expand(n, 1, 1)
        return (past | free).repeat_interleave(self.heads, 0)


def _any(causal: bool | Tensor) -> bool:
    return bool(causal.any()) if isinstance(causal, Tensor) else causal


@dataclass(frozen=True)
class VideoDiT:
    """`VideoTransformer` as a recipe describes it. Its label table has one row more than there are classes: "no label"."""

    frames: int = 16
    size: int = 24
    channels: int = 1
    patch: int = 6
    layers: int = 5
    heads: int = 4
    width: int = 24
    classes: int = 10

    def config(self) -> dict[str, Any]:
        """The arguments of `VideoTransformer`."""
        return {k: v for k, v in asdict(self).items() if k not in ("frames", "size")}

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`, its weights drawn from `noise`; every block begins as the identity, the output as zero."""
        if self.size % self.patch:
            raise EbbError(f"frames of {self.size} pixels do not divide into patches of {self.patch}.")
        with torch.random.fork_rng(devices=[]):
            module: Any = VideoTransformer(**self.config())
        if noise is not None:
            draw(module, noise)
            draw(module.class_embed, noise.fold(0), 0.02)
            with torch.no_grad():
                for block in module.transformer_blocks:
                    block.modulation.weight.zero_()
                for layer in (module.modulation, module.proj_out):
                    layer.weight.zero_()
        built: nn.Module = module.eval()
        return built

    def write(self, module: nn.Module, folder: Path) -> None:
        """config.json and the weights, float16."""
        save(module, folder, "ebbtide.zoo.video.VideoTransformer", self.config())

    def about(self) -> dict[str, Any]:
        """Clips, one label each."""
        shape = [self.frames, self.channels, self.size, self.size]
        return {"medium": "video", "shape": shape, "range": [-1, 1], "labels": self.classes, "units": 1}


@dataclass(frozen=True)
class FrameMatching(UnitMatching):
    """Flow matching of clips with times of frames, a share `causal` of the rows under causal attention."""

    causal: float = 0.5

    def said(self, network: nn.Module, x: Tensor, clock: Tensor, labels: Tensor) -> Tensor:
        # spread evenly over the rows, and so over the comb of times
        count = (torch.arange(len(x) + 1) * self.causal).floor()
        out: Tensor = network(x, clock, labels, count.diff() > 0)
        return out


def video_model(module: nn.Module, process: Any, about: Mapping[str, Any], name: str, digest: str = "") -> Model:
    """A network of clips as a model of units (B, F); the condition {"label": 3, "causal": True} asks it causally."""
    null = about["nulls"]["label"]

    def call(module: Any, x: Tensor, clock: Tensor, cond: dict[str, Any]) -> Tensor:
        label = cond["label"] if "label" in cond else torch.full((len(x),), null)
        out: Tensor = module(x, clock, label.to(x.device), cond.get("causal", False))
        return out

    denoiser = denoiser_of(module, process, about, call)
    labels = about["labels"] if about["labels"] > 1 else None
    like = torch.zeros(about["shape"])
    return Model(name, denoiser, like, units=about["units"], labels=labels, medium=about["medium"], digest=digest)


def causal(model: Model) -> Model:
    """The same model, asked causally whatever the condition says: no frame looks at a later one.

    Raises EbbError for a model that is no `VideoTransformer`.
    """
    denoiser = model.denoiser
    if not isinstance(denoiser, Network) or not isinstance(denoiser.module, VideoTransformer):
        raise EbbError(f"{model.name} has no causal attention: give a model of moving-digits.")
    asked = denoiser.call

    def call(module: Any, x: Tensor, clock: Tensor, cond: dict[str, Any]) -> Tensor:
        out: Tensor = asked(module, x, clock, {**cond, "causal": True})
        return out

    return replace(model, denoiser=replace(denoiser, call=call))
