"""A correction that changes shape, time and condition on the way: runs of three sizes are three runs, one after another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core.errors import EbbError
from ebbtide.core.state import State
from ebbtide.denoise.model import Model
from ebbtide.journal import Journal

N, STEPS = 3, 10


class Smooth(torch.nn.Module):
    """A network for every size: a blurred picture, pulled towards what it is told, by its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.pull = torch.nn.Parameter(torch.tensor(0.3))
        self.sides: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, clock: Tensor, hint: Tensor) -> Tensor:
        self.sides.append(tuple(x.shape[2:]))
        soft = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
        share = (self.pull * clock / 1000)[:, None, None, None]
        return (1 - share) * torch.tanh(soft) + share * hint


def model(process: str = "flow") -> Model:
    return ebb.load(Smooth(), process=process, like=torch.zeros(1, 8, 8), predicts="x0", medium="image", name="smooth")


def hint(n: int = N, side: int = 8) -> Tensor:
    return torch.linspace(-1, 1, n * side * side).reshape(n, 1, side, side)


def plan(solve: Any = "euler", **neck: Any) -> ebb.Plan:
    return ebb.Plan(solve=solve, grid={"name": "linear", "steps": STEPS}, correct=[{"name": "bottleneck", **neck}])


def test_the_network_sees_every_size_for_as_many_steps_as_were_asked():
    m = model()
    out = ebb.sample(m, plan(at=(0.2, 0.7)), cond={"hint": hint()}, n=N)
    assert out.x.shape == (N, 1, 8, 8)
    assert m.denoiser.module.sides == [(4, 4)] + [(8, 8)] * 2 + [(4, 4)] * 5 + [(8, 8)] * 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("process", ["flow", "vp-cosine"])
@pytest.mark.parametrize("solve", ["euler", "heun", "dpmpp-2m"])
def test_three_sizes_are_three_runs(solve: str, process: str):
    """Bit for bit: what a switch left is a start like any other, and no solver remembers what was before it."""
    m, p = model(process), plan(solve, at=(0.2, 0.7), restart=(0.9,))
    steps = [s.state for s in ebb.run(m, p, cond={"hint": hint()}, n=N)]
    for first, last in ((2, 6), (7, STEPS)):  # the step that ends the second stage also begins the third
        state = steps[first - 1]
        times = state.memory["grid"]["points"][0, first : last + 1].tolist()
        grid = {"name": "explicit", "times": times if last == STEPS else [*times, 0.0]}
        alone = replace(m, like=torch.zeros(state.x.shape[1:]))
        cond = {"start": state.x, "hint": state.cond["hint"]}
        run = list(ebb.run(alone, ebb.Plan(solve=solve, grid=grid, start="given"), cond=cond, n=N))
        assert torch.equal(run[last - first - 1].state.x, steps[last - 1].x)
    assert [s.x.shape[-1] for s in steps] == [8, 4, 4, 4, 4, 4, 8, 8, 8, 8]


def test_what_belongs_to_the_other_size_is_forgotten():
    """What a start left for other corrections has no meaning in another shape: they do nothing from there on."""
    mix = {"name": "layout-mix", "nu": 0.5, "first": 0.99, "last": 0.05}
    own = plan(at=(0.4, 0.7)).replace(start={"name": "encoded", "strength": 0.9})
    both = own.replace(correct=[mix, *own.correct])
    notes = [s.info.get("layout-mix", 0) for s in ebb.run(model(), both, cond={"hint": hint(), "source": hint()}, n=N)]
    assert notes == [N] * 3 + [0] * 6


def test_times_follow_the_size():
    """For flow the resolution shift; at the switch the same tau, or the one it begins again at."""
    taus = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
    for restart, first in (((), 0.8), ((0.9,), 0.9)):
        seen = [
            float(s.state.t[0])
            for s in ebb.run(model(), plan(at=(0.2, 0.7), restart=restart), cond={"hint": hint()}, n=N)
        ]
        base = taus[7] + (taus[2:8] - taus[7]) * (first - taus[7]) / (taus[2] - taus[7])
        wanted = 0.5 * base / (1 - 0.5 * base)
        assert torch.allclose(torch.tensor(seen[1:6], dtype=torch.float64), wanted[:5], atol=1e-12, rtol=0)
        assert seen[6:] == pytest.approx(taus[7:].tolist())
    still = [
        float(s.state.t[0]) for s in ebb.run(model(), plan(at=(0.2, 0.7), shift=False), cond={"hint": hint()}, n=N)
    ]
    assert still == taus[1:].tolist()


