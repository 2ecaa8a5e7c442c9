"""Language models of characters: a masked one that samples by diffusion, and a causal one that judges text.

    masked   x_t -> logits of every token, in the class `ModernBertForMaskedLM`
    causal   x_<i -> logits of x_i, in the class `LlamaForCausalLM`; the mask's id stands before the text

Both have one more token than the alphabet has characters. The masked network is not told the time: the share of masks
says it. Rotary places let both read windows of other lengths than they were trained on.

Paper    Warner et al. 2024, "Smarter, better, faster, longer" (arXiv 2412.13663), section 2.1, the masked one; Touvron
         et al. 2023, "LLaMA" (2302.13971), section 2.2, the causal one; Sahoo et al. 2024 (2406.07524) for the use made
         of the former
Differs  a few layers, and windows of 32 characters where ModernBERT attends to 128 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.zoo.networks import draw
from ebbtide.zoo.text import ALPHABET


@dataclass(frozen=True)
class Language:
    """What both kinds share: numbers of a stack, and the alphabet."""

    alphabet: str = ALPHABET
    length: int = 128
    layers: int = 6
    heads: int = 5
    width: int = 160
    hidden: int = 320

    @property
    def vocab(self) -> int:
        """The characters and the mask, whose id is the last."""
        return len(self.alphabet) + 1

    def module(self) -> nn.Module:
        """The module, with whatever weights its class begins with."""
        raise NotImplementedError

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`, its weights drawn from `noise`."""
        with torch.random.fork_rng(devices=[]):
            module = self.module()
        if noise is not None:
            draw(module, noise)
            for layer in module.modules():
                if isinstance(layer, nn.Embedding):  # a row for each token, not a matrix that sums over them
                    draw(layer, noise.fold(0), 0.02)
        return module.eval()

    def write(self, module: nn.Module, folder: Path) -> None:
        """A folder that `from_pretrained` reads, weights in float16, a tensor of two names under its first."""
        from safetensors.torch import save_file

        # Not by save_pretrained: it draws a bar of its own on the terminal.
        known: Any = module
        tensors = {k: v.detach().half().contiguous() for k, v in module.named_parameters()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        known.config.architectures, known.config.dtype = [type(module).__name__], torch.float16
        known.config.save_pretrained(folder)

    def about(self) -> dict[str, Any]:
        """Token ids, and what they stand for."""
        return {"medium": "text", "shape": [self.length], "labels": 1, "alphabet": self.alphabet}


@dataclass(frozen=True)
class MaskedLM(Language):
    """A small ModernBERT: every third layer sees the whole window, the others `window` characters around."""

    window: int = 32

    def module(self) -> nn.Module:
        from transformers import ModernBertConfig, ModernBertForMaskedLM

        rope = {"rope_type": "default", "rope_theta": 10_000.0}
        config = ModernBertConfig(
            vocab_size=self.vocab,
            hidden_size=self.width,
            intermediate_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            local_attention=self.window,
            max_position_embeddings=1024,
            rope_parameters={"full_attention": dict(rope), "sliding_attention": dict(rope)},
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            cls_token_id=None,
            sep_token_id=None,
        )
        return ModernBertForMaskedLM(config)


@dataclass(frozen=True)
class CausalLM(Language):
    """A small Llama."""

    layers: int = 5
    heads: int = 4
    width: int = 128
    hidden: int = 336

    def module(self) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.width,
            intermediate_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=1024,
            bos_token_id=self.vocab - 1,
            eos_token_id=None,
            tie_word_embeddings=True,
            use_cache=False,
        )
        return LlamaForCausalLM(config)


@dataclass(frozen=True, eq=False)
class Judge:
    """A causal language model that judges text: `perplexity(*nll(judge, x, start=judge.start))` of `measure.text`.

    module    tokens (B, L) to an answer with `logits`
    start     the id that stands before the text
    alphabet  what the ids below it stand for
    """

    module: nn.Module
    start: int
    alphabet: str

    def __call__(self, x: Tensor) -> Tensor:
        """log p of the token after each token of x (B, L), up to a constant: (B, L, V), the start ruled out."""
        logits: Tensor = self.module(x).logits
        return logits.index_fill(-1, torch.tensor(self.start, device=logits.device), -torch.inf)


def judge(source: str | Path) -> Judge:
    """The causal model of a name that ships, or of a folder that `ebb train shakespeare-causal` left.

    Raises EbbError when there is none, or another kind of model.
    """
    from ebbtide import zoo
    from ebbtide.zoo.models import network

    folder = zoo.folder(str(source)) if source in zoo.names() else Path(source)
    module, about, _ = network(folder)
    if about.get("predicts") != "next-token":
        raise EbbError(f"{source} predicts {about.get('predicts')}, so it cannot judge text: give a causal model.")
    return Judge(module, about["start"], about["alphabet"])
