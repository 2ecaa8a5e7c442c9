"""Models asked in words: prompts, negatives and sizes from the command line, and plans that repeat them alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from ebbtide import zoo
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.process.flow import Flow
from ebbtide.zoo.emoji import PromptModel, Words

WORDS = ("black", "grey", "white")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@dataclass
class Shade(Denoiser):
    """Every picture is one value, a tenth of the sum of its words' ids; so a run ends at the guided value itself."""

    calls: int = 0

    def __post_init__(self) -> None:
        self.process = Flow()

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return torch.zeros_like(leaf) if name == "words" else None

    def __call__(self, x: Any, t: Tensor, cond: dict[str, Any]) -> Pred:
        self.calls += 1
        value = cond["words"].to(x).sum(1) / 10
        return Pred(mean=value[:, None, None, None].expand_as(x).clone())


@pytest.fixture
def brush(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shade:
    """The denoiser of the model `brush`, which reads two words of three; `shown` has names to show."""
    denoiser = Shade()
    about: dict[str, Any] = {"medium": "image", "read": Words(WORDS, 2)}
    like = torch.zeros(1, 4, 4)
    models = {
        "brush": PromptModel("brush", denoiser, like, **about),
        "shown": PromptModel("shown", denoiser, like, info={"prompts": ["grey", "white"]}, **about),
    }
    monkeypatch.setattr(zoo, "names", lambda: sorted(models))
    monkeypatch.setattr(zoo, "load", lambda name, **_: models[name])
    monkeypatch.chdir(tmp_path)
    return denoiser


def shades(path: str) -> list[float]:
    """The value of each picture, which is the same at every pixel."""
    x = np.load(path)["x"]
    assert np.ptp(x.reshape(len(x), -1), axis=1).max() < 1e-6
    return [round(float(v), 5) for v in x[:, 0, 0, 0]]


# -------------------------------------------------------------------- prompts


def test_prompts_are_taken_in_turn_one_a_picture_unless_a_number_is_said(brush: Shade, run: Callable[..., Any]) -> None:
    run("sample brush --prompt black --prompt 'white grey' --steps 3 -o a.npz")
    assert shades("a.npz") == [0.1, 0.5]
    assert np.load("a.npz")["prompts"].tolist() == ["black", "white grey"]
    run("sample brush --prompt black --prompt white -n 5 --steps 3 -o b.npz")
    assert shades("b.npz") == [0.1, 0.3, 0.1, 0.3, 0.1]
    run("sample brush --prompt grey -n 3 --steps 3 -o c.npz")
    assert shades("c.npz") == [0.2] * 3


def test_a_file_holds_a_prompt_a_line(brush: Shade, run: Callable[..., Any]) -> None:
    Path("p.txt").write_text("black\n\n  white  \n")
    run("sample brush --prompt grey --prompt @p.txt --steps 3 -o a.npz")
    assert shades("a.npz") == [0.2, 0.1, 0.3]


def test_guidance_leads_away_from_the_negative(brush: Shade, run: Callable[..., Any]) -> None:
    run("sample brush --prompt white --guidance 3 --steps 3 -o a.npz")
    assert shades("a.npz") == [0.9]  # away from nothing, which is 0
    run("sample brush --prompt white --negative grey --guidance 3 --steps 3 -o b.npz")
    assert shades("b.npz") == [0.5]  # 0.2 + 3 (0.3 - 0.2)


def test_a_plan_alone_repeats_prompts_and_what_is_typed_wins(brush: Shade, run: Callable[..., Any]) -> None:
    run("sample brush --prompt black --prompt white --negative grey --guidance 2 --steps 3 -o a.png")
    held = yaml.safe_load(Path("a.plan.yaml").read_text())["run"]["cond"]
    assert held == {"prompt": ["black", "white"], "negative": "grey"}
    run("sample --plan a.plan.yaml -o b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    run("sample --plan a.png --negative white -o c.npz")
    assert shades("c.npz") == [-0.1, 0.3]
    run("sample --plan a.png --prompt grey -o d.npz")
    assert shades("d.npz") == [0.2, 0.2]
    run("sample --plan a.png -n 3 -o e.npz")
    assert shades("e.npz") == [0.0, 0.4, 0.0]


def test_a_plan_from_python_may_hold_a_bare_prompt_but_not_tensors(brush: Shade, run: Callable[..., Any]) -> None:
    import ebbtide as ebb

    model = zoo.load("brush")
    ebb.sample(model, cond="white", n=2).save("a.npz")
    run("sample --plan a.plan.yaml -o b.npz")
    assert np.array_equal(np.load("a.npz")["x"], np.load("b.npz")["x"])
    ebb.sample(model, cond={"words": torch.ones(2, 2, dtype=torch.int64)}, n=2).save("t.npz")
    assert "prompts" not in np.load("t.npz")
    assert "made of tensors" in run("sample --plan t.plan.yaml -o u.npz", code=2).err
    run("sample --plan t.plan.yaml --prompt white -o u.npz")
    assert shades("u.npz") == [0.3, 0.3]


def test_each_file_of_a_folder_holds_its_own_prompt(brush: Shade, run: Callable[..., Any]) -> None:
    run("sample brush --prompt black --prompt white --negative grey --guidance 2 --steps 3 --batch 1 -o pics")
    run("sample --plan pics/seed-0001.png -o one")
    assert Path("one/seed-0001.png").read_bytes() == Path("pics/seed-0001.png").read_bytes()


def test_without_a_prompt_the_model_shows_what_it_knows(brush: Shade, run: Callable[..., Any]) -> None:
    told = run("sample shown -n 3 --steps 3 -o a.npz")
    assert "grey, white in turn (--prompt" in told.err
    assert shades("a.npz") == [0.2, 0.3, 0.2]
    assert "--prompt" in run("sample brush -n 1 --steps 3 -o b.npz").err
    assert shades("b.npz") == [0.0]


def test_a_prompt_too_long_is_told_once(brush: Shade, run: Callable[..., Any]) -> None:
    told = run("sample brush --prompt 'white grey black' -n 6 --batch 2 --steps 3 -o a.npz")
    assert told.err.count("note: the prompt has 3 words and this model reads 2: it ends after 'grey'") == 1
    assert shades("a.npz") == [0.5] * 6


BAD = {
    "sample brush --prompt x --label 3 -o a.png": "--label or --prompt",
    "sample brush --negative x --label 3 -o a.png": "--label or --negative",
    "sample brush --label 3 -o a.png": "in words",
    "sample brush --prompt purple -o a.png": "no word of 'purple'",
    "sample brush --prompt @no.txt -o a.png": "no.txt cannot be read",
    "sample brush --prompt @empty.txt -o a.png": "no prompt",
    "sample brush --prompt white --size 8 -o a.png": "--size is for pipelines",
    "sample brush --prompt white --size 8x -o a.png": "HxW",
    "sample brush --prompt white --size 0x8 -o a.png": "HxW",
    "sample brush --prompt white --dtype float12 -o a.png": "did you mean float",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_sentence_and_code_2(brush: Shade, refused: Callable[[str, str], None], line: str) -> None:
    Path("empty.txt").write_text("\n \n")
    refused(line, BAD[line])
    assert brush.calls == 0
    assert sorted(p.name for p in Path().iterdir()) == ["empty.txt"]


def test_a_model_without_prompts_says_so(toy: Any, refused: Callable[[str, str], None]) -> None:
    refused("sample toy --prompt white -o a.png", "toy is not asked in words (--label); leave --prompt out")
    refused("sample points --negative white -o a.npz", "points is not asked in words; leave --negative out")
    refused("sample toy --size 32 -o a.png", "--size is for pipelines and --data")
    assert toy.calls == 0


# -------------------------------------------------------------------- pipelines


@pytest.fixture(scope="module")
def pipes(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny pipelines, with weights that mean nothing."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))
    import tiny

    folder = tmp_path_factory.mktemp("pipes")
    for name in ("sd", "dit"):
        tiny.build(shared, name, "ddim").save_pretrained(folder / name)
    return folder


@pytest.fixture
def here(pipes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in pipes.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    return tmp_path


ASKED = "--prompt 'low newer' --prompt wider --negative west --guidance 3 --steps 3"


def test_a_pipeline_gives_its_own_pictures_and_its_plan_repeats_them(here: Path, run: Callable[..., Any]) -> None:
    import ebbtide as ebb
    from ebbtide.core.plan import Plan

    run(f"sample sd {ASKED} --size 32x48 --seed 5 -o a.npz")
    plan = Plan(guide={"name": "cfg", "scale": 3.0}, grid={"name": "linear", "steps": 3})
    model = ebb.load("sd", height=32, width=48)
    made = ebb.sample(model, plan, cond={"prompt": ["low newer", "wider"], "negative": "west"}, n=2, seed=5)
    assert np.array_equal(np.load("a.npz")["x"], made.x.numpy())
    run("sample --plan a.plan.yaml -o b.npz")
    assert np.array_equal(np.load("a.npz")["x"], np.load("b.npz")["x"])
    run("sample --plan a.plan.yaml -o b.png")
    from PIL import Image

    with Image.open("b.png") as sheet:
        assert sheet.width > sheet.height  # two pictures of 32 x 48, one beside the other


def test_the_network_of_a_pipeline_takes_the_dtype(here: Path, run: Callable[..., Any]) -> None:
    run(f"sample sd {ASKED} --size 32 --dtype float64 -o a.npz")
    run(f"sample sd {ASKED} --size 32 -o b.npz")
    a, b = (np.load(f)["x"] for f in ("a.npz", "b.npz"))
    assert (a.dtype, b.dtype) == (np.float64, np.float32)
    assert 0 < np.abs(a - b).max() < 1e-3
    run("sample --plan a.plan.yaml -o c.npz")
    assert np.array_equal(a, np.load("c.npz")["x"])


def test_a_prompt_longer_than_the_tokenizer_reads_is_told_once(here: Path, run: Callable[..., Any]) -> None:
    told = run(f"sample sd --prompt '{'low newer ' * 60}' -n 3 --batch 1 --size 32 --steps 2 -o a.npz")
    assert told.err.count("note: the prompt is") == 1
    assert told.err.count("reads 77") == 1


def test_a_pipeline_of_labels_takes_labels(here: Path, run: Callable[..., Any]) -> None:
    run("sample dit --label 3,1 -n 2 --steps 2 -o a.npz")
    run("sample dit --label 1 --seed 1 -n 1 --steps 2 -o b.npz")
    a, b = (np.load(f)["x"] for f in ("a.npz", "b.npz"))
    assert np.abs(a[1] - b[0]).max() < 1e-5


def test_bad_input_to_a_pipeline_is_one_sentence(here: Path, refused: Callable[[str, str], None]) -> None:
    bad = {
        "sample sd --prompt low --size 30 -o a.png": "divisible by 8",
        "sample sd --prompt low --label 1 -o a.png": "--label or --prompt",
        "sample sd --label 1 -o a.png": "in words",
        "sample dit --prompt low -o a.png": "not asked in words (--label)",
        "sample dit --size 32 -o a.png": "height",
        "sample sd --prompt low --denoiser local -o a.png": "--denoiser is for --data",
        "sample sd --prompt low --dtype float12 -o a.png": "did you mean float",
        "sample bare --prompt low -o a.png": "misses its weights",
    }
    import shutil

    shutil.copytree("sd", "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    for line, word in bad.items():
        refused(line, word)
    assert not list(here.glob("a.*"))
