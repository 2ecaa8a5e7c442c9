"""Text to image, small: a transformer reads the words of a name, another paints the picture they name.

    words w_1 ... w_L  ->  text encoder  ->  L vectors  ->  cross-attention in every block of the painter

The text encoder is a `ModernBertModel` of two layers over whole words, the painter a `PixArtTransformer2DModel`; both are
trained together from nothing, by flow matching. A prompt with no word at all (the pad, 0, at every place) is the null.

Shapes   x (B, C, H, W) in [-1, 1], words (B, L) int64
Data     the emoji of Twemoji (CC BY 4.0), 32 x 32 on white, by their names
Paper    Chen et al. 2023, "PixArt-alpha" (arXiv 2310.00426), section 2.3; Ho & Salimans 2022 (2207.12598) for dropped prompts
Differs  a vocabulary of words, not of their parts: a word that no name has cannot be read, and is told.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.key import Noise
from ebbtide.core.tree import Tree
from ebbtide.denoise.model import Model
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.zoo.data import Pictures
from ebbtide.zoo.networks import draw


def words_of(text: str) -> list[str]:
    """The words of a name or prompt, in small letters; signs that stand for a word count as one."""
    return re.findall(r"\w+|[&*#]", text.lower())


class Words:
    """A vocabulary: word k of `known` has the id k + 1, and 0 fills prompts up to `length`."""

    def __init__(self, known: Sequence[str], length: int) -> None:
        self.place = {word: k + 1 for k, word in enumerate(known)}
        self.length = length

    def __call__(self, text: str) -> Tensor:
        """The ids of a prompt, (length,) int64; the empty prompt is the null.

        Warns of words it does not know and of a prompt that is cut, and says where. Raises EbbError when nothing of the
        prompt is known.
        """
        said = words_of(text)
        known = [w for w in said if w in self.place]
        lost = [w for w in said if w not in self.place]
        if said and not known:
            raise EbbError(f"no word of {text!r} is known to this model; {nearest(said[0], self.place)}")
        if lost:
            warnings.warn(f"the prompt {text!r} is read without {', '.join(lost)}, unknown to this model", stacklevel=2)
        if len(known) > self.length:
            told = f"the prompt has {len(known)} words and this model reads {self.length}: it ends after"
            warnings.warn(f"{told} {known[self.length - 1]!r}", stacklevel=2)
        ids = [self.place[w] for w in known[: self.length]]
        return torch.tensor([*ids, *[0] * (self.length - len(ids))])


@dataclass(frozen=True)
class Named(Pictures):
    """Pictures with a name each: `labels` are word ids (N, L), `captions` the names, `groups` the categories."""

    known: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


def load_named(path: str | Path, length: int = 12) -> Named:
    """Read an .npz of pictures `x` (N, H, W, 3 or 4) uint8 and of their names `name` (N,); what is transparent is white.

    Raises EbbError when there is no such file, it lacks one of both, or the pictures are not square.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as held:
            x, names = held["x"], [str(v) for v in held["name"]]
            groups = tuple(str(v) for v in held["category"]) if "category" in held else ()
    except (OSError, ValueError, KeyError) as error:
        raise EbbError(f"{path} cannot be read as named pictures, an .npz of x and name: {error}.") from error
    if x.ndim != 4 or x.shape[1] != x.shape[2] or x.shape[3] not in (3, 4) or x.dtype != np.uint8:
        raise EbbError(f"{path} holds x of shape {x.shape}, {x.dtype}; give squares (N, S, S, 3 or 4) of uint8.")
    if len(names) != len(x):
        raise EbbError(f"{path} holds {len(x)} pictures and {len(names)} names.")
    colour = torch.from_numpy(x.astype(np.float32))
    if x.shape[3] == 4:
        cover = colour[..., 3:] / 255
        colour = colour[..., :3] * cover + 255 * (1 - cover)
    known = tuple(sorted({w for name in names for w in words_of(name)}))
    read = Words(known, length)
    pixels = colour.round().to(torch.uint8).movedim(-1, 1).contiguous()
    return Named(pixels, torch.stack([read(n) for n in names]), known=known, captions=tuple(names), groups=groups)


