"""What attaching costs: a pipeline's own call against the same call with ebbtide's loop inside, tiny Flux, 20 steps.

    python bench/attach.py [--turns 15] [--steps 20] [--tools ../shared/tools/tiny_pipelines.py] [--json]

Both calls encode the same prompts, make the same latents of the same noise and decode them; the figure is median time over
median time, the runs taking turns. The network is as small as one of its kind can be (5 million multiplications), so all
that attaching adds is seen as large as it will ever be.

    unguided   one row a step on both sides                                     bar 1.0
    guided     true guidance: Flux asks twice, we ask once for both rows        bar 1.0
    memory     the most that live tensors held during the call, over its own    bar 1.0 for one row; two rows at once hold more
               (one row: some hundred bytes more, the loop's own times, steps and keys)
    drop-in    the plain scheduler, `interop.scheduler`, told each output       no bar
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import ebbtide as ebb
import figures
from ebbtide.interop.scheduler import EbbScheduler

TOOLS = Path(__file__).resolve().parents[2] / "shared" / "tools" / "tiny_pipelines.py"
SCALE = 3.0


def tiny(path: Path, kind: str = "flux") -> Any:
    """A tiny pipeline with random weights, ready for inference as one from files is."""
    spec = importlib.util.spec_from_file_location("tiny_pipelines", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pipe = module.build(kind)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def call(pipe: Any, steps: int, scale: float) -> Callable[[], Any]:
    """One call of the pipeline, to its pictures."""
    guided = {"true_cfg_scale": scale, "negative_prompt": "west"} if scale > 1 else {}
    size = {"height": 16, "width": 16, "max_sequence_length": 32}

    def run() -> Any:
        g = torch.Generator().manual_seed(0)
        return pipe("low newer", num_inference_steps=steps, generator=g, output_type="pt", **size, **guided).images

    return run


def held(run: Callable[[], Any]) -> float:
    """The most bytes of tensors alive at a time during a run, beyond those before it, MB."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as taken:
        run()
    now = most = 0
    results: Any = taken.profiler
    for event in results.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most / 1e6


def measure(path: Path, steps: int, turns: int) -> list[figures.Figure]:
    """The ratios."""
    own, dropped = tiny(path), tiny(path)
    attached = ebb.attach(None, own)
    by_plan = ebb.attach(ebb.Plan(solve="dpmpp-2m", grid={"name": "shift", "steps": steps}), own)
    dropped.scheduler = EbbScheduler.from_config(dropped.scheduler)
    sides = {"attached": attached, "attached, dpmpp-2m": by_plan, "drop-in": dropped}
    runs = {f"own {s}": call(own, steps, s) for s in (1.0, SCALE)}
    runs |= {f"{k} {s}": call(pipe, steps, s) for k, pipe in sides.items() for s in (1.0, SCALE)}
    gap = max(float((runs[f"attached {s}"]() - runs[f"own {s}"]()).abs().max()) for s in (1.0, SCALE))
    assert gap < 1e-4, f"the pictures differ by {gap}"
    taken = figures.interleaved(runs, turns, each=2)
    out = []
    for k in sides:
        for s, what in ((1.0, "unguided"), (SCALE, "guided")):
            mine, theirs = (1e3 * taken[f"{name} {s}"] for name in (k, "own"))
            bar = 1.0 if k == "attached" else None
            out.append(figures.Figure(f"{k}, {what}", mine / theirs, bar, said=f"{mine:.1f} ms / {theirs:.1f} ms"))
    for s, what in ((1.0, "unguided"), (SCALE, "guided")):
        mine, theirs = held(runs[f"attached {s}"]), held(runs[f"own {s}"])
        bar = 1.0 if s == 1.0 else None
        said = f"{mine:.3f} MB / {theirs:.3f} MB, {1e6 * (mine - theirs):+,.0f} bytes"
        out.append(figures.Figure(f"memory, {what}", mine / theirs, bar, said=said))
    return out


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tools", type=Path, default=TOOLS, help="where the tiny pipelines are built")
    given = parser.parse_args()
    torch.set_num_threads(1)
    title = f"A pipeline's call with our loop inside ({figures.versions()})"
    return figures.report(title, measure(given.tools, given.steps, given.turns), given.json)


if __name__ == "__main__":
    raise SystemExit(main())
