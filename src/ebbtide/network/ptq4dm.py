"""PTQ4DM: every layer on whole numbers, with ranges found on states of the model's own runs, most of them near the data.

    Q(x) = s (clamp(round(x / s) + z, 0, 2^bits - 1) - z)      s, z of a layer's input, one pair for all rows
    W ~ s_j q,  q from -2^(bits-1) to 2^(bits-1) - 1           one s_j for each output j
    t_i ~ N(mean, spread^2), cut to [0, 1]                     at which state i of a run is listened to
    s, z, s_j   the best of `TRIES` shares of the span, by |x - Q(x)|^2

A product is made on whole numbers: y_j = s s_j sum_k q_jk (p_k - z) + b_j. The first and the last layer have eight bits;
what embeds time and condition keeps its own.

Shapes   x (..., K) or (B, K, H, W); ranges {layer: (s, z)}. A layer without one keeps its numbers.
Paper    Shang et al. 2023, "Post-training quantization on diffusion models" (arXiv 2211.15736), sections 3.2 to 3.4
Off      enabled = false is the network itself.
Differs  every state is paired with the time at which it was seen, where the released code takes the index of the loop. Rounding
         is to the nearest, with no reconstruction of layers. Products are of whole numbers held in float32, as torch has no
         kernel for other widths: it saves memory, not time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.key import Noise, keys
from ebbtide.core.registry import part
from ebbtide.core.tree import tree_map
from ebbtide.network.anatomy import anatomy
from ebbtide.network.patch import rewired
from ebbtide.network.record import Asked, Record
from ebbtide.network.rewrite import Rewrite, copied

Bits = Annotated[int, Field(ge=2, le=8)]
Metric = Literal["mse", "span"]
TRIES = 60
MOST = 1 << 16  # numbers of a layer's input that a range is found on
OUTER = 8


@part("network", "ptq4dm", paper="2211.15736", needs={"module"}, refuses={"gradients"}, off={"enabled": False})
class PTQ4DM(Rewrite):
    """PTQ4DM: every layer on whole numbers, with ranges found on states of the model's own runs, most of them near the data.

    ranges   of each layer's input, from `ebb.calibrate`
    w_bits, a_bits   of weights and of what layers are given
    mean, spread     of the times at which states are listened to; spread None: all times alike
    metric   "mse", or "span": from the least to the greatest
    """

    examples = (
        {
            "ranges": {
                "transformer_blocks.0.ff.net.0.proj": [0.02, 120.0],
                "transformer_blocks.1.attn1.to_q": [0.03, 128.0],
            }
        },
    )
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    w_bits: Bits = 8
    a_bits: Bits = 8
    mean: Annotated[float, Field(ge=0, le=1)] = 0.4
    spread: Annotated[float, Field(ge=0)] | None = 0.4
    metric: Metric = "mse"
    enabled: bool = True

    def __call__(self, network: nn.Module, record: object = None) -> nn.Module:
        if not self.ranges:
            raise EbbError("'ptq4dm' needs ranges for this model: plan = ebb.calibrate(model, plan, n=64).")
        made = copied(network)
        layers = dict(layers_of(made))
        outer = _outer(made)
        for name, (scale, zero) in self.ranges.items():
            if name not in layers:
                raise EbbError(f"'ptq4dm' knows no layer {name!r} of this network; {nearest(name, layers)}")
            owner, _, key = name.rpartition(".")
            weights = OUTER if name in outer else self.w_bits
            given = OUTER if name in outer else self.a_bits
            setattr(
                made.get_submodule(owner), key, IntegerLinear(layers[name], weights, given, scale, zero, self.metric)
            )
        return made

    def calibrated(self, record: Record) -> PTQ4DM:
        """The part with ranges found on the states of a recorded run."""
        network = record.network
        outer = _outer(network)
        ranges = {
            name: limits(x, OUTER if name in outer else self.a_bits, self.metric)
            for name, x in heard(replace(record, asked=chosen(record, self.mean, self.spread)), network).items()
        }
        return replace(self, ranges=ranges)


class IntegerLinear(nn.Module):
    """A linear or convolutional layer on whole numbers.

    q       its weights, int8
    scale   of each output, and `given` of the input with its zero
    """

    q: Tensor
    scale: Tensor
    _layer: list[Any]

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, w_bits: int, a_bits: int, given: float, zero: float, metric: Metric
    ) -> None:
        super().__init__()
        rows = layer.weight.detach().flatten(1).float()
        scale = scales(rows, w_bits, metric)
        q = rounded(rows / scale, -(2 ** (w_bits - 1)), 2 ** (w_bits - 1) - 1)
        self.register_buffer("q", q.reshape(layer.weight.shape).to(torch.int8))
        self.register_buffer("scale", scale[:, 0])
        self.given, self.zero, self.top, self.bits = given, zero, 2**a_bits - 1, w_bits
        self.bias, self._layer = layer.bias, [layer]  # in a list, so that its weights are no part of this one

    @property
    def weight(self) -> Tensor:
        """The weights that the whole numbers stand for."""
        return self.q * self.scale.reshape(-1, *(1,) * (self.q.ndim - 1))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's answer, in the dtype of x."""
        p = rounded(x.float() / self.given + self.zero, 0, self.top).sub_(self.zero)
        (layer,) = self._layer
        whole = self.q.float()
        if layer.weight.ndim == 2:
            y, scale = nn.functional.linear(p, whole), self.scale * self.given
        else:
            y = layer._conv_forward(p, whole, None)
            scale = (self.scale * self.given)[:, None, None]
        y = y * scale
        if self.bias is not None:
            y = y + (self.bias if layer.weight.ndim == 2 else self.bias[:, None, None])
        return y.to(x.dtype)


