"""Ways that a model's samples took: each sample, the noise that it was made from, and where it was between the two.

    x (n, T + 1, C, H, W):   x[:, 0] the sample,  x[:, k] the state at time t_k,  x[:, T] the noise;   0 = t_0 < ... < t_T = 1

    python -m ebbtide.zoo.drawn digits ways.npz 3000        3,000 ways of 10 steps, guidance 1.5, by UniPC: what students of
                                                            `digits` learn from, as plain data: 50 MB, a few minutes

Students that learn a flow again (`learn.reflow`) use the ends alone, those that learn to jump (`learn.trajectory`) all of it.

Shapes   states (n, T + 1, C, H, W) as they were drawn, not cut to the range of pictures; labels (n,)
Source   Liu, Gong, Liu 2022, "Flow straight and fast" (arXiv 2209.03003), algorithm 1: the coupling (Z_0, Z_1) of a flow
Differs  float16 in the file.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebbtide import api
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.denoise.model import Model

STEPS, SCALE, FIRST = 10, 1.5, 100_000


@dataclass(frozen=True)
class Ways:
    """Samples and how they came to be.

    states   (N, T + 1, *event), the sample first
    times    (T + 1,) float64, rising from 0 to 1
    labels   (N,) int64
    names    of the classes: none are known
    digest   sha256 of all of it
    """

    states: Tensor
    times: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()
    digest: str = field(default="")

    def __post_init__(self) -> None:
        if not self.digest:
            h = hashlib.sha256(repr(tuple(self.states.shape)).encode())
            for v in (self.states, self.times, self.labels):
                h.update(v.contiguous().numpy().data)
            object.__setattr__(self, "digest", h.hexdigest())

    @property
    def pixels(self) -> Tensor:
        """The samples, (N, C, H, W)."""
        return self.states[:, 0]

    def __len__(self) -> int:
        return len(self.states)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The ways `index` (n,), (n, T + 1, C, H, W) float32, and their labels."""
        return self.states[index].float(), self.labels[index]


def ways_of(model: Model, plan: Plan, n: int, seed: int, cond: Any = None, keep: int = 1) -> Ways:
    """n ways that samples take along an even grid; of its points every `keep`-th is kept."""
    _, state = api.begin(model, plan, cond, n, seed)
    states = [state.x, *api.sample(model, plan, cond=cond, n=n, seed=seed, trace=True).trace][::-keep]
    times = torch.linspace(0, 1, len(states), dtype=torch.float64)
    labels = torch.zeros(n, dtype=torch.int64) if cond is None else torch.tensor(cond)
    return Ways(torch.stack(states, 1), times, labels)


def draw_ways(model: str, n: int, seed: int = FIRST, steps: int = STEPS, scale: float = SCALE) -> Ways:
    """n ways of a shipped model's samples, the labels in turn, float16."""
    opened = api.load(model)
    plan = Plan(solve="unipc", grid={"name": "linear", "steps": steps}, guide={"name": "cfg", "scale": scale})
    labels = [k % (opened.labels or 1) for k in range(n)]
    parts = [ways_of(opened, plan, len(labels[k : k + 100]), seed + k, labels[k : k + 100]) for k in range(0, n, 100)]
    return Ways(torch.cat([p.states.half() for p in parts]), parts[0].times, torch.tensor(labels))


def save_ways(ways: Ways, path: str | Path) -> None:
    """Write them as an .npz file, which appears whole or not at all."""
    path = Path(path)
    part = path.with_name(path.name + ".part.npz")
    np.savez(part, states=ways.states.numpy(), times=ways.times.numpy(), labels=ways.labels.numpy())
    part.replace(path)


def load_ways(path: str | Path) -> Ways:
    """Read what `save_ways` wrote. Raises EbbError where the file is missing or is another thing."""
    try:
        with np.load(path, allow_pickle=False) as held:
            states, times, labels = (torch.from_numpy(held[k]) for k in ("states", "times", "labels"))
    except (OSError, ValueError, KeyError) as error:
        raise EbbError(
            f"{path} holds no ways of samples; make them with `python -m ebbtide.zoo.drawn digits {path}`."
        ) from error
    return Ways(states, times.double(), labels.long())


if __name__ == "__main__":
    save_ways(draw_ways(sys.argv[1], int(sys.argv[3]) if len(sys.argv) > 3 else 3000), sys.argv[2])
