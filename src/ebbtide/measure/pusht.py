"""PushT: a round agent pushes a block like a T onto its outline; the share of the outline that it covers is what counts.

An environment of gym-pusht (the extra `pusht`), many at once. An episode is over when the block covers more than 0.95 of
the outline. Places are in pixels of a square of 512; what a policy gives are places in units of half of it, from the middle.

Shapes   seen()["obs"] (n, looks, 5): agent x y, block x y, angle; actions (n, 2) in [-1, 1]
Paper    Florence et al. 2021, "Implicit behavioral cloning" (arXiv 2109.00137), where the task is from; Chi et al. 2023,
         "Diffusion policy" (2303.04137), section 5.3
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.zoo.demonstrations import HALF


class PushT:
    """Environments begun from `seeds`, as a `measure.control.World`.

    coverage  after each action, one row each, (n, actions so far); of an episode that is over its last stays

    Raises EbbError where gym-pusht is not installed.
    """

    def __init__(self, seeds: Sequence[int], looks: int = 2) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            from gym_pusht.envs import PushTEnv
        except ImportError as error:
            raise EbbError("PushT needs the extra `pusht`: pip install 'ebbtide[pusht]'.") from error
        self.envs: list[Any] = [PushTEnv(obs_type="state", render_mode="rgb_array") for _ in seeds]
        first = [env.reset(seed=int(seed))[0] for env, seed in zip(self.envs, seeds, strict=True)]
        self._states = torch.from_numpy(np.stack(first)).float()[:, None].repeat(1, looks, 1)
        self._over = torch.zeros(len(self.envs), dtype=torch.bool)
        self._coverage: list[Tensor] = []

    @property
    def over(self) -> Tensor:
        """Which episodes have ended in success, (n,)."""
        return self._over

    @property
    def coverage(self) -> Tensor:
        """The share of the outline covered after each action, (n, actions)."""
        return torch.stack(self._coverage, 1)

    def seen(self) -> dict[str, Tensor]:
        """The last states of each."""
        return {"obs": self._states}

    def act(self, actions: Tensor) -> None:
        """One step of a tenth of a second each."""
        now = self._coverage[-1].clone() if self._coverage else torch.zeros(len(self.envs), dtype=torch.float64)
        states = self._states[:, -1].clone()
        places = ((actions.double() + 1) * HALF).clamp(0, 2 * HALF).numpy()
        for k, env in enumerate(self.envs):
            if not self._over[k]:
                state, _, _, _, info = env.step(places[k])
                states[k] = torch.from_numpy(state)
                now[k] = info["coverage"]
        self._states = torch.cat([self._states[:, 1:], states[:, None]], 1)
        self._over = self._over | (now > 0.95)
        self._coverage.append(now)

    def pictures(self, size: int = 128) -> Tensor:
        """What they look like now, (n, size, size, 3) uint8; a size of 96 or more."""
        for env in self.envs:
            env.visualization_width = env.visualization_height = size
        return torch.from_numpy(np.stack([env.render() for env in self.envs]))
