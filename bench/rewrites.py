"""Rewrites of networks beside the network in float32: the time of a call, and how far x0 and samples drift.

    python bench/rewrites.py [--only bf16 int8-dynamic+bf16 ...] [--networks digits unet wide] [--repeats 5] [--json]

    time      one call on 16, over one call in float32, taking turns, one thread                      no bar
    x0        |x0 - x0 of float32| / |x0 of float32| at the same points, the largest of 20 levels     bar
    samples   the same of samples after 20 Euler steps from the same seeds                            no bar

The networks are `digits`, a transformer of width 96; and, with weights drawn from a key, the UNet of the recipe
`digits-unet` at 32x32 and a transformer of width 512.
Bars are what the format of numbers allows: one step for each of five blocks (2^-8, 1/127), or the order of sums. Samples of
weights that were drawn follow no data, so a drift grows with every step.
"""

from __future__ import annotations

import time
from typing import Any

import figures

NAMES = ("bf16", "channels-last", "compile", "int8-dynamic", "bf16+channels-last")
BARS = {"bf16": 5 / 256, "int8-dynamic": 5 / 127, "channels-last": 1e-5, "compile": 1e-5, "bf16+channels-last": 5 / 256}
BATCH, STEPS = 16, 20


def models() -> dict[str, Any]:
    """The shipped transformer, and a UNet and a wide transformer with random weights."""
    import torch

    import ebbtide as ebb
    from ebbtide.core.key import Noise, keys
    from ebbtide.zoo.networks import DiT, UNet, draw

    def drawn(kind: Any) -> Any:
        module = kind.build().requires_grad_(False)
        draw(module, Noise(keys([0]), torch.zeros(1, dtype=torch.int64)))
        return ebb.load(module, process="flow", like=torch.zeros(kind.about()["shape"]), labels=10, call=call)

    def call(module: Any, x: Any, clock: Any, cond: Any) -> Any:
        return module(x, clock, class_labels=cond["label"]).sample[:, :1]

    wide = DiT(layers=2, heads=8, width=64)
    return {"digits": ebb.load("digits"), "unet": drawn(UNet(size=32)), "wide": drawn(wide)}


def far(a: Any, b: Any) -> float:
    """The distance of two tensors over the size of the second."""
    return float((a - b).norm() / b.norm())


def measured(title: str, model: Any, name: str, repeats: int) -> list[figures.Figure]:
    """Time and drift of one rewrite, or of several in a row; nothing where they are refused."""
    import torch

    import ebbtide as ebb
    from ebbtide import api

    plan = ebb.Plan(grid={"name": "linear", "steps": STEPS})
    labels = [j % 10 for j in range(BATCH)]
    plain, state = api.begin(model, plan, labels, BATCH)
    try:
        changed, other = api.begin(model, plan.replace(network=name.split("+")), labels, BATCH)
    except ebb.EbbError as error:
        print(f"{title} {name}: refused: {error}")
        return []

    def call(loop: Any) -> Any:
        with torch.no_grad():
            return loop.ask(state)(state.x, state.t).mean

    began = time.perf_counter()
    call(changed)
    first = time.perf_counter() - began
    drifts = []
    while not plain.done(state):
        drifts.append(far(call(changed), call(plain)))
        state, other = plain.step(state).state, changed.step(other).state
    end = far(other.x, state.x)
    took = figures.interleaved({"plain": lambda: call(plain), "changed": lambda: call(changed)}, repeats)
    said = f"{1e3 * took['changed']:.1f} ms / {1e3 * took['plain']:.1f} ms, first call {first:.1f} s"
    worst = max(drifts)
    return [
        figures.Figure(f"{title} {name}, time", took["changed"] / took["plain"], said=said),
        figures.Figure(f"{title} {name}, x0", 100 * worst, 100 * BARS.get(name, 1.0), "%", f"{worst:.1e}"),
        figures.Figure(f"{title} {name}, samples", 100 * end, None, "%", f"{end:.1e}"),
    ]


def main() -> int:
    """The command line."""
    import torch

    parser = figures.parser(__doc__)
    parser.add_argument("--only", nargs="+", default=list(NAMES), help="rewrites, or several joined by +")
    parser.add_argument("--networks", nargs="+", help="some of digits, unet, wide; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {k: m for k, m in models().items() if k in (given.networks or (k,))}
    found = [f for t, m in chosen.items() for n in given.only for f in measured(t, m, n, given.repeats)]
    return figures.report(f"Rewrites of a network ({figures.versions()})", found, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
