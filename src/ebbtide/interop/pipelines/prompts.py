"""Prompts that are longer than a tokenizer reads: what is left of them, told."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from ebbtide.interop.pipelines.hearing import parameters


def check_length(pipe: Any, asked: Mapping[str, Any]) -> None:
    """Warn of each prompt that some tokenizer of the pipeline cuts, with the words at which it does."""
    for key, text in asked.items():
        if not isinstance(text, str) or not key.endswith(("prompt", "prompt_2", "prompt_3")):
            continue
        for name, tokenizer in pipe.components.items():
            if not name.startswith("tokenizer") or tokenizer is None:
                continue
            limit = _limit(pipe, tokenizer, asked)
            ids = tokenizer(text, truncation=False, verbose=False).input_ids
            if len(ids) > limit:
                kept = tokenizer.decode(ids[: limit - 1], skip_special_tokens=True).strip()
                warnings.warn(
                    f"the {key} is {len(ids)} tokens long and {name} ({type(tokenizer).__name__}) reads {limit}: "
                    f"it ends there after {kept[-40:]!r}.",
                    stacklevel=4,
                )


def _limit(pipe: Any, tokenizer: Any, asked: Mapping[str, Any]) -> int:
    """How many tokens are read: as many as the tokenizer's model has places for, or the length that the call asks for."""
    limit = int(tokenizer.model_max_length)
    known = parameters(pipe).get("max_sequence_length")
    if "CLIP" in type(tokenizer).__name__ or known is None:
        return limit
    length = asked.get("max_sequence_length", known.default)
    return limit if length is inspect.Parameter.empty or length is None else int(length)
