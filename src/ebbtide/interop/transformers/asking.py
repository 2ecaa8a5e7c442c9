"""How a language model is asked: tokens and an attention mask in, logits of every token out.

    logits_j = module(x)_j,   or module(x)_{j-1} for models that kept the habit of naming the next token (`shift`)

Columns that are padding in every row are not computed, and the logits of padding are zeros: what stands there is known.

Shapes   x (B, L) int64, attention_mask (B, L), 1 for what is read; logits (B, L, V)
Source   Ye et al. 2025, "Dream 7B" (arXiv 2508.15487), its shift operation
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ebbtide.core.errors import EbbError

Attention = Literal["mask", "pairs", "lengths"]
RULED_OUT = -1e4
"""The logit of what is never drawn: finite, so that guidance can add it."""


def arguments(module: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names that calling the module takes, and whether it takes any other as well."""
    call = type(module).forward if isinstance(module, nn.Module) else module
    known = inspect.signature(call).parameters
    return set(known), any(p.kind is p.VAR_KEYWORD for p in known.values())


@dataclass(frozen=True, eq=False)
class Asking:
    """What stands between the border and the module.

    takes      the arguments that the module takes by name; None: any
    vocab      how many logits it gives; None before this is known
    shift      whether its logits at j are those of token j + 1
    attention  how padding is told: "mask" (B, L), "pairs" (B, 1, L, L) boolean, which Dream reads, "lengths" not at all:
               rows of one length are asked together, for modules that know no attention mask
    never      ids that are never drawn
    """

    takes: set[str] | None
    shift: bool = False
    attention: Attention = "mask"
    vocab: int | None = None
    never: Tensor | None = None

    def __call__(self, module: Any, x: Tensor, clock: Tensor, cond: dict[str, Any]) -> Tensor:
        """The logits of x0, (B, L, V). Raises EbbError for arguments that the module does not take."""
        more = {k: v.to(clock.device) for k, v in cond.items() if k != "attention_mask"}
        for k in more:
            if self.takes is not None and k not in self.takes:
                raise EbbError(f"{type(module).__name__} does not take {k!r}: leave it out of the condition.")
        x, seen = x.to(clock.device), cond.get("attention_mask")
        if seen is not None:
            seen = seen.to(clock.device) != 0
            seen = None if bool(seen.all()) else seen
        logits = self._asked(module, x, more) if seen is None else self._padded(module, x, seen, more)
        if self.never is not None:
            logits = logits.index_fill(-1, self.never.to(logits.device), RULED_OUT)
        return logits

    def _padded(self, module: Any, x: Tensor, seen: Tensor, more: dict[str, Tensor]) -> Tensor:
        """The same where some tokens are padding, which is on the right."""
        width, length = x.shape[1], seen.sum(1)
        rows = [length == n for n in length.unique()] if self.attention == "lengths" else [length > -1]
        out: Tensor | None = None
        for some in rows:
            end = max(1, int(length[some].max()))
            read, rest = seen[some, :end], {k: v[some, :end] if _per_token(v, x) else v[some] for k, v in more.items()}
            if self.attention != "lengths" and not bool(read.all()):
                keys = read[:, None, None].expand(
                    -1, 1, end, end
                )  # a row of padding reads too: no softmax over nothing
                rest["attention_mask"] = read.long() if self.attention == "mask" else keys
            answer = self._asked(module, x[some, :end], rest)
            answer = pad(answer.masked_fill(~read[..., None], 0.0), (0, 0, 0, width - end))
            out = answer.new_zeros(*x.shape, answer.shape[-1]) if out is None else out
            out[some] = answer
        assert out is not None
        return out

    def _asked(self, module: Any, x: Tensor, more: dict[str, Tensor]) -> Tensor:
        answer = module(x, **more)
        logits = getattr(answer, "logits", answer)
        logits = logits[0] if isinstance(logits, tuple | list) else logits
        if not isinstance(logits, Tensor) or logits.shape[:-1] != x.shape or self.vocab not in (None, logits.shape[-1]):
            said = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise EbbError(
                f"{type(module).__name__} answers {said} for tokens {tuple(x.shape)}: a language model gives logits "
                f"{(*x.shape, self.vocab or 'V')} of every token."
            )
        return torch.cat([logits[:, :1], logits[:, :-1]], 1) if self.shift else logits


def _per_token(leaf: Tensor, x: Tensor) -> bool:
    return leaf.ndim > 1 and leaf.shape[1] == x.shape[1]
