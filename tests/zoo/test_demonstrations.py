"""Demonstrations: what was seen and done at a moment, within its episode; and what a policy is told of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.zoo.demonstrations import HALF, Demonstrations, load_demonstrations
from ebbtide.zoo.policy import ActionDiT, features


@pytest.fixture
def few() -> Demonstrations:
    """Episodes of 3 and 5 moments whose numbers are their places."""
    count = torch.arange(8.0)
    return Demonstrations(count[:, None].expand(8, 5), count[:, None].expand(8, 2), torch.tensor([3, 8]), horizon=4)


def test_chunks_stay_in_their_episode(few: Demonstrations) -> None:
    x, obs = few.rows(torch.tensor([0, 2, 3, 4, 7]))
    assert ((x[..., 0] + 1) * HALF).tolist() == [[0, 1, 2, 2], [2, 2, 2, 2], [3, 4, 5, 6], [4, 5, 6, 7], [7, 7, 7, 7]]
    assert obs[..., 4].tolist() == [[0, 0], [1, 2], [3, 3], [3, 4], [6, 7]]


def test_what_is_no_demonstration_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", state=np.zeros((4, 5)), action=np.zeros((4, 2)), episode_ends=[3])
    np.savez(tmp_path / "b.npz", x=np.zeros(3))
    for name in ("a", "b", "none"):
        with pytest.raises(EbbError, match=name):
            load_demonstrations(tmp_path / f"{name}.npz")


def test_those_of_pusht(shared: Path) -> None:
    data = load_demonstrations(shared / "assets" / "data" / "pusht_demos_lowdim.npz")
    assert len(data) == 25650
    x, obs = data.rows(torch.arange(0, len(data), 100))
    assert x.abs().max() <= 1
    # the agent is drawn to where the action says, and is there, about, a few tenths of a second later
    later = data.rows((torch.arange(0, len(data), 100) + 3).clamp(max=len(data) - 1))[1]
    reached = ((x[:, 2] + 1) * HALF - later[:, -1, :2]).norm(dim=1).median()
    assert reached < ((x[:, 2] + 1) * HALF - obs[:, -1, :2]).norm(dim=1).median()


def test_the_block_sees_the_agent_where_it_stands() -> None:
    """Turned and moved together, agent and block see each other as before."""
    torch.manual_seed(0)
    obs = torch.rand(4, 2, 5) * 100
    turn, shift = torch.tensor(0.7), torch.tensor([30.0, -20.0])
    wheel = torch.stack([torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])])
    moved = torch.cat([obs[..., :2] @ wheel.T + shift, obs[..., 2:4] @ wheel.T + shift, obs[..., 4:] + turn], -1)
    near = [features(v).reshape(4, 2, -1)[..., 6:8] for v in (obs, moved)]
    assert torch.allclose(*near, atol=1e-5)
    again = torch.cat([obs[..., :4], obs[..., 4:] + 2 * torch.pi], -1)
    assert torch.allclose(features(obs), features(again), atol=2e-4)


def test_the_policy_hears_what_it_sees() -> None:
    module = ActionDiT(layers=1).build(Noise(keys([0]), torch.zeros(1, dtype=torch.int64)))
    for weight in module.parameters():
        weight.data.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    x, clock, obs = torch.randn(2, 16, 2), torch.full((2,), 300.0), torch.rand(2, 2, 5) * 400
    before = module(x, clock, obs)
    obs[1, 0, 3] += 5
    assert torch.equal(module(x, clock, obs)[0], before[0])
    assert (module(x, clock, obs)[1] - before[1]).abs().max() > 1e-4
    with pytest.raises(EbbError, match="16"):
        ActionDiT(patch=3).build()
