"""Frames and tokens of pipelines with times of their own, where their denoiser can be told so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers as df
import more
import pytest
import tiny
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
PLAN = ebb.Plan(grid={"name": "linear", "steps": 3}, guide={"name": "cfg", "scale": 2.0})
COND = {"prompt": ["low newer", "wider"], "negative": "west"}


def built(shared: Path, name: str, **options: Any) -> Any:
    """A video pipeline as a model: Wan, whose latents are (C, F, H, W), or LTX, whose are packed (L, C)."""
    if name == "wan":
        return ebb.load(tiny.build(shared, "wan", "flow-euler"), **tiny.SIZE["wan"], **options)
    pipe, asked = more.build(shared, name)
    return ebb.load(pipe, **asked, **options)


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_equal_times_are_one_time(shared: Path, name: str) -> None:
    one, each = built(shared, name), built(shared, name, units=1)
    start = torch.randn((2, *one.like.shape), generator=torch.Generator().manual_seed(1))
    plan = PLAN.replace(start="given")
    x, y = (ebb.sample(m, plan, cond={**COND, "start": start}, n=2).x for m in (one, each))
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_each_unit_is_told_its_own_time(shared: Path, name: str) -> None:
    """Another time for the last unit changes what is said; told to a unit in the place of another, it would not be the same."""
    model = built(shared, name, units=1)
    shape = model.unit_shape()
    assert shape == ((1, model.like.shape[1]) if name == "wan" else (model.like.shape[0],))
    x = torch.randn((1, *model.like.shape), generator=torch.Generator().manual_seed(1))
    cond = {k: v for k, v in model.condition({"prompt": "low"}, 1).items() if k != "null"}
    t = torch.full((1, *shape), 0.7, dtype=torch.float64)
    later = t.clone()
    later[..., -1] = 0.2
    with torch.no_grad():
        a, b = (model.denoiser.call(model.denoiser.module, x, 1000 * v.float(), cond) for v in (t, later))
    moved = (a - b).abs().movedim(2 if name == "wan" else 1, 0).flatten(1).mean(1)
    assert moved.argmax() == len(moved) - 1
    assert moved[-1] > 3 * moved[:-1].max()


def test_a_known_frame_stays_and_is_seen(shared: Path) -> None:
    model = built(shared, "wan", units=1)
    source = torch.randn((2, *model.like.shape), generator=torch.Generator().manual_seed(1))
    known = torch.zeros(2, 1, model.like.shape[1], dtype=torch.bool)
    known[..., 0] = True
    plan = PLAN.replace(start={"name": "known"})
    made = [
        ebb.sample(model, plan, cond={**COND, "source": v, "known": known}, n=2, seed=3).x for v in (source, -source)
    ]
    assert torch.equal(made[0][:, :, 0], source[:, :, 0])
    assert not torch.equal(made[0][:, :, 1], source[:, :, 1])
    assert (made[0] - made[1])[:, :, 1].abs().max() > 1e-4


def test_pictures_have_one_time(shared: Path) -> None:
    with pytest.raises(EbbError, match="makes pictures"):
        ebb.load(tiny.build(shared, "sd", "ddim"), **tiny.SIZE["sd"], units=1)
    with pytest.raises(EbbError, match="one time for an element"):
        ebb.load(tiny.build(shared, "flux", "flow-euler"), **tiny.SIZE["flux"], units=1)


def test_frames_that_share_a_token_share_a_time(shared: Path) -> None:
    pipe = tiny.build(shared, "wan", "flow-euler")
    pipe.transformer.register_to_config(patch_size=(2, 2, 2))
    with pytest.raises(EbbError, match="2 frames in one token"):
        ebb.load(pipe, **tiny.SIZE["wan"], units=1)


def test_the_pipeline_that_tells_every_token_is_heard(shared: Path) -> None:
    """Wan 2.2 5B tells a time for each token, the same for all: what it makes by itself is what we make."""
    pipe = tiny.build(shared, "wan", "flow-euler")
    pipe.register_to_config(expand_timesteps=True)
    assert isinstance(pipe, df.WanPipeline)
    asked = {"num_inference_steps": 4, "output_type": "pt", "return_dict": False, **tiny.SIZE["wan"]}
    wanted, got = (
        torch.as_tensor(p("low newer", generator=torch.Generator().manual_seed(0), **asked)[0])
        for p in (pipe, ebb.attach(None, pipe))
    )
    assert float((got - wanted).abs().max()) < 1e-5
    model = ebb.load(pipe, **tiny.SIZE["wan"], units=1)
    assert ebb.sample(model, PLAN, cond=COND, n=2).x.shape == (2, *model.like.shape)
