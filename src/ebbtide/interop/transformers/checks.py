"""What a language model must be to denoise: one that sees both ways. And how far it sees."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from ebbtide.core.errors import EbbError

_ENDLESS = 1 << 30


def check_sight(module: Any) -> None:
    """Raise EbbError for a module that is causal, or that writes one text from another."""
    told(type(module).__name__, getattr(module, "config", None))


def told(kind: str, config: Any) -> None:
    """The same of the name of a class and its config."""
    if getattr(config, "is_encoder_decoder", False) is True:
        raise EbbError(f"{kind} writes one text from another, token by token, so it cannot be a denoiser.")
    if getattr(config, "is_decoder", False) is True or _causal(kind):
        raise EbbError(
            f"{kind} is causal: a token sees only those before it, so it cannot be a denoiser; "
            "give a masked language model, such as BertForMaskedLM."
        )


def _causal(kind: str) -> bool:
    library: Any = sys.modules.get("transformers")
    if library is None:
        return False
    auto = library.models.auto.modeling_auto
    masked, causal = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return kind not in masked.values() and (kind in causal.values() or kind.endswith("ForCausalLM"))


def longest(module: Any, tokenizer: Any) -> int:
    """How many tokens fit: the places of the module, or what its tokenizer says, where that is less."""
    limits = [getattr(tokenizer, "model_max_length", None)]
    limits.append(getattr(getattr(module, "config", None), "max_position_embeddings", None))
    for name, part in module.named_modules() if isinstance(module, nn.Module) else ():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            first = 0 if part.padding_idx is None else part.padding_idx + 1  # RoBERTa counts places from there
            limits.append(part.num_embeddings - first)
    return min([_ENDLESS, *(v for v in limits if isinstance(v, int) and v > 0)])
