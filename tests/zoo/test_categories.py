"""Emoji by their category: what is held out, what a picture may be changed into, and that categories are learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ebbtide as ebb
from ebbtide import zoo
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.learn.classification import Augmented
from ebbtide.learn.train import train
from ebbtide.zoo import categories, classifier, recipes, reference
from ebbtide.zoo.categories import CATEGORIES, CategoryCNN, load_sorted


def rows(n: int, step: int = 0) -> Noise:
    return Noise(keys(range(n)), torch.full((n,), step))


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Flags are red, symbols blue, two hundred of each; one swatch is of no use."""
    colours = np.array([[255, 0, 0], [0, 0, 255], [9, 9, 9]], dtype=np.uint8)[[0, 1] * 200 + [2]]
    x = np.broadcast_to(colours[:, None, None], (401, 8, 8, 3)).copy()
    x[:, 0] = 255
    names = [f"thing {k}" for k in range(401)]
    np.savez(tmp_path / "e.npz", x=x, name=names, category=["Flags", "Symbols"] * 200 + ["Component"])
    return tmp_path / "e.npz"


def test_a_tenth_is_held_out(few: Path) -> None:
    parts = {split: load_sorted(few, split) for split in ("train", "test", "all")}
    assert len(parts["train"]) + len(parts["test"]) == len(parts["all"]) == 400
    assert 20 < len(parts["test"]) < 60
    for part in parts.values():
        assert part.labels is not None
        names = [part.names[k] for k in part.labels.tolist()]
        red = part.pixels[:, 0, 4, 4] == 255
        assert names == ["Flags" if r else "Symbols" for r in red.tolist()]


def test_what_is_held_out_of_emoji_is_not_learnt(shared: Path) -> None:
    file = shared / "assets" / "data" / "emoji32.npz"
    train_, test, both = (load_sorted(file, split) for split in ("train", "test", "all"))
    assert len(train_) + len(test) == len(both) == 1906
    seen = {row.numpy().tobytes() for row in train_.pixels}
    assert sum(row.numpy().tobytes() in seen for row in test.pixels) <= 0.05 * len(test)
    assert recipes.fit(recipes.recipe("emoji-classifier"), train_) == recipes.recipe("emoji-classifier")


@pytest.mark.parametrize(
    ("change", "words"), [({"category": ["Birds"] * 401}, "categories"), ({"name": ["a"]}, "1 names")]
)
def test_bad_data_says_so(few: Path, change: dict[str, list[str]], words: str) -> None:
    with np.load(few) as held:
        np.savez(few, **{**held, **change})
    with pytest.raises(EbbError, match=words):
        recipes.begin("emoji-classifier", few, few.parent / "out")


def test_other_splits_are_refused(few: Path) -> None:
    with pytest.raises(EbbError, match="train, test, all"):
        load_sorted(few, "validation")


# -------------------------------------------------------------------- changes

STILL = Augmented(shift=0, turn=0.0, zoom=0.0, colour=0.0, blur=0.0, grain=0.0, smooth=0.0)


def test_what_is_switched_off_changes_nothing_but_the_side() -> None:
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = STILL.changed(x, rows(64))
    same, flipped = ((out - y).abs().amax((1, 2, 3)) < 1e-5 for y in (x, x.flip(3)))
    assert (same ^ flipped).all()
    assert 20 < int(same.sum()) < 44


def test_a_shift_is_one_of_so_many_pixels() -> None:
    """The middle of a bright square moves by at most `shift`, in both directions alike."""
    x = torch.full((400, 1, 16, 16), -1.0)
    x[:, :, 6:10, 6:10] = 1
    out = (replace(STILL, shift=3).changed(x, rows(400))[:, 0] + 1) / 2
    line = torch.arange(16) - 7.5
    moved = torch.stack([(out.sum(1) * line).sum(1), (out.sum(2) * line).sum(1)]) / out.sum((1, 2))
    assert moved.abs().max() < 3.01
    assert moved.abs().max() > 2.9
    assert moved.mean(1).abs().max() < 0.3


def test_a_turn_keeps_the_middle_and_a_zoom_the_white() -> None:
    ring = (torch.arange(17) - 8.0).square()
    x = torch.where(ring[:, None] + ring < 25, -1.0, 1.0).expand(50, 1, 17, 17)
    turned = replace(STILL, turn=3.0).changed(x, rows(50))
    assert (turned - x).abs().mean((1, 2, 3)).max() < 0.07  # a disc
    zoomed = replace(STILL, zoom=0.3).changed(x, rows(50))
    area = (zoomed < 0).double().sum((1, 2, 3)) / float((x[0] < 0).sum())
    assert area.min() > np.exp(-0.6) * 0.85
    assert area.max() < np.exp(0.6) * 1.15
    assert area.max() > 1.3
    tinted = replace(STILL, colour=0.5).changed(x, rows(50))
    assert torch.equal(tinted > 0, x > 0)
    assert torch.equal(tinted[x > 0], x[x > 0])


