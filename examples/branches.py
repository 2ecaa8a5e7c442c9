"""One start, eight endings: stop half way, copy the state, let every copy draw noise of its own.

    python examples/branches.py [branches.png]

Copies get new keys, so under a stochastic solver they part ways; what they share is what was decided before. The first row
branches early, the last one late.
"""

from __future__ import annotations

import sys

import torch

import ebbtide as ebb
from ebbtide.samples import sheet, to_images

ENDINGS, STEPS = 8, 24
AFTER = (1, 4, 8, 16)


def main(out: str = "branches.png") -> None:
    """Write the sheet."""
    model = ebb.load("digits")
    plan = ebb.Plan(solve="ancestral", grid={"name": "linear", "steps": STEPS}, guide=[{"name": "cfg", "scale": 2.0}])
    pictures = []
    for count, step in enumerate(ebb.run(model, plan, cond=3, n=1, seed=5), 1):
        if count not in AFTER:
            continue
        copies = step.state.take(torch.zeros(ENDINGS, dtype=torch.int64))
        state = copies
        for later in ebb.resume(model, plan, copies):
            state = later.state
        pictures += to_images(state.x, model.medium)
    sheet(pictures, columns=ENDINGS, scale=2).save(out)
    print(f"{out}: the rows branch after {', '.join(map(str, AFTER))} of {STEPS} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
