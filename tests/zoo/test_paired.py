"""Pairs to learn from, and networks that begin as others: the same whenever they are asked for, and true to their formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.learn.reflow import Reflow
from ebbtide.learn.trajectory import Trajectories
from ebbtide.zoo import recipes, reference
from ebbtide.zoo.drawn import Ways, load_ways, save_ways, ways_of
from ebbtide.zoo.models import model_of
from ebbtide.zoo.networks import StudentDiT
from ebbtide.zoo.paired import Degraded, blur, degrade
from ebbtide.zoo.plane import PlaneMLP, ring
from ebbtide.zoo.shapes import LIGHT, TALL, Shapes, edges


def test_blur_keeps_the_mean_and_widens_by_its_width() -> None:
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[0, 0, 20, 20] = 1
    soft = blur(x, 1.5)[0, 0]
    place = torch.arange(41, dtype=torch.float64) - 20
    assert float(soft.sum()) == pytest.approx(1)
    assert float((soft.sum(0) * place**2).sum()) == pytest.approx(1.5**2, rel=0.15)  # the bell is cut at two widths


def test_degraded_pictures_are_their_own_wherever_they_stand() -> None:
    data = Degraded(reference.pictures())
    some, alone = data.rows(torch.tensor([3, 8]))[0], data.rows(torch.tensor([8]))[0]
    torch.testing.assert_close(some[1:], alone)
    assert torch.equal(alone[:, 0], reference.pictures().rows(torch.tensor([8]))[0])
    other = Degraded(reference.pictures(), seed=1)
    assert other.digest != data.digest
    assert not torch.equal(other.rows(torch.tensor([8]))[0][:, 1], alone[:, 1])


def test_degrading_a_plain_picture_leaves_noise_of_its_grain() -> None:
    x = torch.full((4000, 1, 8, 8), 0.25)
    y = degrade(x, Noise(keys(range(4000)), torch.zeros(4000, dtype=torch.int64)))
    assert float(y.mean()) == pytest.approx(0.25, abs=0.005)
    assert float(y[:, 0, 0, 0].std()) == pytest.approx(0.1, rel=0.05)  # a corner is one small pixel
    with pytest.raises(EbbError, match="blocks of 4"):
        degrade(x[..., :7, :7], Noise(keys([0]), torch.zeros(1, dtype=torch.int64)))


def test_scenes_do_not_depend_on_their_batch() -> None:
    data = Shapes()
    some = data.rows(torch.arange(5))[0]
    assert torch.equal(data.rows(torch.tensor([3]))[0][0], some[3])
    assert Shapes(seed=1).digest != data.digest
    assert float(some.abs().max()) <= 1


def test_a_dome_is_as_high_and_as_bright_as_its_formula() -> None:
    """Where brightness obeys Lambert's law for the normal of the height that is given beside it."""
    pairs = Shapes(size=96, solids=1).rows(torch.arange(40))[0]
    height, picture = (pairs[:, 0, 0] + 1) * TALL / 3.6, (pairs[:, 1, 0] + 1) / 2
    wide = 2 / 96
    slope = torch.stack([height.diff(dim=-1)[:, :-1], height.diff(dim=-2)[..., :-1]], -1) / wide
    smooth = (slope.norm(dim=-1) < 1.5) & (height[:, :-1, :-1] > 0)
    normal = torch.cat([-slope, torch.ones_like(slope[..., :1])], -1)
    light = (normal @ torch.tensor(LIGHT)) / normal.norm(dim=-1)
    paint = picture[:, :-1, :-1] / (0.15 + 0.85 * light.clamp_min(0))
    for k in range(40):  # each solid has one paint
        seen = paint[k][smooth[k]]
        if len(seen) > 50:
            assert float((seen - seen.median()).abs().quantile(0.75)) < 0.05


def test_edges_are_walls() -> None:
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 1
    found = edges(step)[0, 0]
    assert found[:, 3:5].all()
    assert not found[:, :3].any()
    assert not found[:, 5:].any()


@pytest.mark.parametrize("far", [False, True])
def test_a_student_begins_as_its_teacher(far: bool) -> None:
    teacher = ebb.load("digits")
    network = StudentDiT(far=far)
    objective = Trajectories() if far else Reflow()
    module = network.build(Noise(keys([0]), torch.zeros(1, dtype=torch.int64)))
    student = model_of(module, {**network.about(), **objective.about()}, "student")
    assert student.denoiser.jumps is far
    plan = ebb.Plan(solve="jump", grid={"name": "linear", "steps": 2})
    mine, its = (ebb.sample(m, plan, cond=[3, 5], n=2).x for m in (student, teacher))
    torch.testing.assert_close(mine, its)
    with pytest.raises(EbbError, match="another shape"):
        StudentDiT(layers=4).build(Noise(keys([0]), torch.zeros(1, dtype=torch.int64)))


def test_ways_end_where_samples_do(tmp_path: Path) -> None:
    plan = ebb.Plan(solve="heun", grid={"name": "linear", "steps": 8})
    ways = ways_of(ring(), plan, 6, 40, keep=2)
    x: Tensor = ebb.sample(ring(), plan, n=6, seed=40).x
    assert torch.equal(ways.states[:, 0], x)
    assert ways.states.shape == (6, 5, 2)
    assert ways.times.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert torch.equal(ways.states[:, -1], ebb.api.begin(ring(), plan, n=6, seed=40)[1].x)
    save_ways(ways, tmp_path / "w.npz")
    again = load_ways(tmp_path / "w.npz")
    assert again.digest == ways.digest
    assert torch.equal(again.rows(torch.tensor([4]))[0], ways.states[4:5])
    assert Ways(ways.states * 2, ways.times, ways.labels).digest != ways.digest
    with pytest.raises(EbbError, match=r"zoo\.drawn"):
        load_ways(tmp_path / "none.npz")


def test_a_point_network_can_begin_as_another() -> None:
    first = PlaneMLP().build(Noise(keys([1]), torch.zeros(1, dtype=torch.int64)))
    second = PlaneMLP(start=lambda: first).build(Noise(keys([2]), torch.zeros(1, dtype=torch.int64)))
    x, clock = torch.ones(3, 2), torch.tensor([0.0, 500.0, 1000.0])
    assert torch.equal(first(x, clock).sample, second(x, clock).sample)


def test_recipes_say_what_they_learn_from() -> None:
    with pytest.raises(EbbError, match=r"zoo\.drawn digits"):
        recipes.read(recipes.recipe("digits-ctm"))
    with pytest.raises(EbbError, match="makes itself"):
        recipes.read(recipes.recipe("shapes-depth"), "some.npz")


def test_a_picture_must_be_given_beside() -> None:
    with pytest.raises(EbbError, match="far end"):
        ebb.sample("digits-resshift")
