"""Demonstrations to learn a policy from: what was seen at a moment, and the actions that a person then took.

    obs_k = (s_{k-1}, s_k),   x_k = (u_k, ... u_{k+H-1}) / 256 - 1

Before the first moment of an episode its first state stands, after the last its last action. PushT's states are the place of
the agent, and the place and the angle of the block, in pixels and radians; actions are places the agent is drawn to.

Shapes   obs (n, 2, 5), chunks (n, H, 2) in [-1, 1]
Source   Chi et al. 2023, "Diffusion policy: visuomotor policy learning via action diffusion" (arXiv 2303.04137), section 5.3
Differs  a chunk begins with the action of its moment; in the paper with that of the first moment seen.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError

STATES = Path(__file__).parent / "weights" / "reference" / "pusht.safetensors"
HALF = 256.0
"""Half the side of the square, in pixels: actions are places in units of it, from its middle."""


@dataclass(frozen=True)
class Demonstrations:
    """Episodes, one after another.

    states   (N, S) float32, as the environment gives them
    actions  (N, A) float32, in pixels
    ends     where each episode ends, exclusive, int64
    horizon  H, how many actions a chunk has
    looks    how many states are seen
    digest   sha256 of all of these
    """

    states: Tensor
    actions: Tensor
    ends: Tensor
    horizon: int = 16
    looks: int = 2
    digest: str = field(default="")

    def __post_init__(self) -> None:
        if self.horizon < 1 or self.looks < 1:
            raise EbbError("a chunk has at least 1 action, and at least 1 state is seen.")
        if not self.digest:
            h = hashlib.sha256(repr((self.horizon, self.looks)).encode())
            for v in (self.states, self.actions, self.ends):
                h.update(v.contiguous().numpy().data)
            object.__setattr__(self, "digest", h.hexdigest())

    def __len__(self) -> int:
        return len(self.states)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The chunks (n, H, A) that begin at moments `index` (n,), and what was seen there, (n, looks, S)."""
        episode = torch.searchsorted(self.ends, index, right=True)
        first = torch.cat([torch.zeros(1, dtype=torch.int64), self.ends])[episode, None]
        last = self.ends[episode, None] - 1
        seen = (index[:, None] + torch.arange(1 - self.looks, 1)).maximum(first)
        done = (index[:, None] + torch.arange(self.horizon)).minimum(last)
        return self.actions[done] / HALF - 1, self.states[seen]


def load_demonstrations(path: str | Path, horizon: int = 16) -> Demonstrations:
    """Read an .npz file with `state` (N, 5), `action` (N, 2) and `episode_ends`.

    Raises EbbError for a file that is missing, unreadable, or holds something else.
    """
    try:
        file: Any = np.load(path, allow_pickle=False)
        state, action, ends = (np.asarray(file[k]) for k in ("state", "action", "episode_ends"))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise EbbError(f"{path} cannot be read as demonstrations: it needs state, action and episode_ends.") from error
    if len(state) != len(action) or state.ndim != 2 or action.ndim != 2 or ends[-1:].tolist() != [len(state)]:
        raise EbbError(f"{path} holds {len(state)} states and {len(action)} actions that do not make whole episodes.")
    states, actions = (torch.from_numpy(v.astype(np.float32)) for v in (state, action))
    return Demonstrations(states, actions, torch.from_numpy(ends.astype(np.int64)), horizon)


@functools.cache
def stretches() -> Tensor:
    """What a policy saw in episodes of its own, one stretch of each, state after state: (24, 41, 5) float32.

    `python bench/pusht.py --record FILE` writes such; these are of the shipped recipe, stopped early.
    Data for cards and tests where gym-pusht is not.
    """
    from safetensors.torch import load_file

    return load_file(STATES)["states"]
