"""Text to learn from, one token a character: windows of a file, and the way from text to tokens and back.

    token = its place in the alphabet;   mask = start = len(alphabet), the one id that no character has

The last tenth of a text is held out, as is the custom with this data: `split="test"` reads it.

Shapes   tokens (N,) int64; a window (L,), and there is one at every place where it fits
Data     "Tiny Shakespeare": 1.1 million characters of the plays (public domain), collected by A. Karpathy 2015
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError

ALPHABET = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""What Tiny Shakespeare is written in."""
HIDDEN = "_"
"""How a mask is shown."""


@dataclass(frozen=True)
class Text:
    """A text as data for training; nothing in it has a label.

    tokens    (N,) uint8 or int64, places in the alphabet
    length    of a window
    digest    sha256 of all three
    """

    tokens: Tensor
    alphabet: str
    length: int
    digest: str = field(default="")

    def __post_init__(self) -> None:
        if not self.digest:
            h = hashlib.sha256(repr((self.alphabet, self.length, str(self.tokens.dtype))).encode())
            h.update(self.tokens.contiguous().numpy().data)
            object.__setattr__(self, "digest", h.hexdigest())

    def __len__(self) -> int:
        return len(self.tokens) - self.length + 1

    def rows(self, index: Tensor) -> tuple[Tensor, None]:
        """The windows that begin at `index` (n,): (n, length) int64."""
        return self.tokens[index[:, None] + torch.arange(self.length)].long(), None


def encode(text: str, alphabet: str = ALPHABET) -> Tensor:
    """The tokens of a text, (N,) int64. Raises EbbError for a character that the alphabet lacks, and names it."""
    place = {c: k for k, c in enumerate(alphabet)} | {HIDDEN: len(alphabet)}
    try:
        return torch.tensor([place[c] for c in text], dtype=torch.int64)
    except KeyError as error:
        raise EbbError(f"this model does not write {error.args[0]!r}; its characters are {alphabet!r}.") from None


def decode(tokens: Tensor, alphabet: str = ALPHABET) -> str:
    """The text of a row of tokens; a mask is shown as an underscore."""
    signs = alphabet + HIDDEN
    return "".join(signs[min(k, len(alphabet))] for k in tokens.tolist())


@dataclass(frozen=True)
class Characters:
    """An alphabet in the form of transformers' tokenizers: one token a character, an underscore for each hidden one."""

    alphabet: str

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": encode(text, self.alphabet).tolist()}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """The text of tokens."""
        return decode(torch.tensor(ids, dtype=torch.int64), self.alphabet)

    def convert_ids_to_tokens(self, token: int) -> str:
        """How one token is written."""
        return (self.alphabet + HIDDEN)[token]

    def get_vocab(self) -> dict[str, int]:
        """All characters by their tokens."""
        return {c: k for k, c in enumerate(self.alphabet + HIDDEN)}


def load_text(path: str | Path, length: int = 128, split: str = "train") -> Text:
    """Read a text file, UTF-8; its alphabet is what occurs in the whole of it, in order.

    split   "train", the first nine tenths, "test", the last tenth, or "all"

    Raises EbbError when there is no such file, it is no text, has more than 255 characters, or less than one window.
    """
    path = Path(path)
    if not path.is_file():
        raise EbbError(f"there is no {path}: this recipe learns from a text file, as in --data plays.txt.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EbbError(f"{path} cannot be read as text in UTF-8: {error}.") from error
    alphabet = "".join(sorted(set(text)))
    if len(alphabet) > 255:
        raise EbbError(f"{path} uses {len(alphabet)} different characters, and these models know at most 255.")
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    known = np.array([ord(c) for c in alphabet], dtype=np.uint32)
    tokens = torch.from_numpy(np.searchsorted(known, points).astype(np.uint8))
    cut = len(tokens) * 9 // 10
    part = {"train": tokens[:cut], "test": tokens[cut:], "all": tokens}
    if split not in part:
        raise EbbError(f"a text has the splits {', '.join(part)}, not {split!r}.")
    if len(part[split]) < length:
        raise EbbError(f"{path} holds {len(part[split])} characters to learn from, and one window takes {length}.")
    return Text(part[split].clone(), alphabet, length)
