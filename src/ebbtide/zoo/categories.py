"""Emoji by their category: what their pictures are compared and verified with.

    32 -2 conv 3x3, 32- pool 16 -2 conv, 64- pool 8 -2 conv, 96- mean -linear- 64 features -linear- 9 logits

Group norm and GELU after every convolution. A tenth of the pictures, chosen by key, is held out: `split="test"` reads it.
Five pictures of swatches ("Component") are of no use to a classifier and are left out. Categories are of people's making:
a chess pawn is an activity, a joker a thing of games, a heart a feeling; nobody tells all of them by looking.

Data     the emoji of Twemoji (CC BY 4.0), 32 x 32 on white, by the categories of Unicode
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.zoo.classifier import Reader, SmallCNN, opened
from ebbtide.zoo.data import Pictures
from ebbtide.zoo.emoji import load_named

CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
_HELD_OUT = 0.1


def load_sorted(path: str | Path, split: str = "train") -> Pictures:
    """Read named pictures with their place in `CATEGORIES` as the label; what is of none of them is left out.

    split   "train", nine tenths chosen by key, "test", the rest, or "all"

    Raises EbbError as `load_named` does, for pictures without categories, and for another split.
    """
    named = load_named(path)
    if not set(CATEGORIES) & set(named.groups):
        raise EbbError(f"{path} holds no pictures of known categories: it needs `category`, {', '.join(CATEGORIES)}.")
    place = torch.tensor([CATEGORIES.index(g) if g in CATEGORIES else -1 for g in named.groups])
    held = Noise(keys([0]), torch.zeros(1, dtype=torch.int64)).uniform((1, len(place)))[0] < _HELD_OUT
    parts = {"train": ~held, "test": held, "all": torch.ones_like(held)}
    if split not in parts:
        raise EbbError(f"emoji have the splits {', '.join(parts)}, not {split!r}.")
    index = torch.where(parts[split] & (place >= 0))[0]
    return Pictures(named.pixels[index], place[index], CATEGORIES)


class Sorter(Reader):
    """x (B, channels, size, size) in [-1, 1] to logits (B, classes); `features` is the layer before, (B, width)."""

    def __init__(self, maps: tuple[int, ...], size: int, channels: int, classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((channels, *maps)):
            for c in (a, b):
                layers += [nn.Conv2d(c, b, 3, padding=1), nn.GroupNorm(8, b), nn.GELU()]
            layers.append(nn.AvgPool2d(2))
        layers[-1] = nn.AdaptiveAvgPool2d(1)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(maps[-1], width), nn.GELU())
        self.head = nn.Linear(width, classes)


@dataclass(frozen=True)
class CategoryCNN(SmallCNN):
    """`Sorter` as a recipe describes it."""

    size: int = 32
    channels: int = 3
    classes: int = len(CATEGORIES)
    maps: tuple[int, ...] = (32, 64, 96)

    kind: ClassVar[type[Reader]] = Sorter

    def about(self) -> dict[str, Any]:
        """Pictures, one category each."""
        return {**super().about(), "categories": list(CATEGORIES)}


@functools.cache
def load(folder: Path | None = None) -> Sorter:
    """The shipped network, or one that `ebb train emoji-classifier` left in a folder; float32, `eval()`, no gradients.

    One module is shared by all callers of a process. Raises EbbError when the folder holds none.
    """
    from ebbtide.zoo import folder as shipped

    return opened(Sorter, shipped("emoji-classifier") if folder is None else folder)
