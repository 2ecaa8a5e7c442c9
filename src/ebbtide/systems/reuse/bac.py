"""BAC: each attention and feed-forward of a diffusion policy is recomputed at the few steps that suit it, and no staler input.

Paper    Ji et al. 2025 (arXiv 2506.13456), sections 3.2 and 3.3; table 1
Card     the policy of PushT that ships, on states of episodes, 50 steps of DDPM: multiplications as counted, and how far plans
         end from those of the whole network on the same noise (geometric mean over plans), against the same number of
         computed units spread evenly, and chosen without the union
Differs  plans in place of episodes; similarities are those of each step to the update that serves it, since the sum of
         neighbours' that the paper adds leaves out only steps that change by themselves, and loses to even steps here
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.measure.cost import cost
from ebbtide.systems import Bench, Card, System
from ebbtide.zoo.demonstrations import stretches

STEPS = 50

SYSTEM = System(
    id="bac",
    family="reuse",
    title="Block-wise Adaptive Caching for Accelerating Diffusion Policy",
    year=2025,
    claim="Up to 3x faster action generation at no loss of success, training-free, on several robot benchmarks and "
    "vision-language-action models",
    what="Each attention and feed-forward is recomputed at the steps that suit it best; no feed-forward refreshes on stale "
    "inputs.",
    paper="2506.13456",
    parts=("network/bac",),
    presets={
        "bac": {
            "solve": "ancestral",
            "grid": {"name": "linear", "steps": 50},
            "network": [{"name": "bac", "budget": 10, "upstream": 2, "served": True}],
        },
    },
    differs="distances of plans to those of the whole network in place of success; the similarity is to the serving update",
)

Schedule = Mapping[str, list[int]]


def observations() -> Tensor:
    """Two states each, of moments from all episodes, (72, 2, 5)."""
    states = stretches()
    return torch.cat([states[:, k : k + 2] for k in (3, 17, 33)])


def share(schedule: Schedule) -> float:
    """Of all units at all steps, those that are computed."""
    return sum(map(len, schedule.values())) / (STEPS * len(schedule))


def even(units: Schedule, total: int) -> dict[str, list[int]]:
    """`total` computations, as many of each unit as of any other or one more, at even distances."""
    each, more = divmod(total, len(units))
    counts = {name: each + (k < more) for k, name in enumerate(units)}
    return {name: sorted({k * STEPS // m for k in range(m)}) for name, m in counts.items()}


def card(bench: Bench) -> Card:
    """Multiplications, and errors against other schedules of the same cost."""
    model, plan, obs = ebb.load("pusht"), bench.plan("bac"), observations()
    plain = plan.replace(network=[])

    def run(plan: ebb.Plan, seed: int = 0) -> tuple[Tensor, int]:
        return cost(lambda: ebb.sample(model, plan, cond={"obs": obs}, n=len(obs), seed=seed).x)

    def learnt(**changes: Any) -> ebb.Plan:
        bare = ebb.Plan.from_dict(SYSTEM.presets["bac"])
        specs = [{**spec, **changes} for spec in bare.to_dict()["network"]]
        return ebb.calibrate(model, bare.replace(network=specs), cond={"obs": stretches()[:8, 9:11]}, n=8)

    def scheduled(schedule: Schedule) -> ebb.Plan:
        return plain.replace(network=[{"name": "bac", "schedule": dict(schedule), "steps": STEPS}])

    full, most = run(plain)
    other = gap(run(plain, 10**6)[0], full)
    chosen = learnt()
    schedule: Schedule = chosen.parts("network")[0].schedule
    total = sum(map(len, schedule.values()))
    ours, spent = run(plan if bench.control else chosen)
    off = gap(ours, full)
    bench.check(
        "multiplications of the whole network, over BAC's", most / spent, at_least=2.5, published="up to 3x faster"
    )
    bench.check("distance to the whole network's plans, over that of another draw", off / other, at_most=0.6)
    spread = gap(run(scheduled(even(schedule, total)))[0], full)
    bench.check("distance, over that of as many units evenly", off / spread, at_most=0.7)
    lone: Schedule = learnt(upstream=0, budget=-(-total // len(schedule))).parts("network")[0].schedule
    apart = gap(run(scheduled(lone))[0], full)
    bench.check("distance, over that of no fewer units without the union", off / apart, at_most=1.0)
    return bench.card(
        f"{share(schedule):.0%} of the units are computed; plans end {256 * off:.1f} pixels from the whole network's, two "
        f"draws {256 * other:.1f} from each other, {256 * spread:.1f} with units evenly and {256 * apart:.1f} without a union."
    )


def gap(x: Tensor, y: Tensor) -> float:
    """The root mean square difference of plans, the geometric mean over them."""
    return float((x - y).square().flatten(1).mean(1).sqrt().clamp_min(1e-6).log().mean().exp())
