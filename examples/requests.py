"""Requests that arrive at different times, in one batch: each gets the sample that it would have got alone.

    python examples/requests.py

A server need not wait for a batch to end before it takes in the next request: states at different steps are joined with
`cat`, and the loop moves every element at its own time.
"""

from __future__ import annotations

from dataclasses import replace

import torch

import ebbtide as ebb
from ebbtide.api import begin

ARRIVALS = {0: [7], 3: [1, 2], 8: [4]}  # step of the server: labels asked for
STEPS = 12


def main() -> float:
    """Serve the requests; gives the largest difference to samples drawn alone."""
    model = ebb.load("digits")
    plan = ebb.Plan(solve="dpmpp-2m", grid={"name": "linear", "steps": STEPS}, guide=[{"name": "cfg", "scale": 2.0}])
    batch, labels, at, loop = None, [], 0, None
    while at in ARRIVALS or (batch is not None and not loop.done(batch)):
        for label in ARRIVALS.get(at, ()):
            loop, fresh = begin(model, plan, label, n=1, seed=100 + label)
            fresh = replace(fresh, group=torch.tensor([len(labels)]))
            batch = fresh if batch is None else batch.cat(fresh)
            labels.append(label)
        step = loop.step(batch)
        batch, at = step.state, at + 1
        print(f"step {at:2d}: t = {[round(t, 2) for t in batch.t.tolist()]}, {step.calls} network evaluations")
    gap = max(
        float((ebb.sample(model, plan, cond=label, n=1, seed=100 + label).x[0] - batch.x[row]).abs().max())
        for row, label in enumerate(labels)
    )
    print(f"largest difference to the same requests served alone: {gap:.1e}")
    return gap


if __name__ == "__main__":
    main()
