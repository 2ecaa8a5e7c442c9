"""Prompts as rows of tokens: what is given stands, what is wanted is masked, the rest of the row is padding.

    "the [MASK] sat"    the mask stands for one token; so does a blank of three underscores or more
    "the cat"           has no mask: it is continued, to the model's length or by `new_tokens`

The tokenizer's own special tokens stand around the text, masks to be written before those that end it.

Shapes   rows (n, L) int64, padded on the right; attention_mask (n, L) int64, 1 for all that is no padding
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError

BLANK = r"_{3,}|\[MASK\]"
"""What stands for a hidden token in any prompt, whatever the tokenizer's own sign is."""


@dataclass(frozen=True, eq=False)
class Writing:
    """Text to tokens and back.

    tokenizer  of transformers, or None: prompts are ids then
    length     of a row
    states     how many ids there are
    mask, pad  the ids of a hidden token, and of what fills a row
    blank      what stands for a hidden token in a text
    """

    tokenizer: Any
    length: int
    states: int
    mask: int
    pad: int
    blank: str = BLANK

    def rows(self, prompts: Any, new: Any, n: int) -> dict[str, Tensor]:
        """n prompts, or one for all, as {"start": ..., "attention_mask": ...}; `new` tokens each, or one number for all.

        Raises EbbError for prompts that are too long, of another number, or no text.
        """
        said, counts = spread(prompts, n, "prompt"), spread(new, n, "new_tokens")
        made: dict[str, list[int]] = {}
        for p, k in zip(said, counts, strict=True):
            if repr((p, k)) not in made:
                made[repr((p, k))] = self.row(p, k)
        rows = [made[repr(pair)] for pair in zip(said, counts, strict=True)]
        start = torch.full((n, self.length), self.pad)
        seen = torch.zeros_like(start)
        for j, row in enumerate(rows):
            start[j, : len(row)], seen[j, : len(row)] = torch.tensor(row, dtype=torch.int64), 1
        return {"start": start, "attention_mask": seen}

    def row(self, prompt: str | Sequence[int], new: int | None = None) -> list[int]:
        """One prompt, a text or ids, as ids with masks. Raises EbbError where it is longer than a row."""
        head, body, tail = self._read(prompt) if isinstance(prompt, str) else ([], list(prompt), [])
        wrong = next((k for k in body if not 0 <= k < self.states), None)
        if wrong is not None:
            raise EbbError(f"the prompt holds the id {wrong}, and this model knows 0 to {self.states - 1}.")
        room = self.length - len(head) - len(body) - len(tail)
        hidden = self.mask in body
        wanted = (0 if hidden else max(room, 1)) if new is None else new
        if wanted < 0 or wanted > room:
            raise EbbError(self._long(len(head) + len(body) + len(tail), wanted, body, room))
        return [*head, *body, *[self.mask] * wanted, *tail]

    def _long(self, count: int, wanted: int, body: list[int], room: int) -> str:
        if wanted < 0:
            return f"new_tokens is a number of tokens to write, not {wanted}."
        kept = body[: len(body) + room - wanted]
        where = f" (there is room up to {self.text(torch.tensor(kept))[-40:]!r})" if self.tokenizer and kept else ""
        more = f" and asks for {wanted} more" if wanted else ""
        return (
            f"the prompt takes {count} tokens{more}, and this model was loaded with rows of {self.length}{where}: "
            "shorten it, or load the model with a greater length."
        )

    def _read(self, text: str) -> tuple[list[int], list[int], list[int]]:
        if self.tokenizer is None:
            raise EbbError("this model has no tokenizer: load it with tokenizer=, or give the prompt as token ids.")
        head, tail = self._ends
        sign = self._sign
        if sign is not None:
            return head, self._ids(re.sub(self.blank, lambda _: sign, text)), tail
        body: list[int] = []
        for j, piece in enumerate(re.split(self.blank, text)):
            body += ([self.mask] if j else []) + self._ids(piece)
        return head, body, tail

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    @functools.cached_property
    def _sign(self) -> str | None:
        """How the mask is written in a text, where the tokenizer reads it as the mask."""
        sign = self.tokenizer.convert_ids_to_tokens(self.mask)
        return sign if isinstance(sign, str) and self._ids(sign) == [self.mask] else None

    @functools.cached_property
    def _ends(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before a text and after it."""
        body = self._ids("a")
        full = list(self.tokenizer("a", truncation=False, verbose=False)["input_ids"])
        for j in range(len(full) - len(body) + 1):
            if body and full[j : j + len(body)] == body:
                return full[:j], full[j + len(body) :]
        return full, []

    def text(self, row: Tensor) -> str:
        """The text of a row of tokens, without padding and special tokens."""
        ids = row.tolist()
        while ids and ids[-1] == self.pad:
            ids.pop()
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def forming(self, row: Tensor) -> str:
        """The text of a row of which some tokens are hidden, an underscore for each; ids, where there is no tokenizer."""
        ids = row.tolist()
        while ids and ids[-1] == self.pad:
            ids.pop()
        runs = itertools.groupby(ids, key=lambda k: k == self.mask)
        return "".join("_" * len(list(run)) if hidden else self._said(list(run)) for hidden, run in runs)

    def _said(self, ids: list[int]) -> str:
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def spread(value: Any, n: int, what: str) -> list[Any]:
    """A prompt or number for all, or a list or tensor of n, as a list of n; a prompt is a text, or ids.

    Raises EbbError for a list of another length, and for what is neither.
    """
    value = value.tolist() if isinstance(value, Tensor) else value
    if what == "prompt":
        known, kind = _is_prompt, "a prompt is a text or token ids"
    else:
        known, kind = _is_number, f"{what} is a number"
    values = [value] * n if known(value) else value
    if not isinstance(values, list | tuple):
        raise EbbError(f"{kind}, or a list of n of them, not {value!r}.")
    values = list(values) * (n if len(values) == 1 else 1)
    if len(values) != n:
        raise EbbError(f"the condition {what!r} lists {len(values)} values for {n} samples.")
    for v in values:
        if not known(v):
            raise EbbError(f"{kind}, not {v!r}.")
    return values


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int)


def _is_prompt(value: Any) -> bool:
    ids = isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(k, int) for k in value)
    return isinstance(value, str) or ids
