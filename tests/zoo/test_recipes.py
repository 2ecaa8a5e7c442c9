"""Recipes fit themselves to the pictures they are given."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.plan import Plan
from ebbtide.learn.next_token import nats
from ebbtide.learn.train import Recipe, train
from ebbtide.measure.text import accuracy, asked_of, nll, perplexity, rate
from ebbtide.zoo import language, recipes
from ebbtide.zoo.autoencoder import Autoencoder
from ebbtide.zoo.categories import CategoryCNN
from ebbtide.zoo.data import Pictures
from ebbtide.zoo.drawn import Ways, save_ways
from ebbtide.zoo.emoji import TextToImage, load_named
from ebbtide.zoo.language import CausalLM, MaskedLM
from ebbtide.zoo.models import network
from ebbtide.zoo.networks import DiT, UNet
from ebbtide.zoo.paired import PairedUNet, SwitchedUNet
from ebbtide.zoo.policy import ActionDiT
from ebbtide.zoo.routing import RoutedDiT
from ebbtide.zoo.text import Text, decode, encode, load_text
from ebbtide.zoo.video import VideoDiT


def pictures(classes: int | None, channels: int = 3, size: int = 32) -> Pictures:
    labels = None if classes is None else torch.arange(2 * classes) % classes
    n = 4 if classes is None else 2 * classes
    return Pictures(torch.zeros(n, channels, size, size, dtype=torch.uint8), labels)


DIGITS = ["digits", "digits-eps", "digits-immiscible", "digits-routed", "digits-unet"]
TEXT = ["shakespeare", "shakespeare-causal"]
STUDENTS = ["digits-ctm", "digits-reflow"]
SCENES = ["shapes-depth", "shapes-depth-diffusion", "shapes-depth-plain"]


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("name", DIGITS)
def test_any_pictures_fit(name: str, classes: int | None) -> None:
    fitted = recipes.fit(recipes.recipe(name), pictures(classes))
    module = fitted.network.build()
    known = classes or 1
    about = {**fitted.network.about(), **fitted.objective.about()}
    assert about["shape"] == [3, 32, 32]
    assert about["labels"] == about["nulls"]["label"] == known
    x, t = torch.zeros(known + 1, 3, 32, 32), torch.zeros(known + 1)
    assert module(x, t, class_labels=torch.arange(known + 1)).sample.shape == x.shape  # the null has a row


@pytest.mark.parametrize("name", DIGITS)
def test_digits_fit_digits(name: str) -> None:
    assert recipes.fit(recipes.recipe(name), pictures(10, 1, 28)) == recipes.recipe(name)


def test_oblong_pictures_are_refused() -> None:
    with pytest.raises(EbbError, match="size="):
        recipes.fit(recipes.recipe("digits"), Pictures(torch.zeros(2, 1, 8, 16, dtype=torch.uint8), None))


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    """Forty oblong pictures of ten classes, a text of a few words over and over, and the like, by recipe."""
    array = np.random.default_rng(0).integers(0, 256, (40, 20, 30), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=array, labels=np.arange(40) % 10)
    np.savez(tmp_path / "q.npz", images=array[:, :, :20])
    (tmp_path / "d.txt").write_text("To be, or not to be: that is the question.\n" * 9)
    colours = np.array([[255, 0, 0, 255], [0, 0, 255, 255], [0, 0, 0, 0]], dtype=np.uint8)
    squares = np.broadcast_to(colours[:, None, None], (3, 4, 4, 4))
    names, groups = ["red square", "Blue square", "nothing: at all"], ["Symbols", "Symbols", "Objects"]
    np.savez(tmp_path / "e.npz", x=squares, name=names, category=groups)
    files = {**dict.fromkeys(TEXT, "d.txt"), "emoji": "e.npz", "emoji-classifier": "e.npz"}
    files |= {"digits-autoencoder": "q.npz", "digits-resshift": "q.npz", **dict.fromkeys(STUDENTS, "w.npz")}
    noise = torch.randn(10, 3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    save_ways(Ways(noise, torch.linspace(0, 1, 3, dtype=torch.float64), torch.arange(10)), tmp_path / "w.npz")
    states = np.random.default_rng(1).uniform(0, 512, (40, 5))
    np.savez(tmp_path / "a.npz", state=states, action=states[:, :2], episode_ends=[15, 40])
    (tmp_path / "s.csv").write_text("date,a,b\n" + "".join(f"{k},{k % 7 + 1},{k % 5 - 2}\n" for k in range(2000)))
    files |= {"pusht": "a.npz", "etth1": "s.csv"}
    found: dict[str, Any] = {name: tmp_path / files.get(name, "d.npz") for name in recipes.names()}
    return {**found, **dict.fromkeys(SCENES)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipe with a network of its own kind that takes a moment to train."""
    sizes: dict[Any, dict[str, Any]] = {
        DiT: {"layers": 1, "heads": 1, "width": 16},
        RoutedDiT: {"layers": 1, "heads": 1, "width": 16},
        UNet: {"widths": (8, 8, 16), "head": 8},
        MaskedLM: {"layers": 2, "heads": 2, "width": 32, "hidden": 32, "length": 32, "window": 8},
        CausalLM: {"layers": 2, "heads": 2, "width": 32, "hidden": 32, "length": 32},
        VideoDiT: {"layers": 1, "heads": 1, "width": 16},
        CategoryCNN: {"maps": (8, 8)},
        PairedUNet: {"widths": (8, 8, 16), "head": 8},
        SwitchedUNet: {"widths": (8, 8, 16), "head": 8, "size": 8},
        ActionDiT: {"layers": 1, "heads": 1, "width": 16},
        Autoencoder: {"widths": (8, 8, 8)},
        TextToImage: {"layers": 1, "heads": 1, "width": 32, "patch": 2, "told": 32, "length": 4},
    }
    for name in recipes.names():
        known = recipes.recipe(name)
        network: Any = replace(known.network, **sizes.get(type(known.network), {}))  # type: ignore[type-var]
        monkeypatch.setitem(recipes._RECIPES, name, replace(known, network=network, batch=8))


