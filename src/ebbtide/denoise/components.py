"""What all exact models share: they are mixtures, and a label chooses some of their components.

    p(x0 | label) = sum_k w_k [label_k = label] p_k(x0) / sum_k w_k [label_k = label]

The label -1, the null of classifier-free guidance, stands for all components, as does the number of classes and the
absence of a label: guidance is exact here, and its unconditional model is the true one.

Shapes   x (R, *event), label (R,) integers; everything is computed on the CPU in float64, answers come in x's dtype
Source   the law of total probability
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.parts import Denoiser
from ebbtide.core.tree import Tree


class Components(Denoiser):
    """A mixture of K components whose posteriors are known.

    event     the shape of one element
    weights   (K,) positive, need not sum to 1
    labels    (K,) integers from 0 up: the class of each component, or None for a model without classes

    Raises EbbError for weights and labels that do not fit each other.
    """

    def __init__(self, event: torch.Size | tuple[int, ...], weights: Any, labels: Any = None) -> None:
        self.event = torch.Size(event)
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        if self.weights.ndim != 1 or not bool((self.weights > 0).all()):
            raise EbbError(f"weights must be a row of positive numbers, one a component, not {self.weights.tolist()}.")
        if self.labels is not None and (self.labels.shape != self.weights.shape or int(self.labels.min()) < 0):
            raise EbbError(f"give each of the {len(self.weights)} components a label, an integer from 0 up.")

    @property
    def classes(self) -> int:
        """The number of classes, 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        """-1, any class, for the condition "label" of a model with labels."""
        return torch.full_like(leaf, -1) if name == "label" and self.labels is not None else None

    def share(self, cond: Mapping[str, Tree] | None, rows: int) -> Tensor:
        """The log-weights of the components for each row, (rows, K), normalised; -inf for those of another class.

        Raises EbbError for a label that no component has.
        """
        label = (cond or {}).get("label")
        log_w = self.weights.log().expand(rows, -1)
        if isinstance(label, Tensor):
            label = label.reshape(-1, 1).cpu()
            every = (label == -1) | ((label == self.classes) & (self.classes > 0))
            mine = every if self.labels is None else every | (self.labels == label)
            lost = ~mine.any(1)
            if bool(lost.any()):
                known = f"0 to {self.classes - 1}, or -1 for any" if self.classes else "leave the label out"
                raise EbbError(f"this model has no label {int(label[lost][0])}; {known}.")
            log_w = torch.where(mine, log_w, -torch.inf)
        return log_w.log_softmax(-1)

    def rows(self, x: Tree) -> Tensor:
        """x as rows (R, D) on the CPU. Raises EbbError when the elements have another shape than the model's."""
        if not isinstance(x, Tensor) or x.shape[1:] != self.event:
            got = tuple(x.shape[1:]) if isinstance(x, Tensor) else "a dict"
            raise EbbError(f"this model knows elements shaped {tuple(self.event)}, not {got}.")
        return x.cpu().flatten(1)

    def draw(self, n: int, seed: int, label: int | None) -> tuple[Tensor, Noise]:
        """A component for each of `n` elements, (n,), and the noise for its other draws; element j has seed + j."""
        noise = Noise(keys(range(seed, seed + n)), torch.zeros(n, dtype=torch.int64))
        cond = {} if label is None else {"label": torch.full((n,), label)}
        return noise.categorical(self.share(cond, n)), noise.fold(0)
