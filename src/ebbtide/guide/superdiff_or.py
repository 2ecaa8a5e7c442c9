"""SuperDiff, OR: predict as the model that the path so far speaks for, so that samples are of one model or another.

    E[x0] = sum_i kappa_i E_i[x0 | x_t],   kappa = softmax_i(temperature (l_i + bias_i)),   l_i = 0 at the start
    l_i grows at every step by what `denoise.superposition` reads off it: log q_i(x_s) - log q_i(x_t)

With temperature 1 samples follow the equal mixture of the models; bias_i is the logarithm of their weights.

Shapes   x, x0 (B, ...), any units; a weight kappa for each element. Memory of the last point: x, t (0: none), E_i[x0] and
         l (B, K).
Paper    Skreta et al. 2024, "The superposition of diffusion models using the Ito density estimator" (arXiv 2412.17762),
         theorem 1 and algorithm 1
Off      others = () is the inner prediction, bit for bit, with one call.
Differs  densities grow by the kernels of a step, to first order the paper's. They are those of paths with all the noise of
         the Markov chain (`ancestral`, `ddpm`, eta = 1): with less, only the start and the bias would count rightly. Queries
         under another condition than the element's own are passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.parts import Inner, Layer
from ebbtide.core.registry import part
from ebbtide.core.state import OWN, Pred, Query
from ebbtide.core.time import combine, right
from ebbtide.core.tree import Memory, Tree, tree_map
from ebbtide.denoise.superposition import Others, conditions, gains


@part("guide", "superdiff-or", paper="2412.17762", needs={"affine", "stochastic"}, off={"others": ()})
class SuperDiffOr(Layer):
    """SuperDiff, OR: predict as the model that the path so far speaks for, so that samples are of one model or another.

    others       what the other models are told instead: {"label": 3}, say
    bias         one number for the element's own condition and each other, or none
    """

    examples = ({"bias": [0.4, -0.3]}, {"others": [{"label": 1}, {"label": 2}]})
    others: Others = ({"label": 1},)
    temperature: Annotated[float, Field(ge=0)] = 1.0
    bias: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.bias and len(self.bias) != 1 + len(self.others):
            raise ValueError(
                f"bias is {1 + len(self.others)} numbers, one for the element's own condition and each other"
            )

    @property
    def calls(self) -> int:
        return 1 + len(self.others)

    def many(
        self, queries: Sequence[Query], memory: Memory, inner: Inner, ask: Ask, before: Memory
    ) -> tuple[list[Pred], Memory]:
        if not self.others:
            return inner(queries), memory
        asked: list[Query] = []
        for q in queries:
            asked.append(q)
            if q.cond is OWN:
                cond = _rows(ask.state.cond, q.of)
                each = conditions(cond, self.others)
                asked += [q._replace(cond=c, tag=f"{q.tag}/or{j}") for j, c in enumerate(each, 1)]
        answers = iter(inner(asked))
        preds = []
        for q in queries:
            first = next(answers)
            if q.cond is not OWN:
                preds.append(first)
                continue
            means = [first.mean, *(next(answers).mean for _ in self.others)]
            density = self._density(q, len(means), ask, before)
            kappa = self._weights(density)
            preds.append(Pred(mean=combine(*((kappa[:, i], m) for i, m in enumerate(means)))))
            if q.role == "point" and q.of is None and q.at is None:
                memory = {"x": q.x, "t": q.t, "means": {str(i): m for i, m in enumerate(means)}, "density": density}
            ask.note("superdiff-or", len(q.t))
        return preds, memory

    def _weights(self, density: Tensor) -> Tensor:
        bias = torch.tensor(self.bias or [0.0] * density.shape[1], dtype=torch.float64, device=density.device)
        return (self.temperature * (density + bias)).softmax(-1)

    def _density(self, q: Query, count: int, ask: Ask, before: Memory) -> Tensor:
        """The log-densities at a query, (rows, K): those of the last point and what was gained since."""
        zero = torch.zeros((len(q.t), count), dtype=torch.float64, device=q.x.device)
        if "t" not in before:
            return zero
        last = _rows(before, q.of)
        means = [last["means"][str(i)] for i in range(count)]
        process: Any = ask.process
        gained = gains(process, last["x"], last["t"], q.x, q.t, means, _rows(ask.state.cond, q.of))
        known = (last["t"] > 0).reshape(len(zero), -1).any(1)
        return torch.where(right(known, zero).to(zero.device), last["density"] + gained, zero)


def _rows(tree: Tree, of: Tensor | None) -> Tree:
    """The rows of a query."""
    return tree if of is None else tree_map(lambda v: v[of.to(v.device)], tree)
