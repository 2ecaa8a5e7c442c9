"""What a run costs, counted and not timed: multiplications of matrix products, convolutions and attention.

    cost = sum over calls of  M N K  (a product),  M N K per place (a convolution),  2 L L' D (attention)

Counted as they are computed, so a network that skips some of its blocks costs less than one that does not. Sums, norms and
activations are left out. A count does not depend on the machine, nor on what else it does.

Source   the formulas of `torch.utils.flop_counter`, which counts additions too: half of it here
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.utils.flop_counter import FlopCounterMode

_T = TypeVar("_T")


def cost(run: Callable[[], _T]) -> tuple[_T, int]:
    """What `run` gives, and the multiplications that it took."""
    with FlopCounterMode(display=False) as counter:
        made = run()
    return made, counter.get_total_flops() // 2
