"""What one step costs beside the network: ebbtide against the schedulers of diffusers, on a network that costs nothing.

    python bench/overhead.py [--turns 15] [--json]

The network multiplies its input by 0.1. Both sides run the same 20 steps of the same variance-preserving diffusion, each
from its first step to its last, in turn, on one thread; the figure is median time a step over median time a step.

    euler      against DDIMScheduler at eta 0                                  bar 0.8
    dpmpp-2m   against DPMSolverMultistepScheduler, dpmsolver++, order 2       bar 0.6
    ancestral  against EulerAncestralDiscreteScheduler                         bar 2 for one element, 1.1 for 16

Ebbtide's side is the whole loop: grid, layers, border, solver, commit and noise keyed by element. Its network answers x0,
the form all its parts speak; theirs answers eps, the form that all three schedulers speak by default (and EulerAncestral
alone). With `--predicts eps` ours answers eps too, and the border has to convert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
import figures
from ebbtide.api import begin
from ebbtide.core.parts import Denoiser, Process
from ebbtide.core.state import Pred, Tree
from ebbtide.denoise.model import process as make_process
from ebbtide.denoise.network import Network

STEPS = 20
SHAPES = ((1, 4, 64, 64), (16, 4, 64, 64))
PAIRS = {
    "euler": ("DDIM", (0.8, 0.8)),
    "dpmpp-2m": ("DPM++2M", (0.6, 0.6)),
    "ancestral": ("EulerAncestral", (2.0, 1.1)),
}


def network(x: Tensor, *_: Any) -> Tensor:
    """A network that costs nothing."""
    return x * 0.1


class Trivial(Denoiser):
    """The same, as a denoiser that speaks x0."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        return Pred(mean=network(x))


def ours(solve: str, shape: tuple[int, ...], predicts: str) -> Callable[[], Tensor]:
    """A run of ebbtide, from a state made beforehand."""
    process = make_process("vp-linear")
    denoiser = Trivial(process) if predicts == "x0" else Network(network, process, predicts="eps")
    model = ebb.load(denoiser, like=torch.zeros(shape[1:]))
    times = torch.linspace(0.98, 0.02, STEPS + 1, dtype=torch.float64).tolist()
    loop, state = begin(model, ebb.Plan(solve=solve, grid={"name": "explicit", "times": times}), n=shape[0])

    def run() -> Tensor:
        for step in loop.run(state):
            last = step.state.x
        return last

    return run


def theirs(name: str, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    """A run of a diffusers scheduler; what it remembers of the run before is put back first."""
    import diffusers

    scheduler: Any = {
        "DDIM": lambda: diffusers.DDIMScheduler(clip_sample=False),
        "DPM++2M": diffusers.DPMSolverMultistepScheduler,
        "EulerAncestral": diffusers.EulerAncestralDiscreteScheduler,
    }[name]()
    scheduler.set_timesteps(STEPS)
    scheduler.is_scale_input_called = True
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
    noise = {"generator": generator} if name == "EulerAncestral" else {}

    def run() -> Tensor:
        for attribute in ("_step_index", "_begin_index"):
            if hasattr(scheduler, attribute):
                setattr(scheduler, attribute, None)
        if hasattr(scheduler, "model_outputs"):
            scheduler.model_outputs, scheduler.lower_order_nums = [None] * scheduler.config.solver_order, 0
        x = start
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(network(x, t), t, x, return_dict=False, **noise)[0]
        return x

    return run


def measure(turns: int, predicts: str) -> list[figures.Figure]:
    """All ratios; every run of one shape takes turns with all others of it."""
    out = []
    for place, shape in enumerate(SHAPES):
        runs: dict[str, Callable[[], Tensor]] = {}
        for solve, (other, _) in PAIRS.items():
            runs[solve] = ours(solve, shape, predicts)
            runs[other] = theirs(other, shape)
        taken = figures.interleaved(runs, turns)
        for solve, (other, bars) in PAIRS.items():
            mine, yours = (1e6 * taken[k] / STEPS for k in (solve, other))
            title = f"{solve} / {other}, {'x'.join(map(str, shape))}"
            out.append(figures.Figure(title, mine / yours, bars[place], said=f"{mine:.1f} us / {yours:.1f} us"))
    return out


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--predicts", choices=("x0", "eps"), default="x0", help="what our network answers")
    given = parser.parse_args()
    torch.set_num_threads(1)
    title = f"One step beside the network ({figures.versions()})"
    return figures.report(title, measure(given.turns, given.predicts), given.json)


if __name__ == "__main__":
    raise SystemExit(main())