@pytest.mark.parametrize("name", recipes.names())
def test_begin_goes_on_where_it_stopped(name: str, small: None, data: dict[str, Path], tmp_path: Path) -> None:
    whole = list(recipes.begin(name, data[name], tmp_path / "whole", steps=3))
    assert [p.step for p in whole] == [1, 2, 3]
    first = recipes.begin(name, data[name], tmp_path / "out", steps=3)
    assert [p.step for p in itertools.islice(first, 2)] == [1, 2]
    first.close()  # type: ignore[attr-defined]
    assert not (tmp_path / "out" / "model").exists()
    assert [p.step for p in recipes.begin(name, data[name], tmp_path / "out", steps=3)] == [3]
    made = [load_file(next((tmp_path / out / "model").glob("*.safetensors"))) for out in ("whole", "out")]
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][k], made[1][k]) for k in made[0])
    assert (tmp_path / "out" / "model" / "recipe.json").is_file()
    with pytest.raises(EbbError, match="steps"):
        next(recipes.begin(name, data[name], tmp_path / "out", steps=4))


def trained(name: str, data: dict[str, Path], out: Path, steps: int, lr: float = 1e-2) -> float:
    """The loss at the end of a run of a small network at a high rate."""
    known = replace(recipes.recipe(name), lr=lr, warmup=5, ema=0.9, batch=32)
    found = recipes.read(known, data[name], 8 if name in DIGITS else None)
    *_, last = train(recipes.fit(known, found), found, out, steps=steps)
    return last.loss