def test_noise_has_its_strength_and_a_blur_keeps_the_mean() -> None:
    x = torch.zeros(300, 1, 16, 16)
    loud = replace(STILL, grain=0.2).changed(x, rows(300)).flatten(1).std(1)
    assert loud.max() < 0.24
    assert float(loud.mean()) == pytest.approx(0.1, abs=0.01)
    point = x.clone()
    point[:, :, 8, 8] = 1
    soft = replace(STILL, blur=1.0).changed(point, rows(300))
    assert torch.allclose(soft.sum((1, 2, 3)), torch.ones(300), atol=1e-5)
    assert soft.amax((1, 2, 3)).min() < 0.3


def test_each_row_is_changed_by_its_own_key() -> None:
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    out = Augmented().changed(x, rows(6))
    for k in range(6):
        alone = Augmented().changed(x[k : k + 1], rows(6).take(torch.tensor([k])))
        assert torch.allclose(alone[0], out[k], atol=1e-6)
    again = Augmented().changed(x[:1].expand(2, 3, 8, 8), rows(2))
    assert (again[0] - again[1]).abs().max() > 0.05
    assert torch.equal(out, Augmented().changed(x, rows(6)))
    assert not torch.equal(out, Augmented().changed(x, rows(6, 1)))


def test_softened_targets_cost_what_they_must() -> None:
    """A network that says the softened target itself has its entropy as the loss."""
    smooth, classes = 0.2, 4
    y = torch.arange(8) % classes
    target = torch.full((8, classes), smooth / classes)
    target[torch.arange(8), y] += 1 - smooth
    loss = replace(STILL, smooth=smooth).loss(lambda x: target.log(), torch.zeros(8, 3, 2, 2), y, rows(8))  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(float(-(target * target.log()).sum(1).mean()), rel=1e-5)
    with pytest.raises(EbbError, match="labels"):
        Augmented().loss(nn.Identity(), torch.zeros(1, 3, 2, 2), None, rows(1))


# -------------------------------------------------------------------- the network


def test_categories_are_learnt_and_read_again(few: Path, tmp_path: Path) -> None:
    known = recipes.recipe("emoji-classifier")
    known = replace(known, network=CategoryCNN(maps=(8, 16)), batch=16, lr=1e-2, warmup=3, ema=0.8)
    found = recipes.read(known, few)
    list(train(recipes.fit(known, found), found, tmp_path / "out", steps=40))
    net = categories.load(tmp_path / "out" / "model")
    test = load_sorted(few, "test")
    assert classifier.accuracy(net, test) == 1
    seen = net.features(test.x)
    assert torch.allclose(net.head(seen), net(test.x), atol=1e-5)
    assert net(torch.zeros(2, 3, 20, 20)).shape == (2, len(CATEGORIES))
    with pytest.raises(EbbError, match="no classifier"):
        categories.load(tmp_path)
    with pytest.raises(EbbError, match="another network"):
        classifier.load(tmp_path / "out" / "model")
    with pytest.raises(EbbError, match="cannot be sampled"):
        ebb.load(tmp_path / "out" / "model")


def test_statistics_of_emoji_are_made(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mean(nn.Module):
        def features(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    monkeypatch.setattr(categories, "load", Mean)
    stats = reference.statistics(load_sorted(few), load_sorted(few, "all"), "emoji")
    x = load_sorted(few, "all").x.mean((2, 3)).double()
    assert torch.allclose(stats["test.mean"], x.mean(0))
    assert torch.allclose(stats["test.cov"], torch.cov(x.T), atol=1e-9)
    assert stats["test.counts"].sum() == 400
    assert float(stats["test.nearest"]) == 0
    with pytest.raises(EbbError, match="did you mean emoji"):
        reference.load("emojis")
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    with pytest.raises(EbbError, match="no statistics of emoji"):
        reference.load("emoji")


@pytest.mark.skipif("emoji-classifier" not in zoo.names(), reason="its weights do not ship yet")
def test_the_shipped_one_knows_what_it_has_not_seen(shared: Path) -> None:
    test = load_sorted(shared / "assets" / "data" / "emoji32.npz", "test")
    assert classifier.accuracy(categories.load(), test) > 0.7
