"""DeepCache: the deep half of a U-Net at every few steps only; between them what it gave last, beside a fresh shallow half.

    whole step   h = up(deep(down(x)), skips),  and h_b, what enters the b-th layer of the way up from its end, is kept
    short step   down as far as skip b,  then  up from (h_b as kept, skip b as it is now)

A skip b counts from the outside: 0 is the input layer's, 1 that of the first residual layer. Deeper, nothing is computed.
A whole step is made wherever nothing is kept yet, and every `interval` steps of an element after its first; with `center`,
as many in all, but closest where features change most, around that step, by a law of this power.

Shapes   h_b (R, C, H, W), by element, tag and role: both halves of guidance keep their own
Paper    Ma, Fang, Wang 2023 (arXiv 2312.00858), sections 3.3 and 3.4
Off      interval = 1 computes every step as it is.
Differs  whole steps are counted from an element's own first step, so each is computed alike alone and in a stream, and anew
         after its time went up. The steps around `center` need a grid that says how many there will be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Ask
from ebbtide.core.registry import part
from ebbtide.core.state import State
from ebbtide.core.tree import Memory
from ebbtide.network.anatomy import Block, Port, Skip, anatomy, passing
from ebbtide.network.patch import Patch, Rows, rewired

WHOLE, SHORT = 0, 1


class Cut(NamedTuple):
    """A U-Net cut at one of its skips.

    skip   the skip
    up     the block that takes it
    deep   whole blocks below it, and `within` what is below it in the two blocks that it leaves and enters
    """

    skip: Skip
    up: Block
    deep: tuple[Block, ...]
    within: tuple[nn.Module, ...]

    @property
    def port(self) -> Port:
        """Where the block takes its skips."""
        assert self.up.residual is not None
        return self.up.residual

    def residuals(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The skips that the block is given."""
        given: tuple[Tensor, ...] = self.port.taken(args, kwargs)
        return given


@part("network", "deepcache", paper="2312.00858", needs={"module"}, refuses={"gradients"}, off={"interval": 1})
class DeepCache(Patch):
    """DeepCache: the deep half of a U-Net at every few steps only, between them what it gave last."""

    interval: Annotated[int, Field(ge=1)] = 3
    branch: Annotated[int, Field(ge=0)] = 0
    center: Annotated[int, Field(ge=0)] | None = None
    power: Annotated[float, Field(gt=0)] = 1.4

    def look(self, network: nn.Module) -> Cut:
        net = anatomy(network).need("skips")
        if self.branch >= len(net.skips):
            raise EbbError(f"{net.name} has {len(net.skips)} skips, so branch goes from 0 to {len(net.skips) - 1}.")
        skip = net.skips[-1 - self.branch]
        up, down = net.blocks[skip.up], None if skip.down is None else net.blocks[skip.down]
        first = 0 if skip.down is None else skip.down + 1
        after = [] if down is None else [m for place, m in down.layers() if place > skip.place]
        before = [m for place, m in up.layers() if place < up.residuals - 1 - skip.slot]
        return Cut(skip, up, net.blocks[first : skip.up], (*after, *before))

    def claims(self, seen: Cut) -> Iterable[nn.Module]:
        return (seen.skip.module, seen.up.module, *(b.module for b in seen.deep), *seen.within)

    def init(self, state: State, ask: Ask) -> Memory:
        if self.center is None:
            return {}
        steps = 0
        while bool((ask.ahead(steps) > 0).any()):
            steps += 1
        chosen = torch.zeros(max(steps, 1), dtype=torch.bool)
        chosen[powered(steps, max(1, -(-steps // self.interval)), self.center, self.power)] = True
        return {"chosen": chosen.expand(len(state), -1).clone()}

    def mode(self, seen: Cut, rows: Rows) -> Tensor:
        since = rows.load("since")
        if since is None:
            return torch.full((len(rows),), WHOLE)
        chosen = rows.own("chosen")
        if chosen is None:
            due = (rows.i - since + 1) % self.interval == 0
        else:
            due = chosen.gather(1, rows.i.clamp(max=chosen.shape[1] - 1)[:, None])[:, 0]
        return torch.where((since == 0) | due, WHOLE, SHORT)

    @contextmanager
    def enter(self, seen: Cut, rows: Rows) -> Iterator[None]:
        wired = whole(seen, rows) if rows.mode == WHOLE else short(seen, rows)
        with ExitStack() as stack:
            for module, forward in wired.items():
                stack.enter_context(rewired(module, forward))
            yield


Wiring = dict[nn.Module, Callable[..., Any]]


def whole(seen: Cut, rows: Rows) -> Wiring:
    """Everything is computed, and what comes from below is kept where the skip joins it."""
    up, join, width = seen.up.module.forward, seen.skip.module.forward, 0

    def enter(*args: Any, **kwargs: Any) -> Any:
        nonlocal width
        width = seen.residuals(args, kwargs)[seen.skip.slot].shape[1]
        return up(*args, **kwargs)

    def keep(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.save("deep", x[:, : x.shape[1] - width])
        return join(x, *args, **kwargs)

    rows.save("since", rows.i + 1)  # zero would mean that nothing is kept
    return {seen.up.module: enter, seen.skip.module: keep}


def short(seen: Cut, rows: Rows) -> Wiring:
    """Nothing below the skip is computed: a stream of no channels runs where it would, up to what was kept."""
    up, join, deep = seen.up.module.forward, seen.skip.module.forward, rows.load("deep")
    assert deep is not None

    def enter(*args: Any, **kwargs: Any) -> Any:
        given = seen.residuals(args, kwargs)
        none = given[seen.skip.slot][:, :0]
        args, kwargs = seen.up.hidden.handed(args, kwargs, none)
        stubs = (none,) * (len(given) - seen.skip.slot - 1)
        args, kwargs = seen.port.handed(args, kwargs, (*given[: seen.skip.slot + 1], *stubs))
        return up(*args, **kwargs)

    def add(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return join(torch.cat([deep.to(x), x], 1), *args, **kwargs)

    rows.note()
    idle: Wiring = {b.module: b.idle for b in seen.deep} | dict.fromkeys(seen.within, passing)
    return {**idle, seen.up.module: enter, seen.skip.module: add}


def powered(steps: int, count: int, center: int, power: float) -> list[int]:
    """`count` steps of `steps`, the first among them, whose distance from `center` grows by a power law."""
    low, high = -(center ** (1 / power)), abs(steps - center) ** (1 / power)
    spread = torch.linspace(low, high if steps > center else -high, count + 1, dtype=torch.float64)[:-1]
    found = center + spread.sign() * spread.abs() ** power
    return sorted({0, *(min(max(round(k), 0), steps - 1) for k in found.tolist())})
