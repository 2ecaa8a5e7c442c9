"""PushT with plans that go on from the last: what rti-dp costs and keeps of full denoising, over whole episodes.

    python bench/pusht.py [--model pusht] [--episodes 50] [--every 8] [--ways full,rti-dp,cold] [--keep FILE] [--json]

    full     every plan from noise, 100 steps of DDPM
    rti-dp   the first plan as in full, each later one from the one before, shifted by what was done: the system's presets
    cold     every plan from noise, with as many calls as rti-dp makes

    coverage lost     full's mean best coverage less that of rti-dp, in points        bar 2
    calls a tick      of rti-dp over those of full                                    bar 0.3

The best coverage of an episode counts, as in the paper on diffusion policies; the last and the successes (> 0.95) are told
beside. Seeds are shared by all ways and none was trained on; an error is one standard deviation of the mean, of differences
where two ways are compared. `--keep` is a file to which each ten episodes are written, and from which a run goes on.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

import ebbtide as ebb
import figures
from ebbtide.denoise.model import Model
from ebbtide.measure.control import drive
from ebbtide.measure.pusht import PushT
from ebbtide.systems.act.rti_dp import SYSTEM

ACTIONS, FIRST_SEED, AT_ONCE = 300, 100_000, 10


def plans(way: str, every: int) -> tuple[ebb.Plan, ebb.Plan | None]:
    """Of the first tick, and of the others."""
    first = ebb.Plan.from_dict(SYSTEM.presets["rti-dp-first"])
    later = ebb.Plan.from_dict(SYSTEM.presets["rti-dp-pusht"]).replace(start={"name": "warm", "shift": every})
    if way == "full":
        return first, None
    if way == "rti-dp":
        return first, later
    if way == "cold":
        return first.replace(grid={"name": "linear", "steps": len(later.grid["times"]) - 1}), None
    raise SystemExit(f"there is no way {way!r}: full, rti-dp, cold.")


def episodes(model: Model, way: str, every: int, seeds: list[int]) -> dict[str, list[float]]:
    """Best coverage, last coverage, calls and ticks of each episode, by seed."""
    world = PushT(seeds)
    first, later = plans(way, every)
    calls = torch.zeros(len(seeds), dtype=torch.int64)
    ticks = torch.zeros(len(seeds), dtype=torch.int64)
    for tick in drive(model, world, first, later, seeds=seeds, ticks=math.ceil(ACTIONS / every), every=every):
        calls, ticks = calls + tick.calls, ticks + (tick.calls > 0)
    best, last = world.coverage.amax(1), world.coverage[:, -1]
    rows = torch.stack([best, last, calls.double(), ticks.double()], 1)
    return {str(seed): row for seed, row in zip(seeds, rows.tolist(), strict=True)}


def record(model: Model, file: Path, every: int = 8, count: int = 24, length: int = 41) -> None:
    """A stretch of each of some episodes, where `zoo.demonstrations.stretches` reads them."""
    from safetensors.torch import save_file

    seeds = [2 * FIRST_SEED + k for k in range(count)]
    world = PushT(seeds)
    first, later = plans("rti-dp", every)
    states = [world.seen()["obs"][:, -1]]
    act = world.act

    def written(actions: torch.Tensor) -> None:
        act(actions)
        states.append(world.seen()["obs"][:, -1])

    world.act = written  # type: ignore[method-assign]
    for _ in drive(model, world, first, later, seeds=seeds, ticks=20, every=every):
        pass
    begins = [5 * k for k in range(count)]  # early in some, later in others
    rows = [torch.stack(states)[b : b + length, k] for k, b in enumerate(begins)]
    save_file({"states": torch.stack(rows).contiguous()}, file)


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("--model", default="pusht")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--ways", default="full,rti-dp,cold")
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument(
        "--record", type=Path, default=None, help="write stretches of episodes to this file, no figures"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, ways = ebb.load(given.model), given.ways.split(",")
    name = f"{given.model} {model.digest} every {given.every}"
    if given.record is not None:
        record(model, given.record)
        return 0
    kept: dict[str, Any] = json.loads(given.keep.read_text()) if given.keep and given.keep.exists() else {}
    for start in range(0, given.episodes, AT_ONCE):  # all ways of ten seeds before the next: stop it when you like
        seeds = [FIRST_SEED + k for k in range(start, min(start + AT_ONCE, given.episodes))]
        for way in ways:
            rows = kept.setdefault(f"{name} {way}", {})
            if any(str(seed) not in rows for seed in seeds):
                rows.update(episodes(model, way, given.every, seeds))
                if given.keep:
                    given.keep.write_text(json.dumps(kept))
    order = [str(FIRST_SEED + k) for k in range(given.episodes)]
    found = {w: torch.tensor([kept[f"{name} {w}"][s] for s in order], dtype=torch.float64) for w in ways}
    lines = []
    for way, rows in found.items():
        best, last, calls, ticks = rows.unbind(1)
        error = float(best.std() / math.sqrt(len(best)))
        said = (
            f"+- {100 * error:.1f}; last {100 * last.mean():.1f}, success {100 * (best > 0.95).double().mean():.0f} %"
        )
        said += f", calls a tick {calls.sum() / ticks.sum():.1f}, an episode {calls.mean():.0f}"
        lines.append(figures.Figure(f"best coverage, {way}", 100 * float(best.mean()), None, "%", said))
    if {"full", "rti-dp"} <= found.keys():
        full, warm = found["full"], found["rti-dp"]
        lost = 100 * (full[:, 0] - warm[:, 0])
        error = float(lost.std() / math.sqrt(len(lost)))
        rate = (warm[:, 2].sum() / warm[:, 3].sum()) / (full[:, 2].sum() / full[:, 3].sum())
        whole = float(warm[:, 2].sum() / full[:, 2].sum())
        lines.append(figures.Figure("coverage lost by rti-dp", float(lost.mean()), 2, "%", f"+- {error:.1f}"))
        lines.append(figures.Figure("calls a tick, over full's", float(rate), 0.3, "x", f"an episode {whole:.3f}"))
    title = f"PushT, {given.episodes} episodes of {ACTIONS} actions, {given.every} a tick ({figures.versions()})"
    return figures.report(title, lines, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
