"""The same benches on a GPU: what the engine adds where calls are queued, and what a rewrite and a batch buy there.

    python bench/gpu.py [--device cuda] [--turns 15] [--json]

    steps      one step of each solver against the same scheduler of diffusers, both at 16 x 4 x 64 x 64 on the device,
               synchronised once a run: queueing counts, waiting does not                          bar 1.0
    engine     one Euler step of `digits` at batch 256 against one bare call of its network        bar 1.05
    rewrites   a call of the network in bfloat16, and compiled, against float32                    no bar
    memory     the most that sampling 1024 digits holds on the device, over one bare call          bar 1.3
    samples    digits a second, 20 Euler steps, by batch                                           no bar

The table says which device it was. Without one the script says so and measures nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
import figures
import overhead
import schedulers
from ebbtide.api import begin
from ebbtide.core import registry
from ebbtide.interop.schedulers import read

SHAPE = (16, 4, 64, 64)
STEPS, BATCH, MANY = 20, 256, 1024
COMPARED = ("euler", "dpmpp-2m", "dpmpp-3m", "heun", "dpmpp-2s", "unipc", "deis", "lms")


def timed(runs: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Median seconds of the wall clock: the processor waits where the device works."""
    return figures.interleaved(runs, turns, clock=time.perf_counter)


def waited(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The run, until the device has done it."""

    def until() -> Any:
        out = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return out

    return until


def mine(config: schedulers.Config, device: torch.device) -> Callable[[], Tensor]:
    """A run of ebbtide on the device."""
    found = read(config, STEPS)
    model = ebb.load(overhead.Trivial(registry.make("process", found.process)), like=torch.zeros(SHAPE[1:]))
    loop, state = begin(model, found.plan, n=SHAPE[0], device=device)

    def run() -> Tensor:
        for step in loop.run(state):
            last = step.state.x
        return last

    return run


def theirs(config: schedulers.Config, device: torch.device) -> Callable[[], Tensor]:
    """A run of a diffusers scheduler on the device."""
    scheduler = schedulers.build(config)
    start = torch.randn(SHAPE, device=device)

    def run() -> Tensor:
        scheduler.set_timesteps(STEPS, device=device)
        x = start * getattr(scheduler, "init_noise_sigma", 1.0)
        with torch.no_grad():
            for t in scheduler.timesteps:
                shown = scheduler.scale_model_input(x, t)
                x = scheduler.step(overhead.network(shown, t), t, x, return_dict=False)[0]
        return x

    return run


def steps(device: torch.device, turns: int) -> Iterator[figures.Figure]:
    """Whole loops beside a network that costs nothing."""
    for name in COMPARED:
        config = overhead.EXACT[name]
        runs = {"mine": waited(mine(config, device), device), "theirs": waited(theirs(config, device), device)}
        taken = timed(runs, turns)
        a, b = (1e6 * taken[k] / STEPS for k in ("mine", "theirs"))
        yield figures.Figure(
            f"step of {name} / {schedulers.titled(config)}", a / b, 1.0, said=f"{a:.1f} us / {b:.1f} us"
        )


def engine(device: torch.device, turns: int) -> Iterator[figures.Figure]:
    """A step of `digits` against its network's call, plain and rewritten; and memory."""
    model = ebb.load("digits", device=device)
    labels = [k % 10 for k in range(BATCH)]
    plan = ebb.Plan(grid={"name": "linear", "steps": STEPS})

    def sampled(**slots: Any) -> Callable[[], Any]:
        loop, state = begin(model, plan.replace(**slots), labels, BATCH, device=device)
        return waited(lambda: [loop.step(state) for _ in range(STEPS)], device)

    module: Any = model.denoiser.module  # type: ignore[attr-defined]  # a Network
    x, t = torch.zeros(BATCH, 1, 28, 28, device=device), torch.full((BATCH,), 500.0, device=device)
    label = torch.tensor(labels, device=device)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(STEPS):
                module(x, t, class_labels=label)

    runs = {"bare": waited(bare, device), "step": sampled()}
    runs |= {name: sampled(network=[name]) for name in ("bf16", "compile")}
    for run in runs.values():
        run()  # programs are written, memory is laid out
    taken = timed(runs, turns)
    for name, bar in (("step", 1.05), ("bf16", None), ("compile", None)):
        said = f"{1e3 * taken[name] / STEPS:.2f} ms / {1e3 * taken['bare'] / STEPS:.2f} ms"
        yield figures.Figure(f"digits, {name} / bare call, batch {BATCH}", taken[name] / taken["bare"], bar, said=said)
    for batch in (16, BATCH, MANY):
        asked = [k % 10 for k in range(batch)]
        run = waited(lambda b=batch, a=asked: ebb.sample(model, plan, cond=a, n=b, device=device), device)  # type: ignore[misc]
        run()
        seconds = timed({"sample": run}, 3)["sample"]
        yield figures.Figure(f"digits a second, batch {batch}", batch / seconds, unit="/s")
    yield figures.Figure(
        "memory, sampling / bare call", held(device, run) / held(device, bare_many(module, device)), 1.3
    )


def bare_many(module: Any, device: torch.device) -> Callable[[], Any]:
    """One call of the network on as many rows as are sampled."""
    x, t = torch.zeros(MANY, 1, 28, 28, device=device), torch.full((MANY,), 500.0, device=device)
    label = torch.zeros(MANY, dtype=torch.int64, device=device)

    def run() -> None:
        with torch.no_grad():
            module(x, t, class_labels=label)

    return run


def held(device: torch.device, run: Callable[[], Any]) -> float:
    """The most bytes that lay on the device during a run."""
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_allocated(device))


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--turns", type=int, default=15)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU is at hand: nothing was measured.")
        return 0
    device = torch.device(given.device)
    found = [*steps(device, given.turns), *engine(device, given.turns)]
    return figures.report(f"On {torch.cuda.get_device_name(device)} ({figures.versions()})", found, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
