"""What ships: weights that do what their recipe says, statistics that belong to the data they name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ebbtide import zoo
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.learn.train import plain
from ebbtide.measure.metrics import frechet, moments, nearest_distance
from ebbtide.zoo import classifier, recipes, reference
from ebbtide.zoo.data import Pictures, load_pictures


@pytest.fixture(scope="module")
def held() -> Pictures:
    """Digits that the shipped model drew, 50 of each."""
    whole = reference.pictures()
    assert whole.labels is not None
    return Pictures(whole.pixels[-500:], whole.labels[-500:])


def test_names_and_folders() -> None:
    assert {"digits", "classifier"} <= set(zoo.names())
    for name in zoo.names():
        folder = zoo.folder(name)
        weights = list(folder.glob("*.safetensors"))
        assert weights
        assert sum(f.stat().st_size for f in weights) <= 4e6
        about = json.loads((folder / "recipe.json").read_text())
        assert {"command", "data", "recipe", "step"} <= about.keys()
        assert about["recipe"]["seed"] == recipes.recipe(name).seed
    with pytest.raises(EbbError, match="digits"):
        zoo.folder("digit")
    with pytest.raises(EbbError, match="classifier"):
        recipes.recipe("clasifier")


FILES = {
    "mnist": "mnist.npz",
    "emoji32": "emoji32.npz",
    "tiny-shakespeare": "tiny_shakespeare.txt",
    "pusht": "pusht_demos_lowdim.npz",
}


@pytest.mark.parametrize("name", zoo.names())
def test_shipped_weights_are_of_the_recipes(shared: Path, name: str) -> None:
    """Of the data that they name, to the last step."""
    known = recipes.recipe(name)
    about = json.loads((zoo.folder(name) / "recipe.json").read_text("utf-8"))
    if known.data not in FILES:
        # what a model drew or a formula made is no file to look into; the recipe without its data must still be the same
        assert about["recipe"] == json.loads(json.dumps(plain(known)))
        assert about["step"] == known.steps, "weights of a run that has not ended"
        return
    data = recipes.read(known, shared / "assets" / "data" / FILES[known.data])
    fitted = recipes.fit(known, data)
    assert about["recipe"] == json.loads(json.dumps(plain(fitted)))
    assert about["step"] == fitted.steps, "weights of a run that has not ended"
    assert about["data"] == data.digest


def test_classifier_reads_what_the_model_drew(held: Pictures) -> None:
    net = classifier.load()
    assert sum(p.numel() for p in net.parameters()) <= 100_000
    with torch.no_grad():
        logits, f = net(held.x), net.features(held.x)
    assert (logits.argmax(1) == held.labels).double().mean() >= 0.98
    assert f.shape == (500, 64)
    assert torch.allclose(net.head(f), logits, atol=1e-5)


def test_classifier_on_all_test_pictures(shared: Path) -> None:
    test = load_pictures(shared / "assets" / "data" / "mnist.npz", split="test")
    assert classifier.accuracy(classifier.load(), test) >= 0.985


def test_statistics_are_those_of_digits(held: Pictures) -> None:
    stats = reference.load()
    of = {name: (stats[f"{name}.mean"], stats[f"{name}.cov"]) for name in ("train", "test")}
    for _, cov in of.values():
        assert torch.allclose(cov, cov.T, rtol=0, atol=1e-12)
        assert torch.linalg.eigvalsh(cov).min() > -1e-9
    assert held.labels is not None
    assert held.labels.bincount().tolist() == [50] * 10
    near = frechet(*moments(reference.features(held.x)), *of["train"])
    half = frechet(*moments(reference.features(held.x[held.labels < 5])), *of["train"])
    upside_down = frechet(*moments(reference.features(held.x.flip(2))), *of["train"])
    assert frechet(*of["test"], *of["train"]) < near < 0.2 * half
    assert near < 0.2 * upside_down
    assert stats["train.counts"].sum() == 60_000
    assert stats["test.counts"].sum() == 10_000
    assert (held.x.mean(0) - stats["pixel.mean"]).abs().max() < 0.25


def test_statistics_are_made_again(shared: Path) -> None:
    test = load_pictures(shared / "assets" / "data" / "mnist.npz", split="test")
    mean, cov = moments(torch.cat([reference.features(test.rows(i)[0]) for i in torch.arange(10_000).split(2000)]))
    stats = reference.load()
    assert torch.allclose(mean, stats["test.mean"], atol=1e-4)
    assert torch.allclose(cov, stats["test.cov"], atol=1e-3)


def test_shipped_pictures_are_new_ones(shared: Path) -> None:
    few, train = reference.pictures(), load_pictures(shared / "assets" / "data" / "mnist.npz")
    assert few.labels is not None
    assert few.labels.bincount().tolist() == [250] * 10
    near = nearest_distance(few.x[:100], train.x)
    assert near.min() > 1
    assert near.median() > 0.9 * reference.load()["test.nearest"]


def test_digits_model_knows_its_labels(shared: Path) -> None:
    """On pictures it has not seen, with the same times and noise: right label < none < wrong label."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    model = DiTTransformer2DModel.from_pretrained(zoo.folder("digits")).float().eval()
    about = json.loads((zoo.folder("digits") / "recipe.json").read_text())
    test = load_pictures(shared / "assets" / "data" / "mnist.npz", split="test")
    assert test.labels is not None
    held = Pictures(test.pixels[:500], test.labels[:500])
    assert held.labels is not None
    loss = []
    for labels in (held.labels, torch.full((500,), about["nulls"]["label"]), (held.labels + 1) % 10):
        with torch.no_grad():
            noise = Noise(keys(range(500)), torch.zeros(500, dtype=torch.int64))
            objective = FlowMatching(drop=0.0, peaked=1.0, centre=1.0, spread=0.5)
            loss.append(float(objective.loss(model, held.x, labels, noise)))
    assert loss[0] < loss[1] < loss[2]
    assert loss[0] < 0.35 * float(1 + held.x.square().mean())  # of what a network that says nothing has