def rounded(x: Tensor, low: float, high: float) -> Tensor:
    """The nearest whole numbers from `low` to `high`."""
    return x.round().clamp_(low, high)


def layers_of(network: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Every layer that is quantised, named: all linear ones and convolutions but those that embed time and condition."""
    net = anatomy(network)
    for name, module in network.named_modules():
        # a subclass may be read by its owner in ways of its own
        if type(module) in (nn.Linear, nn.Conv2d) and net.group(name) not in ("time", "condition"):
            yield name, module


def _outer(network: nn.Module) -> set[str]:
    """The layers that make the first hidden state and the answer."""
    net = anatomy(network)
    return {name for name, _ in layers_of(network) if net.group(name) in ("first", "last")}


# -------------------------------------------------------------------- ranges


def limits(x: Tensor, bits: int, metric: Metric = "mse") -> tuple[float, float]:
    """The scale s and zero z with which numbers x (n,) lose least: of shares of the span, the one of least squared error."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    top, best = 2**bits - 1, (1.0, 0.0, float("inf"))
    for share in _shares(metric):
        s = (high - low) * share / top or 1.0
        z = round(-low * share / s)
        error = float((x - s * (rounded(x / s + z, 0, top) - z)).square().sum())
        best = min(best, (s, float(z), error), key=lambda b: b[2])
    return best[0], best[1]


def scales(rows: Tensor, bits: int, metric: Metric = "mse") -> Tensor:
    """The scale of each row of weights (N, K) with which it loses least, (N, 1)."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    span = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / high
    best, least = span, torch.full_like(span, torch.inf)
    for share in _shares(metric):
        s = span * share
        error = (rows - s * rounded(rows / s, low, high)).square().sum(1, keepdim=True)
        best, least = torch.where(error < least, s, best), torch.minimum(error, least)
    return best


def _shares(metric: Metric) -> Sequence[float]:
    return [1.0] if metric == "span" else [1 - 0.75 * k / TRIES for k in range(TRIES)]


def chosen(record: Record, mean: float, spread: float | None) -> list[Asked]:
    """One question for each element of a recorded run: the one asked nearest to a time of its own."""
    first = record.asked[0]
    n = max(len(a.t) for a in record.asked if a.step == first.step)
    noise = Noise(keys(range(n)), torch.zeros(n, dtype=torch.int64))
    if spread is None:
        times = noise.uniform((n,))
    else:
        times = (mean + spread * noise.normal(torch.zeros(n, dtype=torch.float64))).clamp(0, 1)
    points = [a for a in record.asked if len(a.t) == n]
    at = torch.stack([a.t.reshape(n, -1).amax(1) for a in points])
    nearest_one = (at - times).abs().argmin(0)
    out = []
    for k, asked in enumerate(points):
        rows = (nearest_one == k).nonzero()[:, 0]
        if len(rows):
            pick = lambda v, rows=rows: v[rows.to(v.device)]  # noqa: E731
            out.append(asked._replace(x=tree_map(pick, asked.x), t=asked.t[rows], cond=tree_map(pick, asked.cond)))
    return out


def heard(record: Record, network: nn.Module) -> dict[str, Tensor]:
    """What every layer was given, (numbers,), at most so many of them, evenly taken."""
    given: dict[str, list[Tensor]] = {}
    share = max(1, MOST // sum(len(a.t) for a in record.asked))
    with ExitStack() as stack:
        for name, layer in layers_of(network):

            def forward(x: Tensor, own=layer.forward, name: str = name) -> Tensor:  # type: ignore[no-untyped-def]
                flat = x.detach().float().flatten()
                given.setdefault(name, []).append(flat[:: max(1, flat.numel() // (share * len(x)))])
                answer: Tensor = own(x)
                return answer

            stack.enter_context(rewired(layer, forward))
        for _ in record.answers(network, {}):
            pass
    return {name: torch.cat(each) for name, each in given.items()}


# -------------------------------------------------------------------- what it takes


def bits(network: nn.Module) -> int:
    """The bits that all parameters take: those of whole numbers at their width, with a 32-bit scale for each output."""
    total = sum(p.numel() * p.element_size() * 8 for p in network.parameters())
    for module in network.modules():
        if isinstance(module, IntegerLinear):
            total += module.q.numel() * module.bits + 32 * module.scale.numel() + 64
    return total
