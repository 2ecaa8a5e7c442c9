"""Gradients through the denoiser: how the energy of what is predicted changes with x_t, for guides that need it.

    (pred_j, g_j, E_j) = through(ask, inner, queries, energy),   g_j = d/dx_j  sum_r E_j[r],   E_j = energy(query_j, pred_j)

Rows are independent of one another, so the gradient of the sum is each row's own. Samplers run without gradients: they are
switched on here alone, around the one question to the inner layers, and nothing that is handed back or remembered holds on
to a graph. A guide that calls this derives from `Pulling`, so its plan has the feature "gradients"; what reuses old numbers
inside a network, or rounds them to integers, refuses that.

Shapes   x_j as the query's, a tensor or fields; energy (R_j,); g_j shaped like x_j, zeros for tokens and for fields unused.
Source   Chung et al. 2023 (arXiv 2209.14687), section 3.2, for the use; reverse-mode differentiation for the means
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.parts import Inner, Layer
from ebbtide.core.state import Pred, Query
from ebbtide.core.tree import Tree, leaves, tree_map

Energy = Callable[[Query, Pred], Tensor]
"""(R,) how ill a prediction fits, row by row; it is asked with gradients on and may read the query's own x too."""


class Pulling(Layer):
    """A guide that takes gradients through the denoiser: it gives "gradients" while it is on."""

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({"gradients"}) if self.on else frozenset()


class Pulled(NamedTuple):
    """One answer with the pull on it.

    pred      what the inner layers predict
    gradient  of the energy, shaped like the query's x
    energy    (R,) of each row
    """

    pred: Pred
    gradient: Tree
    energy: Tensor


def through(ask: Ask, inner: Inner, queries: Sequence[Query], energy: Energy) -> list[Pulled]:
    """Ask the inner layers, and differentiate the energy of each answer by the x it was asked at.

    Inside another gradient the graph is kept, so guides of this kind can be stacked. Raises EbbError where no answer
    depends on its x in a way that autograd can follow, and where an energy is not one number a row.
    """
    stacked = torch.is_grad_enabled()
    with torch.enable_grad():
        asked = [q._replace(x=tree_map(_free, q.x)) for q in queries]
        # the fused kernels of attention have no second derivative
        with sdpa_kernel(SDPBackend.MATH) if stacked else nullcontext():
            preds = inner(asked)
        energies = [energy(q, p) for q, p in zip(asked, preds, strict=True)]
        for q, e in zip(asked, energies, strict=True):
            if e.shape != (len(q.t),):
                raise EbbError(f"an energy is one number a row, {len(q.t)} here, and not of shape {tuple(e.shape)}.")
        given = [v for q in asked for v in leaves(q.x).values() if v.requires_grad]
        if not given or not any(e.requires_grad for e in energies):
            raise EbbError(
                "this guide takes gradients through the model, and this model's answers carry none "
                "(tokens, or arithmetic outside of torch); use a guide without gradients."
            )
        total = torch.stack([e.double().sum() for e in energies if e.requires_grad]).sum()
        found = iter(torch.autograd.grad(total, given, allow_unused=True, create_graph=stacked))

        def gradient(v: Tensor) -> Tensor:
            g = next(found) if v.requires_grad else None
            return torch.zeros_like(v) if g is None else g

        out = [Pulled(p, tree_map(gradient, q.x), e) for q, p, e in zip(asked, preds, energies, strict=True)]
    if stacked:
        return out
    ask.memory = tree_map(_held, ask.memory)
    return [Pulled(p.map(_held), g, e.detach()) for p, g, e in out]


def _free(v: Tensor) -> Tensor:
    """The same numbers, to be differentiated by; within another gradient still part of its graph."""
    if v.requires_grad or not v.is_floating_point():
        return v
    return v.detach().requires_grad_()


def _held(v: Any) -> Any:
    return v.detach() if isinstance(v, Tensor) else v
