"""A record: what a network was asked during runs of a plan, so that parts which learn from it can ask again.

    asked(step k)  =  (x, t, cond) of every call that step k made,  in order

Parts of the slot `network` that need figures of a model (when to compute what, the ranges of numbers) offer
`calibrated(record)`, which gives the part with them; `ebb.calibrate` records and asks each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree
from ebbtide.network.patch import rewired, shell


class Asked(NamedTuple):
    """One call of a denoiser: in which step of the run, and what it was asked."""

    step: int
    x: Tree
    t: Tensor
    cond: dict[str, Tree]


class Heard(Denoiser):
    """A denoiser that writes down what it is asked."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process = inner, inner.process
        self.module = getattr(inner, "module", None)
        self.asked: list[Asked] = []
        self.step = 0

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return self.inner.null(name, leaf)

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        self.asked.append(Asked(self.step, x, t, cond))
        return self.inner(x, t, cond)


@dataclass(frozen=True)
class Record:
    """The calls of some runs.

    denoiser  what was asked
    asked     every call
    """

    denoiser: Any
    asked: Sequence[Asked] = field(repr=False)

    @property
    def steps(self) -> int:
        """How many steps the runs had."""
        return 1 + max(a.step for a in self.asked)

    @property
    def network(self) -> nn.Module:
        """The module that answered, in a shell of its own: wrap what you like."""
        return shell(self.denoiser.module)

    def answers(self, network: nn.Module, sites: dict[str, nn.Module]) -> Iterator[tuple[Asked, dict[str, Tensor]]]:
        """Ask everything again, of `network`; what each of its `sites` gave, by name, beside what was asked."""
        denoiser, given = self.denoiser.over(network), dict[str, Tensor]()

        def listening(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                out = own(*args, **kwargs)
                given[name] = out if isinstance(out, Tensor) else out[0]
                return out

            return forward

        for asked in self.asked:
            with ExitStack() as stack, torch.no_grad():
                for name, module in sites.items():
                    stack.enter_context(rewired(module, listening(name, module.forward)))
                denoiser(asked.x, asked.t, asked.cond)
            yield asked, dict(given)
