"""Eight bits: linear layers of attention and feed-forward blocks on 8-bit integers, scaled anew for each row they see.

    W ~ s q, one s = max |W_j| / 127 for each output j;   x ~ a p, one a = max |x_r| / 127 for each row r
    y = a s (p q^T) + b,   q and p whole numbers from -127 to 127, p q^T exact in int32

Shapes   x (..., K), W (N, K), y (..., N)
Paper    Dettmers et al. 2022, "LLM.int8()" (arXiv 2208.07339), section 2.1, vector-wise quantization
Off      enabled = false is the network itself.
Differs  no columns are set aside for outliers. Scales belong to rows, as one of the whole batch (which
         `torch.ao.quantization.quantize_dynamic` takes) would let a sample depend on its neighbours. On the CPU alone; no
         gradients pass. Embeddings, norms, the first layer and the last keep their bits.
Drift    of x0, the largest of 20 levels, and of samples after 20 Euler steps (bench/rewrites.py): 7.6e-3 and 1.4e-2 on
         `digits`, 5.0e-3 and 3.1e-3 on a small UNet with random weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.registry import part
from ebbtide.network.anatomy import anatomy
from ebbtide.network.rewrite import Rewrite, copied

TOP = 127


@part("network", "int8-dynamic", paper="2208.07339", needs={"module"}, refuses={"gradients"}, off={"enabled": False})
class Int8Dynamic(Rewrite):
    """Eight bits: linear layers of attention and feed-forward blocks on 8-bit integers, scaled anew for each row."""

    enabled: bool = True

    def __call__(self, network: nn.Module, record: Any = None) -> nn.Module:
        if any(p.device.type != "cpu" for p in network.parameters()):
            raise EbbError("'int8-dynamic' runs on the CPU; leave it out, or move the network there.")
        made = copied(network)
        # a subclass may be read by its owner in ways of its own (nn.MultiheadAttention does)
        layers = [(k, m) for k, m in anatomy(made).linears() if type(m) is nn.Linear and "forward" not in vars(m)]
        if not layers:
            raise EbbError("'int8-dynamic' finds no linear layer in an attention or feed-forward block; leave it out.")
        for name, layer in layers:
            owner, _, key = name.rpartition(".")
            setattr(made.get_submodule(owner), key, WholeLinear(layer))
        return made


class WholeLinear(nn.Module):
    """A linear layer on whole numbers, 8 bits each, one scale a row of its input and one a row of its weights."""

    q: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        scale, q = whole(layer.weight.detach().float())
        self.register_buffer("q", q)
        self.register_buffer("scale", scale[:, 0])

    @property
    def weight(self) -> Tensor:
        """The weights that the whole numbers stand for, (N, K)."""
        return self.q * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) -> (..., N), in the dtype of x."""
        scale, p = whole(x.reshape(-1, self.in_features).float())
        y = torch._int_mm(p, self.q.T).float().mul_(scale).mul_(self.scale)
        y = y if self.bias is None else y.add_(self.bias)
        return y.reshape(*x.shape[:-1], self.out_features).to(x.dtype)


def whole(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (R, K) as scales (R, 1) times whole numbers from -127 to 127 (R, K). What is not finite makes its scale so."""
    # two reductions and no copy of the rows: what such layers take beside the product is memory
    scale = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True)) / TOP
    scale = torch.where(scale == 0, 1.0, scale)
    return scale, (rows / scale).round_().to(torch.int8)
