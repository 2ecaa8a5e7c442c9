"""Video with times of frames: who looks at whom, what a clip is, and that both attentions are learnt at once."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ebbtide as ebb
from ebbtide.app.learning import Show
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.plan import Plan
from ebbtide.learn.flow_matching import FlowMatching, UnitMatching
from ebbtide.learn.train import train
from ebbtide.zoo import recipes
from ebbtide.zoo.data import Pictures
from ebbtide.zoo.moving import FAST, SLOW, Moving, load_moving
from ebbtide.zoo.video import FrameMatching, VideoDiT, causal

SMALL = VideoDiT(frames=6, size=12, patch=6, layers=2, heads=2, width=16, classes=2)


def rows(n: int, step: int = 0) -> Noise:
    return Noise(keys(range(n)), torch.full((n,), step))


@pytest.fixture(scope="module")
def module() -> nn.Module:
    """A network in which nothing is zero."""
    made = SMALL.build(Noise(keys([3]), torch.zeros(1, dtype=torch.int64)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return made


@pytest.fixture(scope="module")
def asked() -> tuple[Tensor, Tensor, Tensor]:
    """Four clips, a time for each of their frames, and labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 6, 1, 12, 12, generator=generator)
    return x, 1000 * torch.rand(4, 6, generator=generator), torch.tensor([0, 1, 2, 1])


def test_no_frame_looks_ahead_where_causal(module: nn.Module, asked: tuple[Tensor, Tensor, Tensor]) -> None:
    x, clock, label = asked
    flags = torch.tensor([True, False, True, False])
    with torch.no_grad():
        before = module(x, clock, label, flags)
        for k in range(6):
            y, late = x.clone(), clock.clone()
            y[:, k] += 1
            late[:, k] = 999 - late[:, k]
            changed = (module(y, late, label, flags) - before).abs().amax((2, 3, 4)) > 1e-6
            assert changed.tolist() == [[not c or f >= k for f in range(6)] for c in flags.tolist()]
        short = module(x[:, :4], clock[:, :4], label, True)
        assert torch.allclose(short, module(x, clock, label, True)[:, :4], atol=1e-5)


def test_a_clip_alone_is_as_among_others(module: nn.Module, asked: tuple[Tensor, Tensor, Tensor]) -> None:
    x, clock, label = asked
    for flags in (torch.zeros(4) > 0, torch.arange(4) % 2 == 0, torch.ones(4) > 0):
        with torch.no_grad():
            whole = module(x, clock, label, flags)
            for k in range(4):
                alone = module(x[k : k + 1], clock[k : k + 1], label[k : k + 1], bool(flags[k]))
                assert torch.allclose(alone[0], whole[k], rtol=0, atol=1e-5)


def test_one_time_is_that_time_for_every_frame(module: nn.Module, asked: tuple[Tensor, Tensor, Tensor]) -> None:
    x, clock, label = asked
    with torch.no_grad():
        one = module(x, clock[:, 0], label)
        assert torch.equal(one, module(x, clock[:, :1].expand(4, 6), label))
        other = clock[:, :1].repeat(1, 6)
        other[:, 3] = 999 - other[:, 3]
        assert ((module(x, other, label) - one).abs().amax((2, 3, 4))[:, 3] > 1e-3).all()


def test_patches_come_back_where_they_were() -> None:
    """The last layer told to repeat its patch: sums of rows and columns survive, so nothing is transposed."""
    network = replace(SMALL, channels=2, patch=3, width=32)
    made: Any = network.build(Noise(keys([3]), torch.zeros(1, dtype=torch.int64)))
    made.norm_out = nn.Identity()
    made.positions = lambda *_: torch.zeros(())
    with torch.no_grad():
        made.proj_in.weight.zero_()[:18].copy_(torch.eye(18))
        made.proj_out.weight.zero_()[:, :18].copy_(torch.eye(18))
        x = torch.randn(2, 6, 2, 12, 12, generator=torch.Generator().manual_seed(0))
        assert torch.equal(made(x, torch.zeros(2), torch.zeros(2, dtype=torch.int64)), x)


