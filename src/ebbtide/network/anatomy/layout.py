"""Where the parts of an architecture are: written down for known classes, found by structure for others.

Source   diffusers 0.42 and transformers 5.20, the classes named in `KNOWN`
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ebbtide.network.anatomy.inside import attends, dotted, feeds, is_attention

Paths = tuple[str, ...]
GROUPS = ("first", "time", "condition", "last")


@dataclass(frozen=True)
class Layout:
    """Paths of the lists of blocks, in the order in which they run, and of what lies before, beside and after them.

    `places` embed positions, and nothing of x. A path may be of a module, of a bare parameter, or of what is not there in
    every configuration; `*` is any layer.
    """

    blocks: Paths
    first: Paths = ()
    time: Paths = ()
    condition: Paths = ()
    last: Paths = ()
    places: Paths = ()


_UNET = Layout(
    ("down_blocks", "mid_block", "up_blocks"),
    ("conv_in",),
    ("time_proj", "time_embedding"),
    ("class_embedding", "add_time_proj", "add_embedding", "encoder_hid_proj", "position_net"),
    ("conv_norm_out", "conv_out"),
)
_TEXTS = ("time_text_embed.guidance_embedder", "time_text_embed.text_embedder", "context_embedder")
_TIME = ("time_text_embed.timestep_embedder",)
_OUT = ("norm_out", "proj_out")
_EMB = "transformer_blocks.*.norm1.emb"
_SIZES = ("adaln_single.emb.resolution_embedder", "adaln_single.emb.aspect_ratio_embedder")

KNOWN = {
    "UNet2DModel": _UNET,
    "UNet2DConditionModel": _UNET,
    "DiTTransformer2DModel": Layout(
        ("transformer_blocks",),
        ("pos_embed",),
        (f"{_EMB}.timestep_embedder",),
        (f"{_EMB}.class_embedder",),
        ("norm_out", "proj_out_1", "proj_out_2"),
    ),
    "PixArtTransformer2DModel": Layout(
        ("transformer_blocks",),
        ("pos_embed",),
        ("adaln_single",),
        (*_SIZES, "caption_projection"),
        ("scale_shift_table", *_OUT),
    ),
    "SD3Transformer2DModel": Layout(("transformer_blocks",), ("pos_embed",), _TIME, _TEXTS, _OUT),
    "FluxTransformer2DModel": Layout(
        ("transformer_blocks", "single_transformer_blocks"), ("x_embedder",), _TIME, _TEXTS, _OUT, ("pos_embed",)
    ),
    "WanTransformer3DModel": Layout(
        ("blocks",),
        ("patch_embedding",),
        ("condition_embedder.time_embedder", "condition_embedder.time_proj"),
        ("condition_embedder.text_embedder", "condition_embedder.image_embedder"),
        ("scale_shift_table", *_OUT),
    ),
    "LTXVideoTransformer3DModel": Layout(
        ("transformer_blocks",), ("proj_in",), ("time_embed",), ("caption_projection",), ("scale_shift_table", *_OUT)
    ),
    "BertModel": Layout(("encoder.layer",), ("embeddings",), last=("pooler",)),
    "BertForMaskedLM": Layout(("bert.encoder.layer",), ("bert.embeddings",), last=("bert.pooler", "cls")),
    "ModernBertModel": Layout(("layers",), ("embeddings",), last=("final_norm",)),
    "ModernBertForMaskedLM": Layout(
        ("model.layers",), ("model.embeddings",), last=("model.final_norm", "head", "decoder")
    ),
    "LlamaModel": Layout(("layers",), ("embed_tokens",), last=("norm",)),
    "LlamaForCausalLM": Layout(("model.layers",), ("model.embed_tokens",), last=("model.norm", "lm_head")),
}

_TIME_SAID = re.compile(r"time|(^|_)t_emb|temb|adaln|modulation|t_block|sigma_emb|noise_emb|noise_level", re.IGNORECASE)
_COND_SAID = re.compile(
    r"text|txt|context|caption|(^|_)cap_|class_?(emb|lab|cond)|label|cond|guidance|pooled|prompt|resolution|aspect"
    r"|image_(emb|proj)|(^|_)y_emb|add_embedding|encoder_hid|vec(tor)?_in|position_net",
    re.IGNORECASE,
)
_LAST_SAID = re.compile(r"(^|_)(out|final|head|logits|cls|classifier|unembed)(_|$)|^lm_|scale_shift|shift_table")
_FIRST_SAID = re.compile(r"(^|_)(in|patch\w*|embed\w*|emb|tok\w*|wte|wpe|pos|query)(_|$)|^mask_")
_WITHIN = re.compile(r"(timestep|time|class|label)_embedder$")
_DOWN, _UP = re.compile(r"^downs?(_|$)"), re.compile(r"^ups?(_|$)")
_MID = re.compile(r"^(mid|middle|bottleneck)")


def known(module: nn.Module) -> Layout | None:
    """The layout that is written down for this class or one that it inherits from."""
    return next((KNOWN[c.__name__] for c in type(module).__mro__ if c.__name__ in KNOWN), None)


def holds(name: str, module: nn.Module) -> bool:
    """Whether a module of this name computes something of its own: it has weights, or normalises."""
    return next(module.parameters(), None) is not None or "norm" in f"{name} {type(module).__name__}".lower()


def _bare(layers: nn.Module) -> bool:
    """Whether some of the layers are lists, which nobody calls."""
    return any(isinstance(m, nn.ModuleList | nn.ModuleDict) for m in layers.children())


def _stack(name: str, module: nn.Module) -> bool:
    """Whether it is a list of equal layers with attention in each."""
    layers = list(module.named_children())
    if not layers or not isinstance(module, nn.ModuleList | nn.Sequential):
        return False
    if len({type(layer) for _, layer in layers}) > 1 or _bare(module):
        return False
    return any(attends(n, m) and not (is_attention(n, m) and not _whole(m)) for n, m in layers)


def _whole(layer: nn.Module) -> bool:
    """Whether a layer that makes queries itself feeds forward too, and so is a block and no attention."""
    return any(re.search(r"(^|_)(ff|ffn|mlp)(_|$)", n) or feeds(n, m) for n, m in layer.named_children())


def _way(module: nn.Module) -> tuple[Paths, bool]:
    """The children of a U-Net that are its way down, its middle and its way up; and whether there is part of one."""
    lists = [n for n, m in module.named_children() if isinstance(m, nn.ModuleList)]
    down, up = ([n for n in lists if said.search(n)] for said in (_DOWN, _UP))
    middle = [n for n, _ in module.named_children() if _MID.search(n)]
    whole = len(down) == len(up) == 1 and not any(_bare(module.get_submodule(n)) for n in (*down, *up))
    return (*down, *middle, *up) if whole else (), bool(down or up)


def _lists(module: nn.Module, path: str = "") -> Iterator[str]:
    """The outermost lists of blocks within a module, in order; none within other lists, or half a U-Net."""
    way, some = _way(module)
    if some:
        yield from (dotted(path, n) for n in way)
        return
    for name, child in module.named_children():
        at = dotted(path, name)
        if _stack(name, child):
            yield at
        elif not isinstance(child, nn.ModuleList):
            yield from _lists(child, at)


def says(name: str) -> str | None:
    """The group that a name tells of, "both" where it tells of time and condition."""
    time, cond = _TIME_SAID.search(name), _COND_SAID.search(name)
    return "both" if time and cond else "time" if time else "condition" if cond else None


def _said(name: str, module: nn.Module) -> str | None:
    """The same of a module; of both where each has a part in it, else of time."""
    said = says(name)
    return "time" if said == "both" and not _mixed(module, None) else said


def _side(name: str) -> str | None:
    return "last" if _LAST_SAID.search(name) else "first" if _FIRST_SAID.search(name) else None


def _mixed(module: nn.Module, group: str | None) -> bool:
    """Whether a module within it tells of another group than its own."""
    named = ((p.rpartition(".")[2], m) for p, m in module.named_modules() if p)
    return any(says(n) not in (None, group) and next(m.children(), None) is not None for n, m in named)


class _Guess:
    """A walk through a module that sorts what is not a block into groups."""

    def __init__(self, root: nn.Module) -> None:
        self.lists = tuple(_lists(root))
        self.blocks: list[str] = []
        self.groups: dict[str, list[str]] = {g: [] for g in GROUPS}
        self.met = 0

    def place(self, path: str, group: str | None) -> None:
        """Before the first list is `first`, after the last is `last`, if the name tells nothing."""
        group = group or _side(path.rpartition(".")[2])
        if group is None and self.met in (0, len(self.lists)):
            group = "last" if self.met else "first"
        if group is not None:
            self.groups[group].append(path)

    def look(self, module: nn.Module, path: str = "", group: str | None = None) -> None:
        for name, _ in module.named_parameters(recurse=False):
            self.place(dotted(path, name), group or _said(name, module))
        for name, child in module.named_children():
            at, said = dotted(path, name), _said(name, child) or group
            inner = sum(p == at or p.startswith(f"{at}.") for p in self.lists)
            if at in self.lists and said is None:
                self.blocks.append(at)
                self.met += 1
                continue
            side = said or (None if inner else _side(name))
            if said == "both" or (_mixed(child, said) and side == said) or (inner and said is None):
                self.look(child, at, None if said == "both" else said)
            elif isinstance(child, nn.ModuleList | nn.ModuleDict):  # which nobody calls
                self.met += inner
                self.look(child, at, side)
            else:
                self.met += inner
                if holds(name, child):
                    self.place(at, said)


def guess(module: nn.Module) -> Layout | None:
    """The layout of a module of unknown class, by structure; None if no list of blocks is in it."""
    found = _Guess(module)
    found.look(module)
    if not found.blocks:
        return None
    # A transformer whose time is nowhere else has it in each of its blocks.
    if not found.groups["time"]:
        for path, _ in module.named_modules():
            if _WITHIN.search(path) and any(path.startswith(f"{b}.") for b in found.blocks):
                found.groups[says(path.rpartition(".")[2]) or "condition"].append(path)
    order = [p for p in found.lists if p in found.blocks]
    return Layout(tuple(order), **{g: tuple(paths) for g, paths in found.groups.items()})
