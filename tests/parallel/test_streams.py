"""Streams: in one batch as if alone, one call a frame, and frames that are skipped as often as the rule says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import process
from ebbtide.parallel.streams import Similar, Stream

STEPS, FRAMES = 4, 9
PLAN = ebb.Plan(grid={"name": "linear", "steps": 6}, start={"name": "encoded", "last": STEPS})


class Calls(Denoiser):
    """A denoiser and how often it was called."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process, self.count = inner, inner.process, 0

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        return self.inner.null(name, leaf)

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        self.count += 1
        return self.inner(x, t, cond)


def model(name: str = "vp-cosine") -> Any:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    law = GaussianMixture(process(name), torch.ones(2), means, 0.3, labels=torch.tensor([0, 1]))
    return ebb.load(Calls(law), like=torch.zeros(2, dtype=torch.float64), labels=2)


def frames(n: int = FRAMES) -> Tensor:
    angle = torch.arange(n, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize(
    "slots",
    [
        {},
        {"solve": "dpmpp-2m"},
        {"solve": {"name": "lcm"}},
        {"solve": {"name": "euler", "eta": 1.0}},
        {"guide": [{"name": "residual-guidance", "scale": 1.5}]},
        {"guide": [{"name": "residual-guidance", "scale": 1.5, "negative": "once"}]},
        {"guide": [{"name": "cfg", "scale": 2.0}]},
    ],
    ids=str,
)
def test_every_frame_is_what_sampling_it_alone_gives(slots: dict[str, Any]) -> None:
    one, plan, x = model(), PLAN.replace(**slots), frames()
    out = list(Stream(one, plan, cond=1, seed=5)(x))
    assert [s.frame for s in out] == [s.source for s in out] == list(range(FRAMES))
    for k, shown in enumerate(out):
        alone = ebb.sample(one, plan, cond={"label": [1], "source": x[k : k + 1]}, n=1, seed=5 + k)
        assert torch.equal(shown.x, alone.x[0])


def test_a_frame_costs_one_call_and_waits_for_its_own_steps_only() -> None:
    one = model()
    stream = Stream(one, PLAN, cond=0)
    ticks = []
    for shown in stream(frames()):
        ticks.append(shown.tick - shown.frame)
    assert ticks == [STEPS - 1] * FRAMES
    assert one.denoiser.count == stream.ticks == FRAMES + STEPS - 1
    assert stream.calls == FRAMES * STEPS


def test_unbatched_it_is_the_same_with_a_call_a_step() -> None:
    one, x = model(), frames()
    whole = list(Stream(one, PLAN, cond=0)(x))
    before = one.denoiser.count
    each = list(Stream(one, PLAN, cond=0, batched=False)(x))
    assert one.denoiser.count - before == FRAMES * STEPS
    assert [s.tick for s in each] == list(range(FRAMES))
    assert all(torch.equal(a.x, b.x) for a, b in zip(whole, each, strict=True))


def test_frames_come_out_before_the_next_comes_in() -> None:
    """A generator of frames is asked for one frame a tick: nothing is read ahead."""
    asked = []

    def live() -> Any:
        for k, x in enumerate(frames()):
            asked.append(k)
            yield x

    first = next(iter(Stream(model(), PLAN, cond=0)(live())))
    assert first.frame == 0
    assert asked == list(range(STEPS))


def test_conditions_may_change_from_frame_to_frame() -> None:
    one, x = model(), frames(4)
    asked = [{"source": v, "label": k % 2} for k, v in enumerate(x)]
    for k, shown in enumerate(Stream(one, PLAN)(asked)):
        alone = ebb.sample(one, PLAN, cond={"label": [k % 2], "source": x[k : k + 1]}, n=1, seed=k)
        assert torch.equal(shown.x, alone.x[0])


def test_a_scene_that_stands_still_is_sampled_once_in_eleven() -> None:
    one = model()
    stream = Stream(one, PLAN, cond=0, similar=Similar(0.98, most=10))
    out = list(stream(frames(1).expand(110, 2)))
    assert [s.frame for s in out] == list(range(110))
    assert stream.skipped == 100
    assert {s.source for s in out} == set(range(0, 110, 11))
    assert stream.calls == 10 * STEPS
    assert max(s.tick - s.frame for s in out) == STEPS - 1
    for s in out:
        assert torch.equal(s.x, out[s.source].x)


def test_frames_are_skipped_as_often_as_their_cosine_says() -> None:
    """Two pictures in turn, cos 0.9 apart, bar 0.8: after a sampled frame the next is skipped half of the time."""
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.tensor([0.9, (1 - 0.81) ** 0.5], dtype=torch.float64)
    n, rule = 3000, Similar(0.8, most=1)
    assert rule.chance(b, a) == pytest.approx(0.5)
    assert rule.chance(torch.tensor([0.0, 1.0]).double(), a) == 0
    stream = Stream(model(), PLAN.replace(start={"name": "encoded", "last": 1}), cond=0, similar=rule)
    out = list(stream(a if k % 2 == 0 else b for k in range(n)))
    # a skipped frame is followed by the picture last sampled, which most = 1 lets through: only pairs a, b are drawn for
    drawn = sum(out[k - 1].source == k - 1 for k in range(1, n))
    assert stream.skipped / drawn == pytest.approx(0.5, abs=0.04)


def test_a_stream_of_nothing_is_empty_and_a_bar_of_one_is_refused() -> None:
    assert list(Stream(model(), PLAN, cond=0)([])) == []
    with pytest.raises(EbbError, match="bar"):
        Similar(1.0)


def test_a_guide_that_did_nothing_is_an_error_of_the_stream() -> None:
    plan = PLAN.replace(guide=[{"name": "adaptive-guidance", "bar": 1.0}])
    with pytest.raises(EbbError, match="did nothing"):
        list(Stream(model(), plan, cond=0)(frames(2)))
