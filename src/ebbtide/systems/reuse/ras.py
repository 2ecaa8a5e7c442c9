"""RAS: at most steps a transformer runs on half of the tokens, beside kept keys, values and outputs of the others.

Paper    Liu et al. 2025 (arXiv 2502.10389); table 1
Card     digits of the flow transformer, 28 Euler steps, half of the tokens at all steps but the first four and two resets:
         what tokens were computed and how long the others sat out, and how far 96 digits end from those of all tokens on
         the same noise (geometric mean), against as many tokens chosen at random
Differs  distances to the full run in place of FID and a study of users. At equal evaluations of tokens fewer Euler steps end
         closer than RAS on this network, and so do whole steps that repeat the last flow: the note has the figures
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.network.patch import Rows
from ebbtide.network.ras import RAS
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="ras",
    family="reuse",
    title="Region-Adaptive Sampling for Diffusion Transformers",
    year=2025,
    claim="Up to 2.36x on SD3 and 2.51x on Lumina-Next with minimal quality loss; user study comparable at 1.6x",
    what="At most steps the transformer runs on the tokens that matter now; the others keep what they gave last.",
    paper="2502.10389",
    parts=("network/ras",),
    presets={
        "ras": {
            "solve": "euler",
            "grid": {"name": "linear", "steps": 28},
            "network": [{"name": "ras", "whole": 4, "resets": [12, 20]}],
        },
    },
    differs="distances to the full run in place of FID; at equal cost fewer Euler steps end closer on our network",
)

STEPS, WHOLE, RESETS = 28, 4, (12, 20)
LABELS = [k % 10 for k in range(96)]


class Run(NamedTuple):
    """Digits, the share of tokens computed, and the longest that one sat out."""

    x: Tensor
    share: float
    longest: int


def at_random(self: RAS, rows: Rows) -> Tensor:
    """As many tokens as RAS would choose, any of them."""
    idle = rows.load("idle")
    assert idle is not None
    n = idle.shape[1]
    count = max(1, round(self.ratio * n))
    chosen = Noise(keys(range(len(idle))), rows.i).uniform((len(idle), n)).topk(count, 1).indices
    enters = torch.zeros_like(idle, dtype=torch.bool).scatter_(1, chosen, True)
    rows.save("idle", torch.where(enters, 0.0, idle + 1))
    return enters.nonzero()[:, 1].reshape(len(idle), count)


def card(bench: Bench) -> Card:
    """What is computed, and how far it ends from all of it."""
    model, plan = ebb.load("digits"), bench.plan("ras")
    plain = plan.replace(network=[])

    def run(plan: ebb.Plan, labels: Sequence[int] = LABELS) -> Run:
        computed: list[float] = []
        longest, x = 0, torch.empty(0)
        for step in ebb.run(model, plan, cond=list(labels), n=len(labels)):
            idle = step.state.memory.get("network", {}).get("0", {}).get("main|point", {}).get("idle")
            computed.append(1.0 if idle is None else float((idle == 0).double().mean()))
            longest = longest if idle is None else max(longest, int(idle.max()))
            x = step.state.x
        return Run(x, sum(computed) / STEPS, longest)

    ours = run(plan)
    bench.check("evaluations of tokens, of those of the full run", ours.share, at_most=0.65, published="1.6x faster")
    gap = max(b - a for a, b in zip((WHOLE, *RESETS), (*RESETS, STEPS), strict=True))
    bench.check("steps that a token sat out, over the longest between resets", ours.longest / gap, at_most=1.0)
    if bench.control:
        return bench.card(
            "Of the control, which computes every token, there is nothing to hold against tokens at random."
        )
    full = run(plain).x
    off = apart(ours.x, full)
    with mock.patch.object(RAS, "choose", at_random):
        anyone = apart(run(plan).x, full)
    bench.check("distance to the full run, over that of tokens at random", off / anyone, at_most=0.75, published="less")
    some = LABELS[:8]
    one = plain.replace(network=[{"name": "ras", "ratio": 1.0, "whole": WHOLE, "resets": list(RESETS)}])
    bench.check("a ratio of 1 is the network as it is", torch.equal(run(one, some).x, full[:8]), at_least=1)
    calls = -int(-ours.share * STEPS // 1)
    grids: list[dict[str, Any]] = [{"name": "linear", "steps": calls}, {"name": "explicit", "times": repeated(calls)}]
    few, held = (apart(run(plain.replace(grid=grid)).x, full) for grid in grids)
    return bench.card(
        f"The row's main claim does not show. Digits end {off:.4f} from the full run, with tokens at random {anyone:.4f}; "
        f"but {calls} Euler steps, no fewer evaluations, end {few:.4f} from it, and 28 steps of which as many ask the "
        f"network and the others repeat the last flow {held:.4f}. Emoji, over 8 pictures: 0.027, and 0.013 with fewer "
        f"Euler steps. No token sat out more than {ours.longest} steps in a row."
    )


def repeated(calls: int) -> list[float]:
    """Times of Euler steps that ask the network `calls` times in 28: the first four, the resets, and the rest evenly.

    Where a step repeats the last flow, it is the step before it made longer.
    """
    fixed = {*range(WHOLE), *RESETS}
    free = [k for k in range(STEPS) if k not in fixed]
    more = max(0, calls - len(fixed))
    asked = sorted(fixed | {free[int((j + 0.5) * len(free) / max(1, more))] for j in range(more)})
    return [1 - k / STEPS for k in (*asked, STEPS)]


def apart(x: Tensor, y: Tensor) -> float:
    """The root mean square difference of pictures, the geometric mean over them."""
    return float((x - y).square().flatten(1).mean(1).sqrt().clamp_min(1e-6).log().mean().exp())
