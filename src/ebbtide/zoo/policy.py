"""A diffusion policy: a chunk of actions drawn for what was seen, by a small transformer over time.

    c = time(t) + seen(obs);   h_k <- h_k + g(c) attend(n(h; c)),   every token two actions, every attention over all

What is seen are states of PushT: where the agent and the block are, how the block is turned, and the agent's place as the
block sees it. Each number is told with its sines and cosines of three frequencies, since contact is a matter of pixels.

Shapes   x (B, H, 2) in [-1, 1], clock (B,), obs (B, 2, 5) in pixels and radians as the environment gives them
Paper    Chi et al. 2023, "Diffusion policy: visuomotor policy learning via action diffusion" (arXiv 2303.04137), section 4;
         Peebles & Xie 2023, "Scalable diffusion models with transformers" (2212.09748), section 3
Differs  what was seen modulates every layer, as in DiT, where the paper attends to it; pairs of actions for tokens; the
         prediction is v, whose answer at low noise is the data itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.denoise.model import Model
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.process.affine import Affine
from ebbtide.process.gaussian import VPCosine
from ebbtide.zoo.demonstrations import HALF
from ebbtide.zoo.models import denoiser_of
from ebbtide.zoo.networks import draw, save
from ebbtide.zoo.video import Block

HOME = (256.0, 400.0, 256.0, 300.0, math.pi / 4)
"""What a policy sees that is told nothing: the block below its outline, turned as it is to be, the agent below the block."""
_WAVES = 3


def features(obs: Tensor) -> Tensor:
    """What a policy is told of states (B, looks, 5): (B, looks * 56)."""
    agent, block, angle = (obs[..., :2] / HALF - 1), (obs[..., 2:4] / HALF - 1), obs[..., 4]
    cos, sin = angle.cos(), angle.sin()
    dx, dy = (agent - block).unbind(-1)
    near = torch.stack([cos, sin, cos * dx + sin * dy, cos * dy - sin * dx], -1)
    u = torch.cat([agent, block, near], -1)
    turns = u[..., None] * (math.pi * 2.0 ** torch.arange(_WAVES, device=u.device))
    return torch.cat([u, turns.sin().flatten(-2), turns.cos().flatten(-2)], -1).flatten(1)


class PolicyTransformer(nn.Module):
    """(x, clock, obs) to the prediction, shaped like x."""

    def __init__(self, horizon: int, actions: int, looks: int, patch: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        wide = heads * width
        self.patch = patch
        self.proj_in = nn.Linear(actions * patch, wide)
        self.place = nn.Parameter(torch.zeros(horizon // patch, wide))
        self.time_proj = Timesteps(wide, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(wide, wide)
        told = looks * 8 * (1 + 2 * _WAVES)
        self.obs_embed = nn.Sequential(
            nn.Linear(told, 2 * wide), nn.SiLU(), nn.Linear(2 * wide, 2 * wide), nn.SiLU(), nn.Linear(2 * wide, wide)
        )
        self.transformer_blocks = nn.ModuleList(Block(heads, width) for _ in range(layers))
        self.norm_out = nn.LayerNorm(wide, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(wide, 2 * wide)
        self.proj_out = nn.Linear(wide, actions * patch)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PolicyTransformer:
        """The module that a config.json describes."""
        return cls(**{k: v for k, v in config.items() if not k.startswith("_")})

    def forward(self, x: Tensor, clock: Tensor, obs: Tensor) -> Tensor:
        """The prediction at x (B, H, A)."""
        n, horizon, _ = x.shape
        h = (self.proj_in(x.reshape(n, horizon // self.patch, -1)) + self.place)[:, None]
        time = self.time_embed(self.time_proj(clock.reshape(n)).to(x.dtype))
        told = nn.functional.silu(time + self.obs_embed(features(obs.to(x))))[:, None, None]
        for block in self.transformer_blocks:
            h = block(h, told, None)
        shift, scale = self.modulation(told).chunk(2, -1)
        out: Tensor = self.proj_out(self.norm_out(h) * (1 + scale) + shift)
        return out.reshape(x.shape)


@dataclass(frozen=True)
class ActionDiT:
    """`PolicyTransformer` as a recipe describes it."""

    horizon: int = 16
    actions: int = 2
    looks: int = 2
    patch: int = 2
    layers: int = 4
    heads: int = 4
    width: int = 24

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`, its weights drawn from `noise`; every block begins as the identity, the output as zero."""
        if self.horizon % self.patch:
            raise EbbError(f"chunks of {self.horizon} actions do not divide into tokens of {self.patch}.")
        with torch.random.fork_rng(devices=[]):
            module: Any = PolicyTransformer(**asdict(self))
        if noise is not None:
            draw(module, noise)
            with torch.no_grad():
                for block in module.transformer_blocks:
                    block.modulation.weight.zero_()
                for layer in (module.modulation, module.proj_out):
                    layer.weight.zero_()
        built: nn.Module = module.eval()
        return built

    def write(self, module: nn.Module, folder: Path) -> None:
        """config.json and the weights, float16."""
        save(module, folder, "ebbtide.zoo.policy.PolicyTransformer", asdict(self))

    def about(self) -> dict[str, Any]:
        """Chunks of actions, and the shape of what is seen."""
        return {"medium": "actions", "shape": [self.horizon, self.actions], "range": [-1, 1], "seen": [self.looks, 5]}


@dataclass(frozen=True)
class PolicyMatching(FlowMatching):
    """Matching of chunks under what was seen; nothing seen is ever left out."""

    process: Affine = field(default_factory=VPCosine)
    kind: str = "v"
    null: int = 0
    drop: float = 0.0
    peaked: float = 0.0

    def said(self, network: nn.Module, x: Tensor, clock: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = network(x, clock, labels)
        return out

    def about(self) -> dict[str, Any]:
        """As of pictures, but there is nothing that stands for "not seen"."""
        return {**super().about(), "nulls": {}}


def policy_model(module: nn.Module, process: Any, about: Mapping[str, Any], name: str, digest: str = "") -> Model:
    """A network of actions as a model; the condition is {"obs": (B, 2, 5)}, and `HOME` where none is given."""
    home = torch.tensor(HOME).expand(*about["seen"])

    def call(module: Any, x: Tensor, clock: Tensor, cond: dict[str, Any]) -> Tensor:
        out: Tensor = module(x, clock, cond["obs"] if "obs" in cond else home.expand(len(x), *home.shape))
        return out

    denoiser = denoiser_of(module, process, about, call)
    return Model(name, denoiser, torch.zeros(about["shape"]), medium=about["medium"], digest=digest)
