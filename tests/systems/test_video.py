"""Video systems: what the cards of fvdm and analytic-init measure with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.denoise.model import Model
from ebbtide.process.flow import Flow
from ebbtide.start.analytic import best_fit
from ebbtide.systems import Bench
from ebbtide.systems.guide import analytic_init
from ebbtide.systems.world import fvdm


class Looks(Denoiser):
    """Answers with what it is shown, and keeps it."""

    process = Flow()

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Pred:
        self.seen.append((x, t))
        return Pred(mean=x)


def looks(units: int) -> Model:
    return Model("looks", Looks(), torch.zeros(fvdm.FRAMES, 1, fvdm.SIZE, fvdm.SIZE), units=units, medium="video")


def test_the_baseline_shows_known_frames_at_the_time_of_all():
    made, clips = looks(0), fvdm.real(64)
    x = fvdm.replaced(made, clips, [0, -1])
    assert torch.equal(x[:, [0, -1]], clips[:, [0, -1]])
    for seen, t in made.denoiser.seen:  # type: ignore[attr-defined]
        assert t.shape == (64,)
        off = (seen - (1 - float(t[0])) * clips)[:, [0, -1]]
        assert float(off.std()) == pytest.approx(float(t[0]), rel=0.03)


def test_a_model_that_hears_frames_apart_is_not_on_the_path_of_one_time():
    class Apart(Looks):
        def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Pred:
            return Pred(mean=0.5 * x * (1 + 1e-3 * (t.ndim - 1)))

    assert fvdm.same_path(looks(1)) < 1e-12
    assert fvdm.same_path(replace(looks(1), denoiser=Apart())) > 1e-5


def test_real_clips_go_on_as_they_went():
    clips = fvdm.real(1000)
    assert fvdm.jump(clips) == pytest.approx(1, abs=0.1)
    assert fvdm.jump(torch.cat([clips[:, :4], clips.roll(1, 0)[:, 4:]], 1)) > 2
    assert fvdm.between(clips, clips.roll(1, 0)) > 0


def test_clips_of_another_seed_are_other_paths_of_the_same_pictures():
    one, other = analytic_init.real(50, seed=0), analytic_init.real(50, seed=1)
    assert not torch.equal(one, other)
    assert torch.equal(one, analytic_init.real(50, seed=0))
    light = [v.flatten(1).mean() for v in (one, other)]
    assert float(light[0]) == pytest.approx(float(light[1]), abs=0.02)


def test_a_still_has_no_motion():
    clips = fvdm.real(8)
    assert analytic_init.motion(clips[:, :1].expand_as(clips)) == 0
    assert analytic_init.motion(clips) > 0.01


@pytest.mark.parametrize("at", [0.5, 0.25])
def test_noise_alone_at_a_lower_time_misses_the_gaussian(at: float):
    ours, bare = (max(analytic_init.missed(Bench(analytic_init.SYSTEM, control), at)) for control in (False, True))
    assert ours < 4 < 8 < bare


def test_the_preset_starts_from_the_moments_of_the_clips():
    fit, said = best_fit(analytic_init.real(1000, seed=0)), analytic_init.SYSTEM.presets["analytic-init"]["start"]
    assert said["mean"] == pytest.approx(float(fit["mean"]), abs=1e-3)
    assert said["var"] == pytest.approx(float(fit["var"]), abs=1e-3)


def test_a_share_of_motion_does_not_see_contrast():
    clips, mean = analytic_init.real(64), analytic_init.real(1000).mean((0, 1))
    faint = mean + 0.3 * (clips - mean)
    assert analytic_init.share(faint) == pytest.approx(analytic_init.share(clips), rel=1e-4)
    assert analytic_init.motion(faint) == pytest.approx(0.09 * analytic_init.motion(clips), rel=1e-4)
