"""PushT with plans that go on from the last: python examples/pusht.py [episode.gif [episodes]]      (pip install gym-pusht)
Every plan from noise takes 100 calls. Later ones begin from the plan before, shifted by what was done since, and take few."""

import math
import sys

import torch
from PIL import Image

import ebbtide as ebb
from ebbtide.measure.control import drive
from ebbtide.measure.pusht import PushT
from ebbtide.systems import presets


def main(out: str = "episode.gif", episodes: str = "4", actions: int = 300) -> tuple[float, float]:
    model, seeds = ebb.load("pusht"), list(range(int(episodes)))
    first, later = (ebb.Plan.from_dict(presets()[name]) for name in ("rti-dp-first", "rti-dp-pusht"))
    world, calls, frames, every = PushT(seeds), 0, [], later.start["shift"]
    for tick in drive(model, world, first, later, seeds=seeds, ticks=math.ceil(actions / every), every=every):
        calls += int(tick.calls.sum())
        frames.append(Image.fromarray(torch.cat(list(world.pictures()), 1).numpy()))
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=100 * every, loop=0)
    best, each = float(world.coverage.amax(1).mean()), calls / len(seeds)
    print(f"{len(seeds)} episodes: best coverage {best:.1%}, {each:.0f} calls each; frames in {out}")
    return best, each


if __name__ == "__main__":
    main(*sys.argv[1:])
