"""One more step: models whose schedule never reaches pure noise get the signal back that they were trained to find at t = 1.

    x_S ~ N(0, I),   x0_hat = psi(x_S, c),   x_T = a_T x0_hat + c_T eps,   then the model from T

psi is a denoiser at zero signal, where x_S says nothing of x0: the best it can answer is E[x0 | c], whatever x_S. So the
module is a table of the mean of each class, and nothing has to be trained. Without a label it is the mean of all, a
constant: brightness that the condition does not tell cannot come back this way.

    guided   x0_hat = m_0 + scale (m_c - m_0),   m_0 the mean of all,  c the module's own label where it has one

Shapes   x (B, ...), any units. `table`: mean (K, ...), weight (K,); cond["label"] (B,), or for the module alone cond["oms"]
         (B,), which is taken out of the condition. No call.
Paper    Hu et al. 2023, "One more step" (arXiv 2311.15744), section 3
Off      the baseline is `prior`, and equal to it bit for bit where a_T = 0.
Differs  the paper trains a network psi(x_S, prompt); for classes its least-squares optimum is written down. x_S is
         therefore never drawn, and eps is the draw of `prior`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import field_validator
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Start
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.time import combine
from ebbtide.core.tree import Tree
from ebbtide.process.affine import Affine
from ebbtide.start.held import drop
from ebbtide.start.table import by_label, check, chosen, read


@part("start", "one-more-step", paper="2311.15744", needs={"affine"}, refuses={"end"}, baseline="prior")
class OneMoreStep(Start):
    """One more step: models whose schedule never reaches pure noise get the signal back that they were trained to find.

    table   the mean of each class: see `start.table`
    scale   guidance of the module: 1 is the class's own mean, 0 that of all
    """

    examples = ({"table": {"mean": [0.4, -0.3, 0.1], "weight": [1.0, 2.0, 1.0]}},)
    table: dict[str, Any]
    scale: float = 1.0

    @field_validator("table")
    @classmethod
    def _leaves(cls, table: dict[str, Any]) -> dict[str, Any]:
        check(table, ("mean",), ("weight",))
        return table

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        """Raises EbbError for a table that does not fit the samples or their labels."""
        t, process = ask.ahead(0), ask.process
        assert isinstance(process, Affine)
        assert isinstance(like, Tensor)
        found = read(self.table, ("mean",))
        mean = found["mean"]
        weight = found.get("weight", torch.ones(len(mean), dtype=torch.float64))
        whole = (mean * (weight / weight.sum()).reshape(-1, *(1,) * (mean.ndim - 1))).sum(0, keepdim=True)
        label = by_label(cond.get("oms", cond.get("label")), len(mean), len(like))
        rows = torch.cat([whole + self.scale * (mean - whole), whole])
        guess = chosen(rows, torch.where(label < 0, len(mean), label), like)
        x = combine((process.a(t), guess), (process.c(t), ask.noise.normal(like)))
        return replace(drop(ask.state, "oms"), x=x, t=t)


def class_means(x: Tensor, label: Tensor) -> dict[str, Tensor]:
    """The module that fits data best: mean (K, ...) and weight (K,) of its classes 0 to K - 1, float64.

    x (N, ...), label (N,) integers. Write them with `start.table.write`.
    """
    count = torch.bincount(label)
    total = torch.zeros(len(count), *x.shape[1:], dtype=torch.float64).index_add(0, label, x.double())
    return {"mean": total / count.reshape(-1, *(1,) * (x.ndim - 1)), "weight": count.double()}
