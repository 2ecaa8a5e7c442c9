"""Models: a denoiser together with what a run must know about the data it denoises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Loop
from ebbtide.core.parts import Denoiser, Process
from ebbtide.core.plan import Plan
from ebbtide.core.tree import Tree, leaves, tree_map
from ebbtide.denoise import files
from ebbtide.denoise.network import Border


@dataclass(frozen=True, eq=False)
class Model:
    """What `ebb.load` gives: a denoiser and the shape of its data.

    name      what the user calls it
    denoiser  what answers; its process is the model's own
    like      one element of the data without the batch: shape and dtype, a tensor or a dict of fields
    units     how many leading dimensions of an element own their times: 0 one time for all, 1 one a frame or token
    labels    the number of classes, where the condition is one
    medium    "image" (pixels in [-1, 1]), "text" (token ids) or "points" (anything else)
    digest    a hash of the weights or data
    decode    token ids to text, for text; samples to pixels, for pictures that are made as latents
    """

    name: str
    denoiser: Denoiser = field(repr=False)
    like: Tree = field(repr=False)
    units: int = 0
    labels: int | None = None
    medium: str = "points"
    digest: str = ""
    decode: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def process(self) -> Process:
        """The process that the denoiser knows."""
        return self.denoiser.process

    @property
    def prompted(self) -> bool:
        """Whether it is asked in words."""
        return False

    def gives(self, cond: Mapping[str, Any]) -> frozenset[str]:
        """Features of the model under this condition: "null" where guidance has something to take away."""
        null = "null" in cond or any(
            isinstance(v, Tensor) and self.denoiser.null(k, v) is not None for k, v in cond.items()
        )
        module = isinstance(getattr(self.denoiser, "module", None), nn.Module)
        return frozenset({"null"} if null else ()) | frozenset({"module"} if module else ())

    def pixels(self, x: Tree) -> Tree:
        """Samples as pixels: decoded, where the model makes latents of pictures."""
        pixels: Tree = x if self.decode is None or self.medium == "text" else self.decode(x)
        return pixels

    def text(self, x: Tree) -> list[str]:
        """Samples as text, one string each. Raises EbbError where the model makes none."""
        if self.medium != "text" or self.decode is None or not isinstance(x, Tensor):
            raise EbbError(f"{self.name} makes no text; its samples are in .x.")
        return [self.decode(row) for row in x]

    def forming(self, x: Tree) -> list[str]:
        """Text on its way, for a glance. Raises EbbError where the model makes none."""
        return self.text(x)

    def preview(self, x: Tree) -> Tree:
        """Samples as pixels for a glance: `pixels`, unless the model was given something quicker."""
        return self.pixels(x)

    def batch(self, n: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Tree:
        """A tree of zeros for `n` elements."""

        def zeros(v: Tensor) -> Tensor:
            kind = dtype if dtype is not None and v.is_floating_point() else v.dtype
            return torch.zeros((n, *v.shape), dtype=kind, device=device)

        return tree_map(zeros, self.like)

    def unit_shape(self) -> tuple[int, ...]:
        """The shape of an element's units, without the batch."""
        first = next(iter(leaves(self.like).values()))
        return tuple(first.shape[: self.units])

    def condition(self, cond: Any, n: int) -> dict[str, Tree]:
        """The condition of `n` elements: a label, a list of labels, or a dict of tensors (B, ...) or single rows.

        A leaf may also be what `ebb.file` says of a file, or a list of such. "from", the condition of a picture that is
        edited, is a condition again.

        Raises EbbError for labels out of range and for conditions of another length.
        """
        if cond is None:
            return {} if self.labels is None else self.condition({"label": self._null_label()}, n)
        if isinstance(cond, int | list | tuple) or (isinstance(cond, Tensor) and self.labels is not None):
            if self.labels is None:
                raise EbbError(f"{self.name} knows no labels; leave the label out.")
            cond = {"label": cond}
        if not isinstance(cond, Mapping):
            raise EbbError(f"a condition is a label, a list of labels or a dict of tensors, not {cond!r}.")
        if self.labels is not None and "label" not in cond:
            cond = {"label": self._null_label(), **cond}
        return self.rows(cond, n)

    def rows(self, cond: Mapping[str, Any], n: int) -> dict[str, Tree]:
        """Leaves of a condition as n rows, with nothing added."""
        return {name: self._leaf(name, value, n) for name, value in cond.items()}

    def _null_label(self) -> int:
        null = self.denoiser.null("label", torch.zeros(1, dtype=torch.int64))
        if null is None:
            raise EbbError(f"{self.name} needs a label: one of 0 to {(self.labels or 1) - 1}.")
        return int(null[0])

    def opened(self, about: Mapping[str, Any]) -> Tensor:
        """What a file named in a condition holds, one element of it. Raises EbbError as `denoise.files` does."""
        latent = self.decode is not None and self.medium in ("image", "video")
        if latent and not about["file"].endswith(".npy"):
            raise EbbError(
                f"{self.name} makes latents, and does not know those of {about['file']}: encode it, and give an .npy file."
            )
        return files.read(about, self.like)

    def _leaf(self, name: str, value: Any, n: int) -> Tree:
        if name == "from":  # the condition of a source is asked in the words of the model's own
            return self.condition(value, n)
        if files.named(value):
            each = value if isinstance(value, list) else [value]
            value = torch.stack([self.opened(v) for v in each])
        if isinstance(value, Mapping):
            return {k: self._leaf(k, v, n) for k, v in value.items()}
        leaf = torch.as_tensor(value)
        if name == "label" and self.labels is not None:
            null = self.denoiser.null("label", leaf.reshape(-1)[:1])
            known = (leaf >= 0) & (leaf < self.labels)
            if null is not None:
                known = known | (leaf == null.to(leaf.dtype)[0])
            if not bool(known.all()):
                wrong = leaf.reshape(-1)[~known.reshape(-1)][0].item()
                raise EbbError(f"{self.name} has labels 0 to {self.labels - 1}, not {wrong}.")
        if leaf.ndim == 0:
            leaf = leaf.expand(n).clone()
        if len(leaf) == 1 and n > 1:
            leaf = leaf.expand(n, *leaf.shape[1:]).clone()
        if len(leaf) != n:
            raise EbbError(f"the condition {name!r} holds {len(leaf)} rows for {n} samples.")
        return leaf

    def loop(self, plan: Plan, cond: Mapping[str, Any] | None = None) -> Loop:
        """The plan bound to this model. Raises EbbError where they do not fit, before anything runs."""
        process = self.process if plan.process is None else plan.parts("process")[0]
        border = Border.of(self.denoiser, process, plan.parts("network"))
        loop = plan.bind(border, process, self.gives(cond or {}))
        return replace(loop, pixels=self.pixels, text=self.text)


def process(name: str, **parameters: Any) -> Process:
    """A process by its name in the registry, such as process("vp-cosine")."""
    return registry.make("process", {"name": name, **parameters})


def seeds_of(seed: int | Sequence[int], n: int) -> list[int]:
    """One seed an element: element j has seed + j, or the j-th of a list. Raises EbbError for a list of another length."""
    if isinstance(seed, int):
        return [seed + j for j in range(n)]
    if len(seed) != n:
        raise EbbError(f"{len(seed)} seeds were given for {n} samples.")
    return [int(v) for v in seed]
