"""DiffusionGemma: a causal encoder reads the prompt, a decoder that sees both ways mends a canvas of random tokens.

    x_t on the canvas, uniform noise  ->  logits of its tokens, given the prompt

Shapes   x (B, canvas_length) int64, units () or (canvas_length,); conditions: prompt_ids, attention_mask (B, P), padded on
         the left; logits (B, canvas_length, V)
Source   transformers 5.23, `DiffusionGemmaForBlockDiffusion`: what its `generate` does for the first block
Differs  one canvas, where `generate` writes canvas after canvas. The prompt is read anew at every call, without a cache,
         and the network is not shown its last answer (self-conditioning), as on the first of its own steps: an answer
         depends on (x, t) and the condition alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.tree import Tree
from ebbtide.denoise.model import Model
from ebbtide.denoise.network import Network
from ebbtide.interop.transformers.prompts import spread


def is_one(module: Any) -> bool:
    """Whether the module is of this kind."""
    return type(module).__name__ == "DiffusionGemmaForBlockDiffusion"


@dataclass(frozen=True, eq=False)
class CanvasModel(Model):
    """What `ebb.load` gives for DiffusionGemma: prompts are read, a canvas is written."""

    tokenizer: Any = field(repr=False, kw_only=True)
    pad: int = field(repr=False, kw_only=True)

    @property
    def prompted(self) -> bool:
        return True

    def condition(self, cond: Any, n: int) -> dict[str, Tree]:
        """The condition of n elements: a prompt, text or token ids, a list of n, or a dict with "prompt".

        A text is read as it is: put the turns of a chat around it by `tokenizer.apply_chat_template`, where wanted.

        Raises EbbError without a prompt, for an empty one, and for lists of another length.
        """
        if isinstance(cond, Mapping) and "prompt" not in cond:
            return super().condition(cond, n)
        if cond is None:
            raise EbbError(f"{self.name} continues a prompt: give cond={{'prompt': ...}}.")
        said = dict(cond) if isinstance(cond, Mapping) else {"prompt": cond}
        rows = [self._ids(p) for p in spread(said.pop("prompt"), n, "prompt")]
        width = max(map(len, rows))
        ids, seen = torch.full((n, width), self.pad), torch.zeros(n, width, dtype=torch.int64)
        for j, row in enumerate(rows):
            ids[j, width - len(row) :], seen[j, width - len(row) :] = torch.tensor(row), 1
        return {"prompt_ids": ids, "attention_mask": seen, **super().condition(said, n)}

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise EbbError("this model has no tokenizer: load it with tokenizer=, or give the prompt as token ids.")
            prompt = self.tokenizer(prompt)["input_ids"]
        if not len(prompt):
            raise EbbError("this prompt holds no token, and its reader needs one: give a text.")
        return list(prompt)


def build(module: Any, tokenizer: Any, *, units: int = 0, schedule: str = "linear", name: str | None = None) -> Model:
    """The module as a model; see `interop.transformers.model.build`."""
    text = module.config.get_text_config()
    process = registry.make("process", {"name": "uniform", "vocab": text.vocab_size, "schedule": schedule})
    return CanvasModel(
        name=name or type(module).__name__,
        denoiser=Network(module, process, predicts="logits", clock="time", call=_asked),
        like=torch.zeros(module.config.canvas_length, dtype=torch.int64),
        units=units,
        medium="text",
        decode=None if tokenizer is None else lambda row: str(tokenizer.decode(row.tolist(), skip_special_tokens=True)),
        tokenizer=tokenizer,
        pad=int(text.pad_token_id or 0),
    )


def _asked(module: Any, x: Tensor, clock: Tensor, cond: dict[str, Any]) -> Tensor:
    if "prompt_ids" not in cond:
        raise EbbError("this model needs a prompt to read: give cond={'prompt': ...}.")
    x, ids, seen = (v.to(clock.device) for v in (x, cond["prompt_ids"], cond["attention_mask"]))
    first = int((seen.sum(0) == 0).sum())  # padding of every row
    ids, seen = ids[:, first:], seen[:, first:]
    count = seen.sum(1, keepdim=True)
    logits: Tensor = module(
        input_ids=ids,
        attention_mask=seen,
        position_ids=(seen.cumsum(1) - 1).clamp_min(0),
        decoder_input_ids=x,
        decoder_attention_mask=torch.cat([seen, torch.ones_like(x)], 1),
        decoder_position_ids=count + torch.arange(x.shape[1], device=x.device),
    ).logits
    return logits
