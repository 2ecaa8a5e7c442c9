"""Training: every draw has a name, so a stopped run arrives where an unbroken one does."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.learn import checkpoint
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.learn.train import Progress, Recipe, export, order, rate_of, train
from ebbtide.zoo.data import Pictures
from ebbtide.zoo.networks import DiT

TINY = Recipe(
    name="tiny",
    data="none",
    network=DiT(size=8, patch=4, layers=1, heads=1, width=8, classes=2),
    objective=FlowMatching(null=2),
    steps=9,
    batch=4,
    warmup=3,
    seed=5,
)


@pytest.fixture
def pictures() -> Pictures:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (10, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Pictures(pixels, torch.arange(10) % 2)


def run(recipe: Recipe, data: Pictures, out: Path, until: int | None = None, **given: float) -> list[Progress]:
    """Steps of a run; stopping early closes the iterator, as an interrupt at the yield does."""
    iterator = train(recipe, data, out, **given)  # type: ignore[arg-type]
    steps = list(itertools.islice(iterator, until))
    iterator.close()  # type: ignore[attr-defined]
    return steps


def tensors(out: Path) -> dict[str, Tensor]:
    return load_file(out / checkpoint.NAME)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_stopped_runs_arrive_at_the_same_bits(pictures: Pictures, tmp_path: Path) -> None:
    run(TINY, pictures, tmp_path / "whole")
    for stop in (1, 4):
        run(TINY, pictures, tmp_path / f"{stop}", until=stop)
        assert not same(tensors(tmp_path / "whole"), tensors(tmp_path / f"{stop}"))
        run(TINY, pictures, tmp_path / f"{stop}")
        assert same(tensors(tmp_path / "whole"), tensors(tmp_path / f"{stop}"))
    assert {name.split(".")[0] for name in tensors(tmp_path / "whole")} == {"net", "avg", "m", "s"}


def test_killed_run_goes_back_to_its_last_checkpoint(pictures: Pictures, tmp_path: Path) -> None:
    run(TINY, pictures, tmp_path / "whole")
    for p in train(TINY, pictures, tmp_path / "killed", every=0.0):
        assert p.saved is not None
        if p.step == 3:
            shutil.copytree(tmp_path / "killed", tmp_path / "left")
    run(TINY, pictures, tmp_path / "left")
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "left"))
    assert not list(tmp_path.rglob("*.part"))


def test_finished_run_does_nothing_more(pictures: Pictures, tmp_path: Path) -> None:
    run(TINY, pictures, tmp_path)
    before = tensors(tmp_path)
    shutil.rmtree(tmp_path / "model")  # as if it had been killed before it could write this
    assert run(TINY, pictures, tmp_path) == []
    assert same(before, tensors(tmp_path))
    assert (tmp_path / "model" / "recipe.json").is_file()


def test_seed_decides_and_global_generator_does_not(pictures: Pictures, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    run(TINY, pictures, tmp_path / "a")
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    run(TINY, pictures, tmp_path / "b")
    run(TINY, pictures, tmp_path / "c", seed=6)
    assert same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))
    assert not same(tensors(tmp_path / "a"), tensors(tmp_path / "c"))


@pytest.mark.parametrize(
    ("change", "word"),
    [({"lr": 0.5}, "lr"), ({"seed": 7}, "seed"), ({"objective": FlowMatching(null=2, drop=0.5)}, "objective.drop")],
)
def test_another_recipe_is_refused_by_name(
    pictures: Pictures, tmp_path: Path, change: dict[str, object], word: str
) -> None:
    run(TINY, pictures, tmp_path, until=2)
    with pytest.raises(EbbError, match=word):
        run(replace(TINY, **change), pictures, tmp_path)


def test_other_pictures_are_refused(pictures: Pictures, tmp_path: Path) -> None:
    run(TINY, pictures, tmp_path, until=2)
    assert pictures.labels is not None
    with pytest.raises(EbbError, match="data"):
        run(TINY, Pictures(pictures.pixels, 1 - pictures.labels), tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(pictures: Pictures, tmp_path: Path) -> None:
    (tmp_path / checkpoint.NAME).write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(EbbError, match="cannot be read"):
        run(TINY, pictures, tmp_path)


def test_diverging_run_stops_with_its_step(pictures: Pictures, tmp_path: Path) -> None:
    with pytest.raises(EbbError, match="learning rate"):
        run(replace(TINY, lr=1e30, warmup=1, steps=50), pictures, tmp_path)


def test_every_epoch_shows_every_picture_once(tmp_path: Path) -> None:
    class Seen(Pictures):
        def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
            shown.append(index)
            return super().rows(index)

    shown: list[Tensor] = []
    data = Seen(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64))
    run(replace(TINY, steps=10), data, tmp_path)  # 40 draws: four epochs, whose seams lie inside batches
    epochs = torch.cat(shown).reshape(4, 10)
    assert torch.equal(epochs.sort(1).values, torch.arange(10).expand(4, 10))
    assert len({tuple(e.tolist()) for e in epochs}) == 4
    assert torch.equal(epochs[2], order(TINY.seed, 10, 2))


def test_learning_rate_rises_and_falls_to_nothing() -> None:
    recipe = replace(TINY, steps=1000, warmup=10, lr=2.0)
    rates = [rate_of(recipe, k) for k in range(1000)]
    assert rates[0] == pytest.approx(0.2)
    assert max(range(1000), key=rates.__getitem__) == 9
    assert rates[-1] < 1e-4
    assert sum(rates[100:]) == pytest.approx(  # the integral of the cosine
        1000 * (0.9 - math.sin(math.pi * 0.1) / math.pi), rel=2e-3
    )


def test_average_of_no_memory_is_the_network(pictures: Pictures, tmp_path: Path) -> None:
    run(replace(TINY, ema=0.0), pictures, tmp_path)
    kept = tensors(tmp_path)
    names = [k.removeprefix("net.") for k in kept if k.startswith("net.")]
    assert names
    assert all(torch.equal(kept[f"net.{k}"], kept[f"avg.{k}"]) for k in names)


def test_average_is_the_exponential_one(pictures: Pictures, tmp_path: Path) -> None:
    recipe = replace(TINY, ema=0.1)  # below 1 / 10 at the first step already: a constant decay
    path, moving = [], []
    for p in train(recipe, pictures, tmp_path, every=0.0):
        path.append(tensors(tmp_path)["net.proj_out_2.weight"])
        moving.append(copy.deepcopy(p.average).proj_out_2.weight)  # type: ignore[union-attr]
    weights = 0.1 ** torch.arange(len(path) - 1, -1, -1) * 0.9  # the start, all zeros, has the rest
    assert torch.allclose(moving[-1], torch.tensordot(weights.float(), torch.stack(path), 1), atol=1e-7)


def test_exported_folder_opens_in_diffusers(pictures: Pictures, tmp_path: Path) -> None:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    average = run(TINY, pictures, tmp_path)[-1].average
    x, t, label = pictures.x, torch.linspace(0, 1000, 10), torch.arange(10) % 3
    for folder in (tmp_path / "model", export(tmp_path, TINY, tmp_path / "again", {"figures": {"a": 1}})):
        with torch.no_grad():
            there = DiTTransformer2DModel.from_pretrained(folder).float()(x, t, class_labels=label).sample
            here = average(x, t, class_labels=label).sample
        assert here.abs().max() > 0
        assert torch.allclose(there, here, atol=5e-3 * float(here.abs().max()))  # float16 weights
    assert '"figures"' in (tmp_path / "again" / "recipe.json").read_text()
    with pytest.raises(EbbError, match=r"network\.layers"):
        export(tmp_path, replace(TINY, network=DiT(size=8, layers=2, heads=1, width=8, classes=2)), tmp_path / "no")


def test_a_class_is_learnt(tmp_path: Path) -> None:
    """Black pictures under one label, white ones under the other: near t = 1 only the label tells them apart."""
    pixels = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 8, 8).clone()
    recipe = replace(TINY, steps=300, batch=32, lr=1e-2, ema=0.9, objective=FlowMatching(null=2, drop=0.4))
    *_, last = train(recipe, Pictures(pixels, torch.arange(2)), tmp_path)
    eps = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    means = []
    for label in range(3):
        with torch.no_grad():
            u = last.average(eps, torch.full((200,), 1000.0), class_labels=torch.full((200,), label)).sample
        means.append(float((eps - u).mean()))
    assert means[0] < -0.6
    assert means[1] > 0.6
    assert abs(means[2]) < 0.4  # no label: the mean of both
