"""A diffusers pipeline as a model: prompts become conditions, latents become pictures, and ebbtide owns what lies between.

    model = ebb.load(pipe, height=512, width=512)
    ebb.sample(model, plan, cond={"prompt": "a lighthouse", "negative": "fog"}, n=4).images()

Every prompt is encoded by itself, so an element's condition never depends on its neighbours, and latents are decoded one
by one.

Shapes   x (B, *latents of the size loaded), conditions (B, ...), pictures (B, C, H, W) or frames (B, F, C, H, W) in [-1, 1]
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ebbtide.core import registry
from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.tree import Tree, tree_map
from ebbtide.denoise.model import Model
from ebbtide.denoise.network import Network
from ebbtide.interop import schedulers
from ebbtide.interop.fields import OF_THE_SAMPLER
from ebbtide.interop.pipelines.hearing import Heard, decode, denoiser, hear, parameters, twin
from ebbtide.interop.pipelines.learning import timed, voice
from ebbtide.interop.pipelines.prompts import check_length
from ebbtide.interop.pipelines.voice import Voice


@dataclass(frozen=True, eq=False)
class PipelineModel(Model):
    """What `ebb.load` gives for a pipeline.

    pipe    the pipeline
    voice   how its denoiser is called
    size    what the pipeline is asked besides the prompt: height, width, num_frames, guidance_scale where embedded
    heard   what it said when it was loaded
    quick   latents to pictures by a smaller decoder, for previews
    timed   the shape of the units that have times of their own: frames (1, F) of latents (C, F, H, W), or tokens (L,)
    """

    pipe: Any = field(repr=False, kw_only=True)
    voice: Voice = field(repr=False, kw_only=True)
    size: Mapping[str, Any] = field(repr=False, kw_only=True)
    heard: Heard = field(repr=False, kw_only=True)
    quick: Any = field(default=None, repr=False, kw_only=True)
    timed: tuple[int, ...] = field(default=(), kw_only=True)

    def unit_shape(self) -> tuple[int, ...]:
        return self.timed

    def preview(self, x: Tree) -> Tree:
        return super().preview(x) if self.quick is None else self.quick(x)

    @property
    def prompted(self) -> bool:
        return "prompt" in parameters(self.pipe)

    def condition(self, cond: Any, n: int) -> dict[str, Tree]:
        """The condition of n elements: a prompt or label, a list of n, or a dict.

        The dict holds "prompt" or "label", "negative", other arguments of the pipeline's call, each one for all or a list
        of n, and leaves of tensors as for any model ("start", say); or encoded conditions, as this function gives them.

        Raises EbbError for unknown arguments, lists of another length, and prompts that are encoded to different lengths;
        warns where a prompt was cut.
        """
        if isinstance(cond, Mapping) and all(
            isinstance(cond.get(path[0]), Tensor | Mapping) for path in self.voice.own
        ):
            return self.rows(cond, n)
        asked, leaves = self._read(cond)
        rows = [{k: v[j] if isinstance(v, list) else v for k, v in asked.items()} for j in range(n)]
        for k, v in asked.items():
            if isinstance(v, list) and len(v) != n:
                raise EbbError(f"the condition {k!r} lists {len(v)} values for {n} samples.")
        made: dict[str, dict[str, Any]] = {}
        for row in rows:
            if repr(row) not in made:
                made[repr(row)] = self.encode(**row)
        joined = tree_map(self._joined, *(made[repr(row)] for row in rows))
        return {**joined, **self.rows(leaves, n)}

    def _joined(self, *rows: Tensor) -> Tensor:
        shapes = list(dict.fromkeys(v.shape[1:] for v in rows))
        if len(shapes) > 1:
            raise EbbError(
                f"{self.name} makes {tuple(shapes[0])} of one prompt and {tuple(shapes[1])} of another, which one call of "
                "its denoiser cannot hold: sample prompts of one length together, or each by itself."
            )
        return torch.cat(rows)

    def _read(self, cond: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the pipeline is asked, and the leaves beside it."""
        known = parameters(self.pipe)
        key = next(iter(subject(self.pipe)))
        word = "prompt" if key == "prompt" else "label"
        if not isinstance(cond, Mapping):
            if cond is None and key == "class_labels":
                raise EbbError(f"{self.name} needs a label.")
            cond = {key: "" if cond is None else cond}
        names = {"negative": "negative_prompt", "label": "class_labels"}
        cond = {names.get(k, k): v for k, v in cond.items()}
        leaves = {k: v for k, v in cond.items() if isinstance(v, Tensor | Mapping) and k not in known}
        asked = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in cond.items() if k not in leaves}
        for k in asked:
            if k not in known:
                raise EbbError(f"{type(self.pipe).__name__} is not asked for {k!r}; {nearest(k, known)}")
        if key not in asked:
            raise EbbError(f"this condition holds no {word}; give cond={{'{word}': ...}}.")
        labels = asked[key] if isinstance(asked[key], list) else [asked[key]]
        if self.labels and not all(isinstance(v, int) and 0 <= v < self.labels for v in labels):
            raise EbbError(f"{self.name} has labels 0 to {self.labels - 1}, not {asked[key]}.")
        return asked, leaves

    def encode(self, **asked: Any) -> dict[str, Any]:
        """The condition of one element, each leaf with one row, and its null condition where the pipeline has one."""
        check_length(self.pipe, asked)
        said = hear(self.pipe, 2, **_one({**self.size, **guidance(self.pipe, True), **asked}))
        return self.voice.condition(said.turns[0], 1)


