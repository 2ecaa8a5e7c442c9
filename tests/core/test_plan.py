"""Plans: plain data that stays plain, and every clash told in one sentence before anything runs."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import ebbtide as ebb
from ebbtide.core import plan as plans
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.plan import Plan, presets
from ebbtide.core.registry import make
from ebbtide.core.state import Pred

RICH = {
    "process": {"name": "vp-linear", "beta_max": 12.0},
    "grid": {"name": "explicit", "times": [1.0, 0.5, 0.0]},
    "guide": [{"name": "cfg", "scale": 2.0}, "cfg"],
    "solve": "heun",
    "run": {"seed": [1, 2], "cond": None, "about": {"n": 3}},
}


def refused(make, *words: str) -> None:
    """`make()` raises an EbbError of one sentence that holds all of `words`."""
    with pytest.raises(EbbError) as caught:
        make()
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text
    assert text[-1] in ".?", text
    assert len(text) < 300, text


# ---------------------------------------------------------------- clashes


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ({"solve": "hewn"}, ["no solve 'hewn'", "heun"]),
        ({"grid": {"name": "linear", "step": 5}}, ["grid 'linear'", "no parameter 'step'", "steps"]),
        ({"grid": {"name": "linear", "steps": 0}}, ["grid 'linear', steps", "greater than 0", "got 0"]),
        ({"grid": {"name": "linear", "steps": 2.5}}, ["grid 'linear', steps", "got 2.5"]),
        ({"solve": {"name": "euler", "eta": 1.5}}, ["solve 'euler', eta", "got 1.5"]),
        ({"solve": "karras"}, ["'karras' is a part of 'grid', not of 'solve'"]),
        ({"guide": ["cfg", "heun"]}, ["'heun' is a part of 'solve', not of 'guide'"]),
        ({"grid": "adaptive"}, ["grid 'adaptive' needs 'err'", "comes with solve", "heun"]),
        ({"grid": "adaptive", "solve": "heun", "process": {"name": "masked", "vocab": 4}},
         ["grid 'adaptive' does not go together with process 'masked' (stochastic)"]),
        ({"grid": {"steps": 3}}, ["grid must be the name of a part or a mapping with a 'name'"]),
        ({"solve": 7}, ["solve must be the name", "7"]),
        ({"guide": ["cfg", 7]}, ["guide must be the name", "7"]),
        ({"guide": 7}, ["guide", "7"]),
        ({"solve": None}, ["solve"]),
        ({"grid": None}, ["grid"]),
        ({"start": None}, ["start"]),
        ({"grid": {"name": "linear", "steps": print}}, ["plain data only"]),
        ({"run": {"model": object()}}, ["plain data only"]),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused_at_once(slots, words):
    refused(lambda: Plan(**slots), *words)


def test_a_slot_that_does_not_exist_gives_the_nearest():
    refused(lambda: Plan.from_dict({"sovle": "heun"}), "no slot 'sovle'", "did you mean solve?")


@pytest.mark.parametrize("data", [None, [], "heun", 5])
def test_a_plan_is_a_mapping(data):
    refused(lambda: Plan.from_dict(data), "mapping")


# ---------------------------------------------------------------- plans that meet a model


class Flat(Denoiser):
    """Knows nothing, says the same logits or zeros; its process and its null are all that matters here."""

    def __init__(self, nulls=(), **spec):
        self.process, self.nulls = make("process", spec), nulls

    def __call__(self, x, t, cond):
        return Pred(logits=torch.zeros(*x.shape, 4)) if x.dtype == torch.int64 else Pred(mean=torch.zeros_like(x))

    def null(self, name, leaf):
        return torch.zeros_like(leaf) if name in self.nulls else None


def numbers(**spec):
    return ebb.load(Flat(**{"name": "flow", **spec}), like=torch.zeros(3))


def tokens():
    return ebb.load(Flat(name="masked", vocab=4), like=torch.zeros(5, dtype=torch.int64), units=1)


@pytest.mark.parametrize(
    ("model", "slots", "words"),
    [
        (tokens, {"solve": "dpmpp-2m"}, ["solve 'dpmpp-2m' needs 'affine'"]),
        (tokens, {"grid": "karras"}, ["grid 'karras' needs 'affine'"]),
        (numbers, {"guide": "cfg"}, ["guide 'cfg' needs 'null'"]),
        (numbers, {"grid": "counts"}, ["grid 'counts' needs 'masked'"]),
        (numbers, {"solve": "confidence"}, ["solve 'confidence' needs 'masked'"]),
        (tokens, {"grid": "adaptive", "solve": "heun"}, ["adaptive"]),
        (tokens, {"process": "flow"}, ["cannot be sampled in 'flow'"]),
        (numbers, {"process": "bridge"}, ["cannot be sampled in 'bridge'"]),
    ],
)
def test_a_plan_that_does_not_fit_its_model_is_refused_before_anything_runs(model, slots, words):
    plan = Plan(**slots)  # by itself it may be
    refused(lambda: model().loop(plan), *words)


def test_a_condition_that_can_be_taken_away_makes_guidance_possible():
    plan = Plan(guide="cfg")
    y = torch.zeros(1, 3)
    assert numbers(nulls=("y",)).loop(plan, {"y": y})
    assert numbers().loop(plan, {"y": y, "null": {"y": y}})
    refused(lambda: numbers(nulls=("y",)).loop(plan, {"z": y}), "needs 'null'")


# ---------------------------------------------------------------- plain data


def test_there_and_back_by_every_way(tmp_path):
    plan = Plan(**RICH)
    assert plan == Plan.from_dict(plan.to_dict())
    assert plan == Plan.from_dict(json.loads(plan.to_json()))
    assert plan == Plan.from_dict(yaml.safe_load(plan.to_yaml()))
    assert plan == pickle.loads(pickle.dumps(plan))
    for name in ("p.yaml", "p.json", "p"):
        plan.save(tmp_path / name)
        assert Plan.load(tmp_path / name) == plan
        assert Plan.load(str(tmp_path / name)) == plan
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "p.json", "p.yaml"]
    assert json.loads((tmp_path / "p.json").read_text()) == plan.to_dict()


def test_a_name_alone_is_a_spec_and_one_spec_a_list():
    assert Plan(solve="heun", guide="cfg") == Plan(solve={"name": "heun"}, guide=[{"name": "cfg"}])
    assert Plan().to_dict() == {"start": {"name": "prior"}, "grid": {"name": "linear"}, "solve": {"name": "euler"}}


def test_numbers_of_numpy_and_torch_become_plain():
    plan = Plan(
        grid={"name": "explicit", "times": (np.float64(1), torch.tensor(0.5), 0)},
        guide=({"name": "cfg", "scale": np.int64(2)},),
        run={"seeds": np.arange(2), "x": torch.ones(2, 1)},
    )
    wanted = Plan(
        grid={"name": "explicit", "times": [1.0, 0.5, 0]},
        guide=[{"name": "cfg", "scale": 2}],
        run={"seeds": [0, 1], "x": [[1.0], [1.0]]},
    )
    assert plan == wanted
    assert plan.to_yaml() == wanted.to_yaml()


def test_nothing_outside_changes_a_plan():
    spec = {"name": "explicit", "times": [1.0, 0.5, 0.0]}
    plan = Plan(grid=spec, run={"a": [1]})
    spec["times"][1] = 0.9
    out = plan.to_dict()
    out["grid"]["times"].append(7)
    out["run"]["a"].append(2)
    assert plan == Plan(grid={"name": "explicit", "times": [1.0, 0.5, 0.0]}, run={"a": [1]})
    with pytest.raises(FrozenInstanceError):
        plan.solve = "heun"
    assert plan.replace(solve="heun").grid == plan.grid
    refused(lambda: plan.replace(solve="hewn"), "heun")


# ---------------------------------------------------------------- files


def test_presets_are_plans(tmp_path, monkeypatch):
    for name in presets():
        assert isinstance(Plan.load(name), Plan)
    monkeypatch.setattr(plans, "PRESETS", tmp_path)
    Plan(solve="heun").save(tmp_path / "sharp.yaml")
    assert Plan.load("sharp") == Plan(solve="heun")
    refused(lambda: Plan.load("shap"), "neither a file nor a preset", "did you mean sharp?")


def png(path, **text):
    info = PngInfo()
    for k, v in text.items():
        info.add_text(k, v)
    Image.new("L", (2, 2)).save(path, pnginfo=info)


def test_a_picture_that_holds_its_plan_gives_it(tmp_path):
    png(tmp_path / "a.png", ebbtide=Plan(**RICH).to_json())
    assert Plan.load(tmp_path / "a.png") == Plan(**RICH)


WRONG = {
    "plain.png": png,
    "noise.png": lambda path: path.write_bytes(bytes(range(256))),
    "empty.png": lambda path: path.write_bytes(b""),
    "folder.yaml": lambda path: path.mkdir(),
    "broken.yaml": lambda path: path.write_text("solve: [heun"),
    "bytes.yaml": lambda path: path.write_bytes(b"\xff\xfe\x00\x81"),
    "list.yaml": lambda path: path.write_text("- heun"),
    "empty.yaml": lambda path: path.write_text(""),
    "code.yaml": lambda path: path.write_text("solve: !!python/object/apply:os.getcwd []"),
    "nothing.yaml": lambda path: path.write_text("solve:\n"),
    "missing.yaml": lambda path: None,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_holds_no_plan_is_refused(tmp_path, name):
    WRONG[name](tmp_path / name)
    refused(lambda: Plan.load(tmp_path / name))
