"""A small network for points, for what is learnt in seconds: x, a few waves of the time and how far to go, to a prediction.

    f(x, t, far) = MLP([x, far, t, cos(2^k pi t), sin(2^k pi t)])        k = 0 ... 3

It is called as the networks of diffusers are, so that what pictures learn from teaches it too. No labels.

Shapes   x (B, D), or (B, D + 1) where the last number is how far the step is to lead; clock (B,), 1000 t
Source   the waves: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core.key import Noise
from ebbtide.core.plan import Plan
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model
from ebbtide.learn.train import Objective, Recipe, fitted
from ebbtide.process.flow import Flow
from ebbtide.zoo.drawn import Ways, ways_of
from ebbtide.zoo.models import model_of
from ebbtide.zoo.networks import draw, save

WAVES = 4


class Plane(nn.Module):
    """The module: `inputs` numbers and a clock to `outputs` numbers."""

    def __init__(self, inputs: int, outputs: int, width: int, layers: int) -> None:
        super().__init__()
        sizes = [inputs + 1 + 2 * WAVES, *[width] * layers]
        hidden = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(width, outputs))

    def forward(self, x: Tensor, clock: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
        """The prediction, as `sample`; labels are not looked at."""
        t = clock[:, None] / 1000
        angle = t * math.pi * 2.0 ** torch.arange(WAVES, dtype=t.dtype)
        return SimpleNamespace(sample=self.net(torch.cat([x, t, angle.cos(), angle.sin()], 1)))


@dataclass(frozen=True)
class PlaneMLP:
    """`Plane` as a recipe describes it.

    far     whether it is told how far a step is to lead
    start   gives the module that it begins as; None draws one
    """

    dims: int = 2
    width: int = 64
    layers: int = 3
    far: bool = False
    start: Callable[[], nn.Module] | None = None

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`, its weights drawn from `noise` unless it starts as another."""
        module = Plane(self.dims + self.far, self.dims, self.width, self.layers)
        if self.start is not None:
            module.load_state_dict(self.start().state_dict())
        elif noise is not None:
            draw(module, noise)
        return module.eval()

    def write(self, module: nn.Module, folder: Path) -> None:
        """config.json and float16 weights."""
        config = {"inputs": self.dims + self.far, "outputs": self.dims, "width": self.width, "layers": self.layers}
        save(module, folder, "ebbtide.zoo.plane.Plane", config)

    def about(self) -> dict[str, Any]:
        """Points, without labels."""
        return {"medium": "points", "shape": [self.dims], "labels": 1, "far": self.far}


def ring() -> Model:
    """Eight narrow Gaussians on a circle, their flow exact: a teacher in the plane whose ways bend."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    exact = GaussianMixture(Flow(), [1] * 8, 2 * torch.stack([angle.cos(), angle.sin()], 1), 0.02)
    return Model("ring", exact, torch.zeros(2))


def fine_ways(model: Model, n: int, seed: int = 0) -> Ways:
    """n ways of a model by 64 Heun steps, every fourth point of which is kept."""
    return ways_of(model, Plan(solve="heun", grid={"name": "linear", "steps": 64}), n, seed, keep=4)


def student(network: PlaneMLP, objective: Objective, ways: Ways, steps: int, lr: float = 5e-3) -> Model:
    """A network that learnt from ways, as a model."""
    recipe = Recipe("plane", "ways", network, objective, steps, batch=256, lr=lr, warmup=50, ema=0.99, weight_decay=0.0)
    return model_of(fitted(recipe, ways), {**network.about(), **objective.about()}, "student")