def subject(pipe: Any, value: Any = None, n: int = 1) -> dict[str, Any]:
    """What a pipeline is asked to show: prompts, or labels."""
    known = parameters(pipe)
    if "prompt" in known:
        return {"prompt": [value or ""] * n}
    if "class_labels" in known:
        return {"class_labels": [value if isinstance(value, int) else 0] * n}
    raise EbbError(f"{type(pipe).__name__} takes neither a prompt nor a label; it cannot be loaded yet.")


def guidance(pipe: Any, on: bool) -> dict[str, Any]:
    """The arguments that switch classifier-free guidance on or off; none where the pipeline has no such thing."""
    known = parameters(pipe)
    if "true_cfg_scale" in known:
        return {"true_cfg_scale": 2.0, "negative_prompt": ""} if on else {"true_cfg_scale": 1.0}
    if "guidance_scale" in known and known.keys() & {"negative_prompt", "class_labels"}:
        return {"guidance_scale": 2.0 if on else 1.0}
    return {}


def facts(scheduler: Any) -> schedulers.Found:
    """What a scheduler says of the network: its process, what it predicts, what it is told."""
    return reading(scheduler, 2, ignore=OF_THE_SAMPLER, mu=0.0)


def reading(scheduler: Any, steps: int | None, **asked: Any) -> schedulers.Found:
    """`schedulers.read` of a live scheduler, which every call of a pipeline asks anew: what was read is kept."""
    try:
        key = json.dumps([type(scheduler).__name__, dict(scheduler.config), steps, asked], sort_keys=True)
    except TypeError:  # a config that is not plain data
        return schedulers.read(scheduler, steps, **asked)
    return _read(key)


@functools.lru_cache(64)
def _read(key: str) -> schedulers.Found:
    kind, config, steps, asked = json.loads(key)
    return schedulers.read({**config, "_class_name": kind}, steps, **asked)


def process_of(found: schedulers.Found) -> Any:
    """The process that a scheduler names; calls with the same one share it, and the weights that it remembers."""
    return _process(json.dumps(found.process, sort_keys=True))


@functools.lru_cache(32)
def _process(spec: str) -> Any:
    return registry.make("process", json.loads(spec))


def load(
    pipe: Any, prompt: str = "", name: str | None = None, preview: Any = None, units: int = 0, **size: Any
) -> PipelineModel:
    """A pipeline object as a model; see `ebb.load`.

    prompt   one of the prompts to come, where the pipeline's fixed arguments depend on it
    preview  a small decoder of the same latents (diffusers' AutoencoderTiny) that draws previews in place of the pipeline's
    units    1: every frame, or token of packed latents, has a time of its own, where the denoiser can be told so
    size     what its call takes besides: height, width, num_frames, max_sequence_length, an embedded guidance_scale

    Raises EbbError for a pipeline whose denoiser cannot be called, naming what is unknown.
    """
    for k in size:
        if k not in parameters(pipe):
            raise EbbError(f"{type(pipe).__name__} is not asked for {k!r}; {nearest(k, parameters(pipe))}")
    one = hear(pipe, 2, 2, **{**size, **subject(pipe, prompt), **guidance(pipe, False)})
    two = hear(pipe, 2, 1, **{**size, **subject(pipe, prompt, 2), **guidance(pipe, True)})
    found = facts(pipe.scheduler)
    process = process_of(found)
    spoken = voice(one, two, found.clock, found.flow)
    module = getattr(pipe, denoiser(pipe))
    once = {**size, **subject(pipe), **guidance(pipe, False)}
    quick = None if preview is None else functools.partial(_decoded, _drawing(pipe, preview), one, once)
    like = one.samples[0][1][0]
    shape: tuple[int, ...] = ()
    if units:
        spoken, shape = timed(spoken, module, one.samples[0][1], spoken.condition(one.turns[0], 1))
    return PipelineModel(
        name=name or type(pipe).__name__,
        denoiser=Network(module, process, call=spoken, **found.border),
        like=torch.zeros(like.shape),
        units=len(shape),
        labels=getattr(module.config, "num_embeds_ada_norm", None) if "class_labels" in once else None,
        medium="image" if like.ndim != 4 else "video",
        decode=functools.partial(_decoded, pipe, one, once),
        info={"size": size} if size else {},
        pipe=pipe,
        voice=spoken,
        size=size,
        heard=one,
        quick=quick,
        timed=shape,
    )


def _drawing(pipe: Any, decoder: Any) -> Any:
    """The pipeline with another decoder. Raises EbbError where that one reads other latents."""
    own = getattr(pipe, "vae", None)
    channels = [getattr(getattr(v, "config", None), "latent_channels", None) for v in (own, decoder)]
    if own is None or not hasattr(decoder, "decode") or channels[0] != channels[1]:
        raise EbbError(
            f"preview is a decoder of the latents of {type(pipe).__name__} ({channels[0]} channels), such as an "
            f"AutoencoderTiny made for them; {type(decoder).__name__} reads {channels[1]}."
        )
    return twin(pipe, vae=decoder)


def _decoded(pipe: Any, heard: Heard, asked: Mapping[str, Any], x: Tensor) -> Tensor:
    """Latents as pictures (n, C, H, W) or frames (n, F, C, H, W) in [-1, 1], by the pipeline's own decoder, one by one."""
    rows = [decode(pipe, row[None].to(heard.samples[0][1]), heard.encoded, **asked) for row in x]
    return (2 * torch.cat(rows).float() - 1).to(x.device)


def _one(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The same call with lists of one, which every pipeline takes."""
    listed = ("prompt", "negative_prompt", "class_labels")
    return {k: [v] if k in listed and not isinstance(v, list) else v for k, v in asked.items()}
