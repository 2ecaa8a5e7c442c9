"""Attention as torch computes it: the queries, keys and values of a call, after all that turns them by their place.

Networks make keys and values in many ways, and turn them in as many; what they hand to `scaled_dot_product_attention` is
always the same. A part that keeps keys and values reads them there, for one call and in its own thread.

Shapes   queries (R, H, N, D), keys and values (R, H, M, D), mask broadcast to (R, H, N, M)
Source   torch.overrides.TorchFunctionMode
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

Heard = Callable[[Tensor, Tensor, "Tensor | None"], "tuple[Tensor, Tensor, Tensor | None]"]


class Attending(TorchFunctionMode):
    """While it is entered, keys, values and mask of every attention are what `heard` makes of them; `count` counts."""

    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self.heard, self.count = heard, 0

    def __torch_function__(
        self, f: Any, types: Iterable[Any], args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if f is not scaled_dot_product_attention:
            return f(*args, **given)
        self.count += 1
        named = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given |= dict(zip(named, args, strict=False))
        given["key"], given["value"], given["attn_mask"] = self.heard(
            given["key"], given["value"], given.get("attn_mask")
        )
        return f(**given)
