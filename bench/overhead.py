"""What one step costs beside the network: ebbtide against the schedulers of diffusers, on a network that costs nothing.

    python bench/overhead.py [--turns 15] [--predicts eps] [--solvers] [--json]

The network multiplies its input by 0.1. Both sides run the same 20 steps of the same diffusion, each from its first step to
its last, in turn, on one thread; the figure is median time over median time.

    euler      against DDIMScheduler at eta 0                                  bar 0.8
    dpmpp-2m   against DPMSolverMultistepScheduler, dpmsolver++, order 2       bar 0.6
    ancestral  against EulerAncestralDiscreteScheduler                         bar 2 for one element, 1.1 for 16

Ours is the plan that the scheduler's own config becomes, and the whole loop: grid, layers, border, solver, commit and noise
keyed by element. `--solvers` measures the solver's own step alone, with the network's calls in it, as `scheduler.step` is:

    every solver that diffusers has too, first-order ones against DDIM         bar 0.8; 1.1 for 16 where noise is drawn

Our network answers x0, the form all its parts speak; theirs answers eps (a flow where that is its
process), the form that its schedulers speak. With `--predicts eps` ours answers that too, and the border has to convert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
import figures
import schedulers
from ebbtide.api import begin
from ebbtide.core import registry
from ebbtide.core.loop import Loop
from ebbtide.core.parts import Denoiser, Process
from ebbtide.core.state import Pred, State
from ebbtide.core.tree import Tree
from ebbtide.denoise.network import Network
from ebbtide.interop.schedulers import Found, read

STEPS = 20
SHAPES = ((1, 4, 64, 64), (16, 4, 64, 64))
FIRST: dict[str, tuple[schedulers.Config, tuple[float, float]]] = {
    "euler": ({"_class_name": "DDIMScheduler", "clip_sample": False}, (0.8, 0.8)),
    "dpmpp-2m": ({"_class_name": "DPMSolverMultistepScheduler"}, (0.6, 0.6)),
    "ancestral": ({"_class_name": "EulerAncestralDiscreteScheduler"}, (2.0, 1.1)),
}
MULTISTEP = {"_class_name": "DPMSolverMultistepScheduler"}
SINGLESTEP = {"_class_name": "DPMSolverSinglestepScheduler"}
EXACT: dict[str, schedulers.Config] = {
    "euler": {"_class_name": "DDIMScheduler", "clip_sample": False},
    "dpmpp-2m": MULTISTEP,
    "heun": {"_class_name": "HeunDiscreteScheduler"},
    "dpm-solver, order 2": {"_class_name": "KDPM2DiscreteScheduler"},
    "dpmpp-3m": {**MULTISTEP, "solver_order": 3},
    "dpmpp-2s": SINGLESTEP,
    "dpm-solver": {**SINGLESTEP, "solver_order": 3, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    "unipc": {"_class_name": "UniPCMultistepScheduler", "solver_order": 3},
    "deis": {"_class_name": "DEISMultistepScheduler", "solver_order": 3},
    "lms": {"_class_name": "LMSDiscreteScheduler"},
    "pndm": {"_class_name": "PNDMScheduler"},
    "ipndm": {"_class_name": "IPNDMScheduler"},
}
DRAWING: dict[str, schedulers.Config] = {
    "ancestral": {"_class_name": "EulerAncestralDiscreteScheduler"},
    "ddpm": {"_class_name": "DDPMScheduler", "clip_sample": False},
    "lcm": {"_class_name": "LCMScheduler"},
    "dpmpp-2m-sde": {**MULTISTEP, "algorithm_type": "sde-dpmsolver++"},
    "dpmpp-3m-sde": {**MULTISTEP, "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    "sa-solver": {"_class_name": "SASolverScheduler"},
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


def bound(found: Found, shape: tuple[int, ...], predicts: str) -> tuple[Loop, State]:
    """A plan on the network that costs nothing, and its first state."""
    process = registry.make("process", found.process)
    kind = found.border["predicts"] if predicts == "eps" else "x0"
    denoiser = Trivial(process) if kind == "x0" else Network(network, process, predicts=kind)
    return begin(ebb.load(denoiser, like=torch.zeros(shape[1:])), found.plan, n=shape[0])


def ours(found: Found, shape: tuple[int, ...], predicts: str) -> Callable[[], Tensor]:
    """A run of ebbtide, from a state made beforehand."""
    loop, state = bound(found, shape, predicts)

    def run() -> Tensor:
        for step in loop.run(state):
            last = step.state.x
        return last

    return run


def alone(found: Found, shape: tuple[int, ...], predicts: str) -> Callable[[], Tensor]:
    """The steps of its solver, each from the state where it stood."""
    loop, state = bound(found, shape, predicts)
    places = []
    for step in loop.run(state):
        places.append((state, state.memory.get("solve", {}), step.state.t))
        state = step.state

    def run() -> Tensor:
        with torch.no_grad():
            for before, memory, s in places:
                last = loop.solve.step(before, memory, s, loop.ask(before, "solve"), loop.process)[0].x
        return last

    return run


def theirs(config: schedulers.Config, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    """A run of a diffusers scheduler."""
    import inspect

    again = schedulers.Again(schedulers.build(config), STEPS)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator) * getattr(again.scheduler, "init_noise_sigma", 1.0)
    draws = "generator" in inspect.signature(again.scheduler.step).parameters
    noise = {"generator": generator} if draws else {}

    def run() -> Tensor:
        scheduler, x = again.fresh(), start
        with torch.no_grad():
            for t in again.timesteps:
                x = scheduler.step(network(x, t), t, x, return_dict=False, **noise)[0]
        return x

    return run


def compared(
    title: str,
    pairs: dict[str, tuple[schedulers.Config, float | None]],
    shape: tuple[int, ...],
    side: Callable[[Found, tuple[int, ...], str], Callable[[], Tensor]],
    turns: int,
    predicts: str,
) -> list[figures.Figure]:
    """Ratios of one shape; all runs of it take turns."""
    runs: dict[str, Callable[[], Tensor]] = {}
    for name, (config, _) in pairs.items():
        runs[name] = side(read(config, STEPS), shape, predicts)
        runs[f"their {name}"] = theirs(config, shape)
    taken = figures.interleaved(runs, turns)
    out = []
    for name, (config, bar) in pairs.items():
        mine, yours = (1e6 * taken[k] / STEPS for k in (name, f"their {name}"))
        what = f"{title} {name} / {schedulers.titled(config)}, {'x'.join(map(str, shape))}"
        out.append(figures.Figure(what.strip(), mine / yours, bar, said=f"{mine:.1f} us / {yours:.1f} us"))
    return out


def measure(turns: int, predicts: str) -> list[figures.Figure]:
    """Whole loops."""
    out = []
    for place, shape in enumerate(SHAPES):
        pairs: dict[str, tuple[schedulers.Config, float | None]] = {
            k: (c, bars[place]) for k, (c, bars) in FIRST.items()
        }
        out += compared("", pairs, shape, ours, turns, predicts)
    return out


def solvers(turns: int, predicts: str) -> list[figures.Figure]:
    """Steps of solvers."""
    out = []
    for place, shape in enumerate(SHAPES):
        pairs: dict[str, tuple[schedulers.Config, float | None]] = {k: (c, 0.8) for k, c in EXACT.items()}
        pairs |= {k: (c, (None, 1.1)[place]) for k, c in DRAWING.items()}
        out += compared("step of", pairs, shape, alone, turns, predicts)
    return out


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--predicts", choices=("x0", "eps"), default="x0", help="what our network answers")
    parser.add_argument("--solvers", action="store_true", help="the steps of all solvers that diffusers has too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    title = f"One step beside the network ({figures.versions()})"
    taken = (solvers if given.solvers else measure)(given.turns, given.predicts)
    return figures.report(title, taken, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