def test_times_are_shared_or_each_their_own() -> None:
    t = torch.cat([UnitMatching(units=(5,), apart=0.2, peaked=0.5).times(rows(100, k)) for k in range(40)])
    assert t.shape == (4000, 5)
    shared = (t == t[:, :1]).all(1)
    assert float(shared.double().mean()) == pytest.approx(0.8, abs=0.02)
    own = t[~shared]
    assert (torch.corrcoef(own.T) - torch.eye(5)).abs().max() < 0.15
    law = FlowMatching(peaked=0.5)
    plain = torch.cat([law.times(rows(100, k)) for k in range(40)])
    grid = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for seen in (t[shared][:, 0], own.flatten()):
        assert ((seen < grid[:, None]).double().mean(1) - (plain < grid[:, None]).double().mean(1)).abs().max() < 0.04
    one = UnitMatching(units=(5,), apart=0.0, peaked=0.5).times(rows(100))
    assert torch.equal(one, law.times(rows(100))[:, None].expand(100, 5))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_so_many_clips_are_learnt_causally(share: float) -> None:
    seen: list[Tensor] = []

    def hears(x: Tensor, clock: Tensor, labels: Tensor, flags: Tensor) -> Tensor:
        seen.extend((clock, flags))
        return x

    FrameMatching(causal=share, units=(3,)).loss(hears, torch.zeros(8, 3, 1, 2, 2), None, rows(8))  # type: ignore[arg-type]
    assert seen[0].shape == (8, 3)
    assert seen[1].sum() == 8 * share


# -------------------------------------------------------------------- clips


def dots(n: int = 5, side: int = 10) -> Pictures:
    """White squares of 2 x 2 in the middle of nothing, as bright as their label."""
    pixels = torch.zeros(n, 1, side, side, dtype=torch.uint8)
    pixels[:, :, side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1] = 255
    return Pictures(pixels, torch.arange(n) % 2)


def test_pictures_travel_straight_and_bounce() -> None:
    data = Moving(dots(), size=16, frames=40, repeats=40)
    x, labels = data.rows(torch.arange(200))
    assert labels is not None
    assert torch.equal(labels, data.labels[:200])  # type: ignore[index]
    mass = (x[:, :, 0].double() + 1) / 2
    assert torch.allclose(mass.sum((2, 3)), torch.full((200, 40), 4.0, dtype=torch.float64), atol=1e-3)
    line = torch.arange(16, dtype=torch.float64) + 0.5
    centre = torch.stack([(mass.sum(2) * line).sum(2), (mass.sum(3) * line).sum(2)], 2) / 4
    assert torch.allclose(centre, data.places(torch.arange(200)) + 5, atol=1e-3)
    low, high = 5 - data.margin, 16 - 5 + data.margin
    assert centre.min() > low - 1e-3
    assert centre.max() < high + 1e-3
    assert centre.min() < low + 0.1
    assert centre.max() > high - 0.1
    bent = centre.diff(n=2, dim=1).abs().sum(2) > 1e-3
    speed = centre.diff(dim=1).norm(dim=2)[:, 1:][~bent]
    assert speed.min() > SLOW - 1e-3
    assert speed.max() < FAST + 1e-3
    assert 0.02 < float(bent.double().mean()) < 0.5