class Painter(nn.Module):
    """Both transformers in one module: (x, clock, words) to the prediction, shaped like x."""

    def __init__(self, size: int, patch: int, layers: int, heads: int, width: int, told: int, words: int) -> None:
        super().__init__()
        from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
        from transformers import ModernBertConfig, ModernBertModel

        self.text = ModernBertModel(
            ModernBertConfig(
                vocab_size=words + 1,
                hidden_size=told,
                intermediate_size=told,
                num_hidden_layers=2,
                num_attention_heads=told // 32,
                layer_types=["full_attention"] * 2,
                pad_token_id=None,
                bos_token_id=None,
                eos_token_id=None,
                cls_token_id=None,
                sep_token_id=None,
            )
        )
        self.paint = PixArtTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width,
            in_channels=3,
            out_channels=3,
            num_layers=layers,
            cross_attention_dim=heads * width,
            caption_channels=told,
            sample_size=size,
            patch_size=patch,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Painter:
        """The module that a config.json describes."""
        return cls(**{k: v for k, v in config.items() if not k.startswith("_")})

    def forward(self, x: Tensor, clock: Tensor, words: Tensor) -> Tensor:
        """The prediction at x (B, 3, H, W), clock (B,), words (B, L)."""
        said = self.text(words).last_hidden_state
        none = {"resolution": None, "aspect_ratio": None}
        out: Tensor = self.paint(x, said, clock, added_cond_kwargs=none).sample
        return out


@dataclass(frozen=True)
class TextToImage:
    """`Painter` as a recipe describes it.

    words      its vocabulary, one string with a blank between two words
    length     of a prompt, in words
    examples   a few names, to show what it learns
    """

    words: str = ""
    length: int = 12
    examples: tuple[str, ...] = ()
    size: int = 32
    patch: int = 4
    layers: int = 5
    heads: int = 4
    width: int = 32
    told: int = 96

    def config(self) -> dict[str, Any]:
        """The arguments of `Painter`."""
        kept = ("size", "patch", "layers", "heads", "width", "told")
        return {**{k: v for k, v in asdict(self).items() if k in kept}, "words": len(self.words.split())}

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`, its weights drawn from `noise`; the last layer begins as zero."""
        with torch.random.fork_rng(devices=[]):
            module = Painter(**self.config())
        if noise is not None:
            draw(module, noise)
            for layer in module.modules():
                if isinstance(layer, nn.Embedding):
                    draw(layer, noise.fold(0), 0.02)
            with torch.no_grad():
                module.paint.proj_out.weight.zero_()
        return module.eval()

    def write(self, module: nn.Module, folder: Path) -> None:
        """config.json and the weights of both transformers in one file, float16."""
        from safetensors.torch import save_file

        tensors = {k: v.detach().half().contiguous() for k, v in module.state_dict().items()}
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        config = {"_class_name": "ebbtide.zoo.emoji.Painter", **self.config()}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def about(self) -> dict[str, Any]:
        """Pictures, a prompt each."""
        prompt = {"words": self.words, "length": self.length, "examples": list(self.examples)}
        return {
            "medium": "image",
            "shape": [3, self.size, self.size],
            "range": [-1, 1],
            "labels": 1,
            "prompt": prompt,
        }


@dataclass(frozen=True)
class PromptMatching(FlowMatching):
    """Flow matching of pictures under prompts; a prompt is dropped as a whole, by pads alone."""

    null: int = 0

    def said(self, network: nn.Module, x: Tensor, clock: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = network(x, clock, labels)
        return out

    def about(self) -> dict[str, Any]:
        return {**super().about(), "nulls": {"words": self.null}}


@dataclass(frozen=True, eq=False)
class PromptModel(Model):
    """A model that is asked in words: `cond` is a prompt, a list of n, or {"prompt": ..., "negative": ...}."""

    read: Words = field(repr=False, kw_only=True)

    @property
    def prompted(self) -> bool:
        return True

    def condition(self, cond: Any, n: int) -> dict[str, Tree]:
        """The condition of n elements; no prompt is the null.

        Raises EbbError for prompts of another number and for a condition that is none, and warns as `Words` does.
        """
        if isinstance(cond, Mapping) and "words" in cond:
            return super().condition(cond, n)
        cond = {"prompt": "" if cond is None else cond} if not isinstance(cond, Mapping) else dict(cond)
        leaves: dict[str, Any] = {"words": self._ids(cond.pop("prompt", ""), n)}
        if "negative" in cond:
            leaves["null"] = {"words": self._ids(cond.pop("negative"), n)}
        return super().condition({**cond, **leaves}, n)

    def _ids(self, prompts: Any, n: int) -> Tensor:
        prompts = [prompts] * n if isinstance(prompts, str) else prompts
        if not isinstance(prompts, list | tuple) or not all(isinstance(p, str) for p in prompts):
            raise EbbError(f"{self.name} is asked in words: give a prompt or a list of {n}, not {prompts!r}.")
        if len(prompts) != n:
            raise EbbError(f"{len(prompts)} prompts were given for {n} samples.")
        return torch.stack([self.read(p) for p in prompts])