@pytest.mark.parametrize("name", ["digits-eps", "digits-unet"])
def test_a_few_pictures_are_learnt(name: str, small: None, tmp_path: Path) -> None:
    """Grey pictures, one a class: what is left of the loss is what noise hides."""
    shades = np.linspace(0, 255, 4).astype(np.uint8)
    np.savez(tmp_path / "d.npz", images=np.broadcast_to(shades[:, None, None], (4, 16, 16)), labels=np.arange(4))
    assert trained(name, {name: tmp_path / "d.npz"}, tmp_path / "out", 150) < 0.35
    model = ebb.load(tmp_path / "out" / "model")
    out = ebb.sample(model, Plan(solve="euler", grid={"name": "linear", "steps": 20}), cond=[0, 1, 2, 3] * 8, n=32)
    means = out.x.mean((1, 2, 3)).reshape(8, 4).mean(0)
    assert (means.diff() > 0.2).all()


def test_a_phrase_is_learnt_by_heart(small: None, data: dict[str, Path], tmp_path: Path) -> None:
    phrase = data["shakespeare"].read_text()
    assert trained("shakespeare", data, tmp_path / "masked", 400) < 0.6
    model = ebb.load(tmp_path / "masked" / "model")
    assert (model.medium, model.process.mask) == ("text", len(set(phrase)))  # type: ignore[attr-defined]
    windows = load_text(data["shakespeare"], 32, split="test").rows(torch.arange(4))[0]
    assert rate(*accuracy(asked_of(model), windows, len(set(phrase)), 0.3)) > 0.9
    out = ebb.sample(model, Plan(solve="confidence", grid={"name": "linear", "steps": 32}), n=4)
    assert sum(row[k : k + 3] in phrase for row in out.text() for k in range(29)) > 0.6 * 4 * 29
    assert trained("shakespeare-causal", data, tmp_path / "causal", 120) < 0.5
    judge = language.judge(tmp_path / "causal" / "model")
    mixed = windows[:, torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    found = [perplexity(*nll(judge, x, start=judge.start)) for x in (windows, mixed)]
    assert found[0] < 1.6
    assert found[1] > 5
    with pytest.raises(EbbError, match="cannot be sampled"):
        ebb.load(tmp_path / "causal" / "model")
    with pytest.raises(EbbError, match="judge text"):
        language.judge(tmp_path / "masked" / "model")


def test_a_few_names_are_learnt(small: None, data: dict[str, Path], tmp_path: Path) -> None:
    assert trained("emoji", data, tmp_path / "out", 200) < 0.4
    model = ebb.load(tmp_path / "out" / "model")
    plan = Plan(grid={"name": "linear", "steps": 20})
    asked = ["a red square", "BLUE SQUARE!", "nothing at all", "blue"]
    with pytest.warns(UserWarning, match="without a,"):
        x = ebb.sample(model, plan, cond=asked, n=4).x
    colours = x.mean((2, 3)).sign().tolist()
    assert colours == [[1, -1, -1], [-1, -1, 1], [1, 1, 1], [-1, -1, 1]]
    one = ebb.sample(model, plan, cond="BLUE square", n=1, seed=1).x
    assert torch.allclose(one[0], x[1], atol=1e-5)
    free, null = (
        ebb.sample(model, plan, cond=c, n=2).x for c in (None, {"words": torch.zeros(4, dtype=torch.int64)[None]})
    )
    assert torch.equal(free, null)
    cfg = plan.replace(guide={"name": "cfg", "scale": 3.0})
    pushed, away = (
        ebb.sample(model, cfg, cond={"prompt": "square", "negative": c}, n=32).x.mean((0, 2, 3))
        for c in ("red", "blue")
    )
    assert pushed[2] - pushed[0] > away[2] - away[0] + 0.5  # away from red is towards blue
    with pytest.warns(UserWarning, match="ends after 'nothing'"):
        model.condition("red blue square nothing square", 1)
    for cond, word in (("zebra", "no word"), (["red"], "1 prompts"), (3, "in words"), ({"prompt": [1, 2]}, "in words")):
        with pytest.raises(EbbError, match=word):
            model.condition(cond, 2)


def test_names_become_words_and_what_is_clear_is_white(shared: Path) -> None:
    data = load_named(shared / "assets" / "data" / "emoji32.npz")
    with np.load(shared / "assets" / "data" / "emoji32.npz") as held:
        clear, solid = held["x"][..., 3] == 0, held["x"][..., 3] == 255
        there = data.pixels.movedim(1, -1).numpy()
        assert (there[clear] == 255).all()
        assert (there[solid] == held["x"][solid][:, :3]).all()
    assert data.labels is not None
    assert len(data.labels.unique(dim=0)) == len(set(data.captions))  # no two names read the same
    assert (len(data), len(set(data.groups))) == (1911, 10)
    fitted = recipes.fit(recipes.recipe("emoji"), data)
    assert 2 * sum(p.numel() for p in fitted.network.build().parameters()) < 3.9e6


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((2, 8, 8, 4), np.uint8)}, "of x and name"),
        ({"x": np.zeros((2, 8, 9, 4), np.uint8), "name": ["a", "b"]}, "squares"),
        ({"x": np.zeros((2, 8, 8, 3), np.uint8), "name": ["a"]}, "1 names"),
    ],
)
def test_bad_named_pictures_say_so(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(EbbError, match=words):
        recipes.begin("emoji", tmp_path / "e.npz", tmp_path / "out")


def test_the_likelihood_is_that_of_the_chain_rule() -> None:
    """A causal network: the loss of a window is the sum over prefixes, and what comes later changes nothing before."""
    network = CausalLM(alphabet="abc", layers=1, heads=1, width=8, hidden=8, length=6)
    module = network.build(Noise(keys([0]), torch.zeros(1, dtype=torch.int64)))
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    with torch.no_grad():
        total = nats(module, every, 3)
    assert float((-total.sum(1)).exp().sum()) == pytest.approx(1, abs=1e-5)  # of all texts of four letters
    with torch.no_grad():
        assert torch.allclose(nats(module, every[:, :2], 3), total[:, :2], atol=1e-6)


@pytest.mark.parametrize("name", [*DIGITS, *TEXT, "emoji"])
def test_alone_is_as_in_a_batch_of_eight(name: str) -> None:
    known = recipes.recipe(name)
    if name == "emoji":
        known = replace(known, network=TextToImage(words="a b c d e"))
    module = known.network.build(Noise(keys([3]), torch.zeros(1, dtype=torch.int64)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():  # what begins as zero, too
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    about: dict[str, Any] = {**known.network.about(), **known.objective.about()}
    shape = (8, *about["shape"])
    if name in TEXT:
        x = torch.randint(0, 65, shape, generator=generator)
        ask = lambda k: module(x[k]).logits  # noqa: E731
    elif name == "emoji":
        x, label = torch.randn(shape, generator=generator), torch.arange(8 * 12).reshape(8, 12) % 6
        ask = lambda k: module(x[k], torch.linspace(1, 999, 8)[k], label[k])  # noqa: E731
    else:
        x, label = torch.randn(shape, generator=generator), torch.arange(8)
        ask = lambda k: module(x[k], torch.linspace(1, 999, 8)[k], class_labels=label[k]).sample  # noqa: E731
    with torch.no_grad():
        whole = ask(slice(0, 8))
        assert whole.std() > 0.01
        for k in range(8):
            assert torch.allclose(ask(slice(k, k + 1))[0], whole[k], rtol=0, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("name", TEXT)
def test_exported_text_models_open_in_transformers(
    name: str, small: None, data: dict[str, Path], tmp_path: Path
) -> None:
    import transformers

    *_, last = recipes.begin(name, data[name], tmp_path, steps=4)
    kind = getattr(transformers, type(last.average).__name__)
    x = torch.arange(20)[None] % 12
    with torch.no_grad():
        here = last.average(x).logits
        there = kind.from_pretrained(tmp_path / "model", dtype=torch.float32)(x).logits
        ours = network(tmp_path / "model")[0](x).logits
    assert torch.equal(there, ours)
    assert torch.allclose(here, ours, atol=1e-2 * float(here.abs().max()))  # float16 weights


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no "), (b"\xff\xfe\x00", "UTF-8"), (b"too short", "one window")]
)
def test_bad_texts_say_so(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "d.txt").write_bytes(content)
    with pytest.raises(EbbError, match=words):
        recipes.begin("shakespeare", tmp_path / "d.txt", tmp_path / "out")
    with pytest.raises(EbbError, match=r"FILE\.txt"):
        recipes.begin("shakespeare", None, tmp_path / "out")


def test_text_becomes_tokens_and_comes_back(tmp_path: Path) -> None:
    text = "bad cab: Ünïcode 😀\n" * 30
    (tmp_path / "d.txt").write_text(text, encoding="utf-8")
    parts = [load_text(tmp_path / "d.txt", 16, split) for split in ("train", "test", "all")]
    whole = "".join(decode(p.tokens, p.alphabet) for p in parts[:2])
    assert whole == text == decode(parts[2].tokens, parts[2].alphabet)
    assert torch.equal(encode(text, parts[2].alphabet), parts[2].tokens.long())
    rows, labels = parts[0].rows(torch.tensor([0, 3, len(parts[0]) - 1]))
    assert labels is None
    assert [decode(row, parts[0].alphabet) for row in rows[:2]] == [text[:16], text[3:19]]
    assert torch.equal(rows[2], parts[0].tokens[-16:].long())
    assert decode(torch.tensor([0, 65])) == "\n_"
    with pytest.raises(EbbError, match="'é'"):
        encode("café")
    assert len({p.digest for p in parts} | {Text(parts[0].tokens, parts[0].alphabet, 8).digest}) == 4


def test_the_alphabet_is_that_of_shakespeare(shared: Path) -> None:
    data = load_text(shared / "assets" / "data" / "tiny_shakespeare.txt")
    for name in TEXT:
        assert recipes.fit(recipes.recipe(name), data) == recipes.recipe(name)


def test_weights_fit_into_four_megabytes() -> None:
    for name in recipes.names():
        module = recipes.recipe(name).network.build()
        assert 2 * sum(p.numel() for p in module.parameters()) < 3.9e6


def test_the_recipes_are_recipes() -> None:
    assert recipes.names() == sorted(
        [
            "classifier",
            *DIGITS,
            *TEXT,
            *STUDENTS,
            *SCENES,
            "digits-resshift",
            "digits-autoencoder",
            "emoji",
            "emoji-classifier",
            "etth1",
            "moving-digits",
            "pusht",
        ]
    )
    assert all(isinstance(recipes.recipe(n), Recipe) and recipes.recipe(n).name == n for n in recipes.names())


def test_a_model_of_characters_fills_what_is_left_open() -> None:
    """Every underscore is one character; what is given stands; short rows are filled, and shown without the filling."""
    from ebbtide.zoo.models import model_of

    small = MaskedLM(alphabet="\nabc", layers=1, heads=1, width=8, hidden=8, length=12)
    about = {**small.about(), "process": {"name": "masked", "vocab": 5, "mask": 4}}
    module = small.build(Noise(keys([3]), torch.zeros(1, dtype=torch.int64)))
    model = model_of(module, about, "letters")
    for text in ebb.sample(model, cond=["ab____c", "ab____c", "a[MASK]b"], n=3, seed=2).text():
        assert text in ("a" + text[1:-1] + "b", "ab" + text[2:-1] + "c")
        assert "_" not in text
        assert len(text) in (3, 7)
    assert len(ebb.sample(model, n=1).x[0]) == 12
    with pytest.raises(ebb.EbbError, match="does not write 'd'"):
        ebb.sample(model, cond="abcd_", n=1)
    with pytest.raises(ebb.EbbError, match="rows of 12"):
        ebb.sample(model, cond="_" * 13, n=1)