def test_a_clip_is_its_seed_and_its_place() -> None:
    data = Moving(dots(), size=16, frames=4)
    index = torch.tensor([3, 17, 49, 3])
    x = data.rows(index)[0]
    assert torch.equal(x, Moving(dots(), size=16, frames=4).rows(index)[0])
    assert torch.equal(x[0], x[3])
    assert torch.equal(x[1:2], data.rows(index[1:2])[0])
    assert not torch.equal(data.rows(torch.tensor([3]))[0], data.rows(torch.tensor([8]))[0])  # one picture, moved twice
    other = Moving(dots(), size=16, frames=4, seed=1)
    assert not torch.equal(x, other.rows(index)[0])
    longer = Moving(dots(), size=16, frames=7)
    assert torch.equal(longer.rows(index)[0][:, :4], x)
    assert len({d.digest for d in (data, other, longer, Moving(dots(4), size=16, frames=4))}) == 4


def test_pictures_that_cannot_move_say_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((3, 9, 9), np.uint8))
    with pytest.raises(EbbError, match="at least 8"):
        load_moving(tmp_path / "d.npz", size=6)
    with pytest.raises(EbbError, match="cannot move"):
        Moving(dots(side=24), size=16)
    with pytest.raises(EbbError, match="frames"):
        Moving(dots(), size=16, frames=0)
    with pytest.raises(EbbError, match="patches of 6"):
        next(_odd(tmp_path))


def _odd(folder: Path) -> Any:
    known = recipes.recipe("moving-digits")
    found = recipes.read(known, folder / "d.npz", 20)
    return train(recipes.fit(known, found), found, folder / "out")


# -------------------------------------------------------------------- the recipe


def tiny(folder: Path, steps: int, **given: Any) -> Any:
    known = replace(recipes.recipe("moving-digits"), network=SMALL, lr=1e-2, warmup=5, ema=0.9, **given)
    shades = np.stack([np.zeros((8, 8)), np.full((8, 8), 255)]).astype(np.uint8)
    np.savez(folder / "d.npz", images=shades, labels=np.arange(2))
    found = recipes.read(known, folder / "d.npz")
    return train(recipes.fit(known, found), found, folder / "out", steps=steps)


def test_a_stopped_run_arrives_where_an_unbroken_one_does(tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    list(tiny(tmp_path / "whole", 5, batch=4))
    going = tiny(tmp_path / "broken", 5, batch=4)
    assert [p.step for p in itertools.islice(going, 2)] == [1, 2]
    going.close()
    assert [p.step for p in tiny(tmp_path / "broken", 5, batch=4)] == [3, 4, 5]
    a, b = (load_file(next((tmp_path / n / "out" / "model").glob("*.safetensors"))) for n in ("whole", "broken"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_black_and_white_clips_are_learnt_both_ways(tmp_path: Path) -> None:
    *_, last = tiny(tmp_path, 200, batch=16)
    assert last.loss < 0.8
    show = Show(replace(recipes.recipe("moving-digits"), network=SMALL), 2, quiet=True)
    show.about["labels"] = show.about["nulls"]["label"] = 2
    assert show.draw(last) is not None  # the frames in the middle, as pictures
    model = ebb.load(tmp_path / "out" / "model")
    assert (model.units, model.medium, tuple(model.like.shape)) == (1, "video", (6, 1, 12, 12))  # type: ignore[union-attr]
    plan = Plan(grid={"name": "linear", "steps": 20})
    label = [0, 1] * 4
    said = torch.tensor(label)
    both = [
        ebb.sample(model, plan, cond=label, n=8).x,
        ebb.sample(causal(model), plan, cond=label, n=8).x,
        ebb.sample(model, plan, cond={"label": said, "causal": True}, n=8).x,
    ]
    for x in both:
        middle = x[:, :, 0, 4:8, 4:8].mean((1, 2, 3))
        assert (middle[1::2] > middle[0::2] + 0.7).all()
    assert torch.equal(both[1], both[2])
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    guided = ebb.sample(causal(model), plan.replace(guide={"name": "cfg", "scale": 2.0}), cond=label, n=8).x
    assert guided[1::2].mean() > guided[0::2].mean() + 0.5
    with pytest.raises(EbbError, match="no causal attention"):
        causal(ebb.load("digits"))
