"""What the engine adds to the calls of a real network: time at batch 16, memory at batch 256.

    python bench/engine.py [--repeats 10] [--json]

    time     one Euler step of 16 digits against one bare call of the network on the same 16, 20 steps, taking turns
             step by step, one thread                                                              bar 1.03
    memory   the most that a process holds which samples 256 digits, against one that makes one bare call on 256;
             each in a process of its own                                                          bar 1.3

The second line of memory leaves out what the process holds before it starts (Python, torch, the network): nothing is
promised of it, but it says more about the engine. The model is `digits`, or, in a tree without its weights, the same
network with weights drawn from a key.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import figures

BATCH, MANY, STEPS = 16, 256, 20


def digits() -> Any:
    """The model that ships, or its network with random weights."""
    import ebbtide as ebb
    from ebbtide import zoo

    if "digits" in zoo.names():
        return ebb.load("digits")
    import torch

    from ebbtide.core.key import Noise, keys
    from ebbtide.denoise.model import process
    from ebbtide.zoo.networks import DiT

    return ebb.load(
        DiT().build(Noise(keys([0]), torch.zeros(1, dtype=torch.int64))),
        process=process("flow"),
        like=torch.zeros(1, 28, 28),
        nulls={"label": 10},
        call=lambda module, x, clock, cond: module(x, clock, class_labels=cond["label"]).sample,
        labels=10,
        name="digits (random weights)",
    )


def bare(model: Any, n: int) -> Any:
    """One call of the network by itself, as a user of diffusers writes it."""
    import torch

    module, x = model.denoiser.module, model.batch(n)
    t, label = torch.full((n,), 500.0), torch.arange(n) % 10

    def call() -> Any:
        with torch.no_grad():
            return module(x, t, class_labels=label).sample

    return call


def overhead(repeats: int) -> list[figures.Figure]:
    """Time of a step over time of a bare call."""
    import torch

    import ebbtide as ebb
    from ebbtide.api import begin

    torch.set_num_threads(1)
    model = digits()
    call, clock = bare(model, BATCH), time.process_time
    loop, start = begin(model, ebb.Plan(grid={"name": "linear", "steps": STEPS}), list(range(10)) + [0] * 6, BATCH)
    steps, calls = [], []
    for _ in range(repeats + 1):
        state = start
        while not loop.done(state):
            began = clock()
            state = loop.step(state).state
            middle = clock()
            call()
            steps.append(middle - began)
            calls.append(clock() - middle)
    mine, network = statistics.median(steps[STEPS:]), statistics.median(calls[STEPS:])
    said = f"{1e3 * mine:.2f} ms / {1e3 * network:.2f} ms, {model.name}"
    return [figures.Figure(f"time, batch {BATCH}", mine / network, 1.03, said=said)]


def hold(what: str) -> None:
    """The body of a measured process: prints its memory before and at most."""
    import ebbtide as ebb

    model = digits()
    bare(model, 1)()
    before = figures.peak()
    if what == "bare":
        bare(model, MANY)()
    else:
        labels = [j % 10 for j in range(MANY)]
        ebb.sample(model, ebb.Plan(grid={"name": "linear", "steps": 5}), cond=labels, n=MANY)
    print(json.dumps([before, figures.peak()]))


def memory() -> list[figures.Figure]:
    """Peaks of a run over peaks of a bare call, whole and less what was there before."""
    held = {}
    for what in ("bare", "engine"):
        done = subprocess.run([sys.executable, __file__, "--hold", what], check=True, stdout=subprocess.PIPE, text=True)
        held[what] = json.loads(done.stdout.splitlines()[-1])
    (rest, call), (also, run) = held["bare"], held["engine"]
    grown = figures.Figure(
        f"memory, {MANY}, growth", (run - also) / (call - rest), said=f"{run - also:.0f} MB / {call - rest:.0f} MB"
    )
    return [figures.Figure(f"memory, {MANY}", run / call, 1.3, said=f"{run:.0f} MB / {call:.0f} MB"), grown]


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--hold", choices=("bare", "engine"), help="used by the script itself")
    given = parser.parse_args()
    if given.hold:
        hold(given.hold)
        return 0
    # Memory first: a child's reading may start at what its parent holds.
    found = memory()
    found = [*overhead(given.repeats), *found]
    return figures.report(f"The engine around a network ({figures.versions()})", found, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
