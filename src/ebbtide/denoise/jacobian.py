"""Derivatives of fields by directions: traces, divergences and norms of a Jacobian that is never written down.

    tr J = sum_v w v^T J v,   |M|_F^2 = sum_v w |M v|^2        v the D axes, w = 1:      exact
                                                              v of k random signs, w = 1 / k: unbiased (Hutchinson)

A field maps rows x (R, *event) to rows of the same shape, each from its own row alone, so one backward pass gives v^T J of
every row at once.

Source   Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix"; for flows: Grathwohl et al. 2019,
         "FFJORD" (arXiv 1810.01367), section 3.1
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise

Field = Callable[[Tensor], Tensor]


class Directions(NamedTuple):
    """Directions v, each shaped like x, and the weight of each."""

    v: list[Tensor]
    weight: float


def directions(x: Tensor, probes: int | None = None, noise: Noise | None = None) -> Directions:
    """All D axes, or `probes` draws of random signs from each row's own stream.

    Raises EbbError for probes without a stream, and for none at all.
    """
    if probes is None:
        axes = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
        return Directions([v.reshape(1, *x.shape[1:]).expand_as(x) for v in axes], 1.0)
    if probes < 1 or noise is None:
        raise EbbError("random probes need a noise stream and at least one probe.")
    flat = (len(x), probes, x[0].numel())
    signs = torch.where(noise.uniform(flat) < 0.5, -1.0, 1.0).to(device=x.device, dtype=x.dtype)
    return Directions([v.reshape(x.shape) for v in signs.unbind(1)], 1.0 / probes)


def divergence(field: Field, x: Tensor, along: Directions) -> tuple[Tensor, Tensor]:
    """The field at x, shaped like x, and its divergence (R,) in float64."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = field(x)
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for v in along.v if y.requires_grad else ():  # a constant field has no divergence
            (g,) = torch.autograd.grad(y, x, v, retain_graph=True)
            total += along.weight * (g * v).flatten(1).double().sum(1)
    return y.detach(), total


def products(field: Field, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """J v and J^T v of every row, for a direction v shaped like x; J v is the derivative of u -> J^T u."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = field(x)
        u = torch.zeros_like(y).requires_grad_()
        (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
        (back,) = torch.autograd.grad(y, x, v)
    return pushed, back
