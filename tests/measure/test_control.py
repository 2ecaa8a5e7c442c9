"""Policies in a closed loop: who is driven, by which plan, on what it saw, and PushT itself where it is installed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.measure.control import drive
from ebbtide.measure.pusht import PushT

FIRST = ebb.Plan(grid={"name": "linear", "steps": 4})
LATER = ebb.Plan(start={"name": "warm", "shift": 2}, grid={"name": "explicit", "times": [0.1, 0.0]})


@dataclass
class Line:
    """Points on a line that are over beyond 1; what each did and saw is kept."""

    place: Tensor
    done: list[Tensor] = field(default_factory=list)

    @property
    def over(self) -> Tensor:
        return self.place > 1

    def seen(self) -> dict[str, Tensor]:
        return {"obs": self.place[:, None]}

    def act(self, actions: Tensor) -> None:
        self.place = torch.where(self.over, self.place, self.place + actions[:, 0])
        self.done.append(actions[:, 0])


def steady(pace: float = 0.2) -> ebb.Model:
    """A policy whose chunks are 6 actions: the pace, less a tenth of the place, whatever x is."""

    def say(x: Tensor, clock: Tensor, obs: Tensor) -> Tensor:
        return (pace - obs / 10)[:, :, None].expand_as(x)

    like = torch.zeros(6, 1, dtype=torch.float64)
    return ebb.load(say, process="vp-cosine", like=like, predicts="x0")


def test_actions_are_those_of_the_plan_of_their_tick() -> None:
    world = Line(torch.tensor([0.0, 0.5], dtype=torch.float64))
    ticks = list(drive(steady(), world, FIRST, LATER, seeds=[0, 1], ticks=2, every=2))
    place = torch.tensor([0.0, 0.5], dtype=torch.float64)
    for tick in range(2):
        pace = 0.2 - place / 10
        assert torch.allclose(ticks[tick].plan[:, 0, 0], pace)
        assert all(torch.equal(world.done[2 * tick + k], ticks[tick].plan[:, k, 0]) for k in range(2))
        place = place + 2 * pace
    assert torch.allclose(world.place, place)
    assert [t.calls.tolist() for t in ticks] == [[4, 4], [1, 1]]


def test_what_is_over_is_planned_for_no_more() -> None:
    world = Line(torch.tensor([0.9, -9.0], dtype=torch.float64))
    ticks = list(drive(steady(), world, FIRST, seeds=[0, 1], ticks=4, every=2))
    assert [t.calls.tolist() for t in ticks] == [[4, 4], *[[0, 4]] * 3]
    assert torch.equal(ticks[3].plan[0], ticks[0].plan[0])
    world = Line(torch.tensor([2.0, 2.0]))
    assert not list(drive(steady(), world, FIRST, seeds=[0, 1], ticks=4))


def test_a_world_alone_is_driven_as_among_others() -> None:
    """Seeds are of the world and the tick, under a solver that draws, and where a neighbour ends."""
    plan = FIRST.replace(solve="ancestral")
    model = ebb.load(lambda x, clock, obs: 0.5 * x, process="vp-cosine", like=torch.zeros(6, 1, dtype=torch.float64))
    both, alone = (Line(torch.tensor(v, dtype=torch.float64)) for v in ([2.0, -5.0], [-5.0]))
    many = list(drive(model, both, plan, LATER, seeds=[7, 8], ticks=3, every=2))
    one = list(drive(model, alone, plan, LATER, seeds=[8], ticks=3, every=2))
    for a, b in zip(many, one, strict=True):
        assert torch.equal(a.plan[1:], b.plan)
    assert len({float(t.plan[0, 0, 0]) for t in one}) == 3


def test_a_plan_cannot_be_followed_beyond_its_end() -> None:
    with pytest.raises(EbbError, match="every"):
        next(drive(steady(), Line(torch.zeros(1)), FIRST, seeds=[0], ticks=1, every=7))


def test_pusht() -> None:
    pytest.importorskip("gym_pusht", reason="needs the extra pusht")
    world = PushT([3, 4])
    began = world.seen()["obs"]
    assert began.shape == (2, 2, 5)
    assert torch.equal(began[:, 0], began[:, 1])
    there = torch.tensor([[-0.9, -0.9], [0.5, 0.5]])
    for _ in range(30):
        world.act(there)
    agent = world.seen()["obs"][:, -1, :2]
    assert torch.allclose(
        agent[1], torch.full((2,), 384.0), atol=40
    )  # 0.5 of 256 from the middle, if nothing is in the way
    assert world.coverage.shape == (2, 30)
    assert world.pictures(96).shape == (2, 96, 96, 3)
    on = world.envs[0]
    on.block.angle = torch.pi / 4
    on.block.position = (256, 256)  # after it was turned, which moves it
    world.act(there)
    assert world.over.tolist() == [True, False]
    before = world.seen()["obs"][0, -1]
    world.act(-there)
    assert torch.equal(world.seen()["obs"][0, -1], before)
    assert world.coverage[0, -1] == world.coverage[0, -2]


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gym_pusht", None)
    monkeypatch.setitem(__import__("sys").modules, "gym_pusht.envs", None)
    with pytest.raises(EbbError, match="pusht"):
        PushT([0])
