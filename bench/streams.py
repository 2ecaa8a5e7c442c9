"""Streams: network calls and time of a frame, in one batch with its neighbours against alone, and guidance without its calls.

    python bench/streams.py [--model digits] [--frames 24] [--turns 5] [--json]

calls       network calls a frame of a stream of four steps, once it is full; alone it is four       bar 1
gap         the largest difference of a frame to the same one sampled alone                          bar 1e-5
time        of a frame in the stream, over that of a frame alone                                     bar 1 / 1.2
guidance    of a frame with residual guidance, over that with classifier-free guidance, both streamed
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

import ebbtide as ebb
import figures
from ebbtide.parallel.streams import Stream
from ebbtide.systems.parallel.streamdiffusion import STEPS, Calls, scene

PLAN = ebb.Plan(grid={"name": "linear", "steps": 6}, start={"name": "encoded", "last": STEPS})


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("--model", default="digits", help="the model that samples the frames")
    parser.add_argument("--frames", type=int, default=24, help="how many there are")
    parser.add_argument("--turns", type=int, default=5, help="how often each side runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, frames = ebb.load(given.model), scene(given.frames)

    def run(plan: ebb.Plan, batched: bool = True) -> Tensor:
        return torch.stack([s.x for s in Stream(model, plan, cond=3, batched=batched)(frames)])

    counted = Calls(model.denoiser)
    stream = Stream(replace(model, denoiser=counted), PLAN, cond=3)
    steady = [counted.calls for _ in stream(frames)]
    most = max(b - a for a, b in itertools.pairwise(steady))
    own = PLAN.replace(guide=[{"name": "residual-guidance", "scale": 1.4}])
    cfg = PLAN.replace(guide=[{"name": "cfg", "scale": 2.0}])
    sides = {
        "stream": lambda: run(PLAN),
        "alone": lambda: run(PLAN, batched=False),
        "residual": lambda: run(own),
        "cfg": lambda: run(cfg),
    }
    taken = {k: v / given.frames for k, v in figures.interleaved(sides, given.turns, each=1).items()}
    told = {k: f"{1e3 * v:.1f} ms" for k, v in taken.items()}
    gap = float((run(PLAN) - run(PLAN, batched=False)).abs().max())
    found = [
        figures.Figure("network calls a frame", most, 1.0),
        figures.Figure("gap to frames alone", gap, 1e-5, unit="", said=f"{gap:.1e}"),
        figures.Figure(
            "time of a frame, over alone",
            taken["stream"] / taken["alone"],
            1 / 1.2,
            said=f"{told['stream']} / {told['alone']}",
        ),
        figures.Figure(
            "time with residual guidance, over CFG",
            taken["residual"] / taken["cfg"],
            said=f"{told['residual']} / {told['cfg']}",
        ),
    ]
    return figures.report(f"Streams of {given.model} ({figures.versions()})", found, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
