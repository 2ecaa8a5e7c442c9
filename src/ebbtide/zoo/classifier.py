"""A small classifier of digits: verifier, guide, and the features in which samples are compared with data.

    28 -conv 3x3, 16- pool 14 -conv, 32- pool 7 -conv, 64- pool 3 -linear- 64 features -linear- 10 logits

GELU between all layers: gradients to the picture are smooth, and no feature dies. 60,874 weights, trained by
`ebb train classifier` on the MNIST training pictures.
"""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ebbtide.core.key import Noise
from ebbtide.zoo.data import Pictures
from ebbtide.zoo.networks import draw

_M = TypeVar("_M", bound=nn.Module)


class Reader(nn.Module):
    """A `body` that makes features of pictures, and a `head` that reads them."""

    body: nn.Module
    head: nn.Module

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees, (B, width)."""
        out: Tensor = self.body(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, classes)."""
        out: Tensor = self.head(self.features(x))
        return out


class Classifier(Reader):
    """x (B, channels, size, size) in [-1, 1] to logits (B, classes); `features` is the layer before, (B, width)."""

    def __init__(self, size: int = 28, channels: int = 1, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        maps = (channels, 16, 32, 64)
        layers = [
            layer
            for a, b in itertools.pairwise(maps)
            for layer in (nn.Conv2d(a, b, 3, padding=1), nn.GELU(), nn.MaxPool2d(2))
        ]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(maps[-1] * (size // 8) ** 2, width), nn.GELU())
        self.head = nn.Linear(width, classes)


@dataclass(frozen=True)
class SmallCNN:
    """`Classifier` as a recipe describes it."""

    size: int = 28
    channels: int = 1
    classes: int = 10
    width: int = 64
    kind: ClassVar[type[Reader]] = Classifier

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`, its weights drawn from `noise`."""
        with torch.random.fork_rng(devices=[]):
            module = self.kind(**asdict(self))
        if noise is not None:
            draw(module, noise)
        return module.eval()

    def write(self, module: nn.Module, folder: Path) -> None:
        """config.json and model.safetensors, float16."""
        from safetensors.torch import save_file

        save_file({k: v.detach().half() for k, v in module.state_dict().items()}, folder / "model.safetensors")
        config = {"_class_name": named(self.kind), **asdict(self)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def about(self) -> dict[str, Any]:
        """Pictures, one label each."""
        shape = [self.channels, self.size, self.size]
        return {"medium": "image", "shape": shape, "range": [-1, 1], "labels": self.classes}


@functools.cache
def load(folder: Path | None = None) -> Classifier:
    """The shipped classifier, or one that `ebb train classifier` left in a folder; float32, `eval()`, no gradients.

    One module is shared by all callers of a process. Raises EbbError when the folder holds none.
    """
    from ebbtide.zoo import folder as shipped

    return opened(Classifier, shipped("classifier") if folder is None else folder)


def named(kind: type) -> str:
    """How config.json names a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def opened(kind: type[_M], folder: Path) -> _M:
    """The module of this class in a folder, as its recipe wrote it. Raises EbbError when there is none."""
    from safetensors.torch import load_file

    from ebbtide.core.errors import EbbError

    name = named(kind)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.pop("_class_name") != name:
            raise EbbError(f"{folder} holds another network than {name}.")
        module = kind(**config)
        module.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise EbbError(f"{folder} holds no classifier of ebbtide: {error}.") from error
    return module.eval().requires_grad_(False)


def accuracy(module: nn.Module, data: Pictures) -> float:
    """The share of labelled pictures that a classifier reads right."""
    assert data.labels is not None
    parts = torch.arange(len(data)).split(1000)
    with torch.no_grad():
        right = sum(int((module(x).argmax(1) == y).sum()) for x, y in map(data.rows, parts))
    return right / len(data)