def test_what_is_shown_again_bears_the_noise_of_its_time():
    """Of a flat prediction only fresh noise is left: c_s, in every size."""
    m = model()
    flat = torch.zeros(400, 1, 8, 8)
    with torch.no_grad():
        m.denoiser.module.pull.fill_(1.0)  # type: ignore[attr-defined]
    for step in ebb.run(m, plan(at=(0.1, 0.6)), cond={"hint": flat}, n=400):
        state = step.state
        if int(state.i[0]) == 1:
            t = float(state.t[0])
            rest = state.x - (1 - t) * torch.nn.functional.interpolate(
                step.pred.mean, (4, 4), mode="bilinear", antialias=True
            )
            assert abs(float(rest.std()) / t - 1) < 5 / (2 * rest.numel()) ** 0.5
            return


def test_one_stage_is_the_plain_run():
    out = ebb.sample(model(), plan(scales=(1.0,)), cond={"hint": hint()}, n=N)
    assert torch.equal(out.x, ebb.sample(model(), plan().replace(correct=[]), cond={"hint": hint()}, n=N).x)


def test_alone_and_in_a_batch():
    m, p = model(), plan()
    whole = ebb.sample(m, p, cond={"hint": hint()}, n=N).x
    parts = ebb.sample(m, p, cond={"hint": hint()}, n=N, batch=1).x
    assert torch.allclose(whole, parts, atol=1e-5)


@pytest.mark.parametrize("stop", [1, 2, 4, 6, 9])
def test_a_run_goes_on_from_every_size(stop: int, tmp_path: Path):
    """With its trace, which then holds frames of several sizes."""
    m, p, path = model(), plan("dpmpp-2m"), tmp_path / "run.state.safetensors"
    whole = ebb.sample(m, p, cond={"hint": hint()}, n=N, trace=True)
    journal, count = Journal(), 0

    def watch(step: Any, places: list[int]) -> None:
        nonlocal count
        count += 1
        if count == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ebb.sample(m, p, cond={"hint": hint()}, n=N, trace=True, watch=watch, journal=journal)
    journal.save(path, {})
    again = ebb.sample(m, p, cond={"hint": hint()}, n=N, trace=True, journal=Journal.load(path)[0])
    assert torch.equal(again.x, whole.x)
    assert [x.shape for x in again.trace] == [x.shape for x in whole.trace]
    assert all(torch.equal(a, b) for a, b in zip(again.trace, whole.trace, strict=True))
    assert {x.shape[-1] for x in whole.trace} == {4, 8}


def test_the_way_there_is_shown_in_one_size(tmp_path: Path):
    from PIL import Image

    out = ebb.sample(model(), plan(), cond={"hint": hint()}, n=N, trace=True)
    out.save(tmp_path / "way.gif")
    with Image.open(tmp_path / "way.gif") as gif:
        assert gif.n_frames > 1


def test_elements_at_different_steps_are_no_batch():
    m, p = model(), plan()
    loop, state = begin(m, p, cond={"hint": hint(1)}, n=1)
    ahead = loop.step(state).state
    both: State = ahead.cat(begin(m, p, cond={"hint": hint(1)}, n=1, seed=5)[1])
    with pytest.raises(EbbError, match="all elements at once"):
        for _ in loop.run(both):
            pass
    words = ebb.load(Smooth(), process="flow", like=torch.zeros(8), predicts="x0")
    with pytest.raises(EbbError, match="resizes pictures"):
        ebb.sample(words, p, n=2)
    with pytest.raises(EbbError, match="first and the last of scales"):
        plan(scales=(1.0, 0.5))
