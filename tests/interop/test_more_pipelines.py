"""Pipelines that nothing in ebbtide names: their calls are heard, so they work as those that are tried in detail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import more
import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def made(pipe: Any, asked: dict[str, Any], **changed: Any) -> Tensor:
    run = {"num_inference_steps": 5, "output_type": "pt", "return_dict": False, **asked, **changed}
    return torch.as_tensor(pipe(prompt="low newer", generator=torch.Generator().manual_seed(0), **run)[0])


@pytest.mark.parametrize("name", more.BUILDERS)
def test_attached_without_a_plan_it_is_the_pipeline(shared: Path, name: str) -> None:
    pipe, asked = more.build(shared, name)
    wanted = made(pipe, asked)
    assert float((made(ebb.attach(None, pipe), asked) - wanted).abs().max()) < 1e-5
    # what the denoiser is told matters to these pictures
    other = {k: 1 - v for k, v in asked.items() if isinstance(v, Tensor)} or {"negative_prompt": "wider er"}
    assert float((made(pipe, asked, **other) - wanted).abs().max()) > 1e-3


@pytest.mark.parametrize("name", more.LOADED)
def test_loaded_it_makes_pictures_of_prompts(shared: Path, name: str) -> None:
    pipe, asked = more.build(shared, name)
    model = ebb.load(pipe, **asked)
    plan = ebb.Plan(grid={"name": "linear", "steps": 2}, guide={"name": "cfg", "scale": 2.0})
    out = ebb.sample(model, plan, cond={"prompt": ["low", "newer er"], "negative": "wider"}, n=2).pixels
    assert isinstance(out, Tensor)
    assert out.shape[-2:] == (asked["height"], asked["width"])
    assert float((out[0] - out[1]).abs().max()) > 1e-3


def test_prompts_of_unequal_length_are_sampled_apart(shared: Path) -> None:
    """Qwen-Image gives a prompt as many places as it has tokens; conditions of two lengths are two calls of one step."""
    pipe, asked = more.build(shared, "qwen")
    model = ebb.load(pipe, **asked)
    plan = ebb.Plan(grid={"name": "linear", "steps": 2}, guide={"name": "cfg", "scale": 2.0})
    with pytest.raises(EbbError, match="cannot hold: sample prompts of one length together"):
        ebb.sample(model, plan, cond=["low", "newer er"], n=2)
    both = ebb.sample(model, plan, cond={"prompt": ["low", "own"], "negative": "wider"}, n=2).x
    alone = ebb.sample(model, plan, cond={"prompt": "own", "negative": "wider"}, n=1, seed=1).x
    assert isinstance(both, Tensor)
    assert torch.allclose(both[1:], alone, atol=1e-5)
    assert float((both[0] - both[1]).abs().max()) > 1e-3


def test_what_depends_on_the_latents_cannot_be_loaded(shared: Path) -> None:
    """A ControlNet answers for the latents of the pipeline's own loop, which a model does not have."""
    pipe, asked = more.build(shared, "controlnet")
    with pytest.raises(EbbError, match=r"'down_block_additional_residuals.\[\d\]' of this denoiser changes"):
        ebb.load(pipe, **asked)
