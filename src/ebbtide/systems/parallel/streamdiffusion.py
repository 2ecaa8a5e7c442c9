"""StreamDiffusion: frames at different steps share one batch, guidance costs no call, and frames like the last are skipped.

Paper    Kodaira et al. 2023 (arXiv 2312.12491), sections 3.1 to 3.4
Card     digits, four Euler steps from data noised to t = 2/3. A stream of frames of a moving digit: what comes out against
         the same frames sampled alone, and network calls a frame. Guidance: 96 drawn digits, each asked to become another,
         and how many a classifier reads as such. The filter: a scene that stands still, frames of noise, and a scene that
         flickers, whose skips are compared with the rule's own probability. The control turns guidance off, and samples
         each frame to its end before the next
Differs  a network that was not distilled, so four steps of a flow; frames a second are measured in bench/streams.py
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree
from ebbtide.denoise.model import Model
from ebbtide.measure.decoding import Counted
from ebbtide.parallel.streams import Shown, Similar, Stream
from ebbtide.systems import Bench, Card, System
from ebbtide.zoo import classifier, reference

SYSTEM = System(
    id="streamdiffusion",
    family="parallel",
    title="StreamDiffusion: A Pipeline-level Solution for Real-time Interactive Generation",
    year=2023,
    claim="stream batch about 1.5x; residual guidance up to 2.05x over CFG; 91.07 fps on an RTX 4090",
    what="Frames at different steps share one batch, guidance costs zero or one call, and near-duplicates are skipped.",
    paper="2312.12491",
    parts=("guide/residual-guidance",),
    presets={
        "streamdiffusion": {
            "solve": "euler",
            "grid": {"name": "linear", "steps": 6},
            "start": {"name": "encoded", "last": 4},
            "guide": [{"name": "residual-guidance", "scale": 1.4}],
        },
        "streamdiffusion-once": {
            "solve": "euler",
            "grid": {"name": "linear", "steps": 6},
            "start": {"name": "encoded", "last": 4},
            "guide": [{"name": "residual-guidance", "scale": 2.0, "negative": "once"}],
        },
    },
    differs="a network that was not distilled; frames a second are in bench/streams.py",
)

STEPS, FRAMES, N = 4, 40, 96


class Calls(Counted):
    """A denoiser that counts its calls beside its rows."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self.calls = 0

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        self.calls += 1
        return super().__call__(x, t, cond)


def scene(frames: int = FRAMES) -> Tensor:
    """A digit that moves, (frames, 1, 28, 28)."""
    return reference.clips(28, frames).rows(torch.tensor([7]))[0][0]


def streamed(model: Model, plan: Any, frames: Tensor, **how: Any) -> tuple[list[Shown], Stream, int]:
    """What a stream shows, the stream with its counts, and the calls of the network."""
    counted = Calls(model.denoiser)
    stream = Stream(replace(model, denoiser=counted), plan, cond=3, **how)
    return list(stream(frames)), stream, counted.calls


def changed(model: Model, plan: Any) -> tuple[float, float]:
    """The share of digits that are read as what they were asked to become, and calls of a digit."""
    index = torch.arange(N) * 25
    data = reference.pictures()
    x, labels = data.rows(index)
    assert labels is not None
    asked = (labels + 1 + torch.arange(N) % 9) % 10
    out = ebb.sample(model, plan, cond={"label": asked.tolist(), "source": x}, n=N)
    read = classifier.load()(out.x).argmax(1)
    return float((read == asked).double().mean()), out.calls / N


def flickering(n: int) -> Tensor:
    """Frames of one picture of 16 numbers with some noise, of cosines near 0.95."""
    noise = Noise(keys([1]), torch.zeros(1, dtype=torch.int64)).normal(torch.zeros(1, n, 1, 4, 4, dtype=torch.float64))
    return 10 + 2.3 * noise[0]


def skips(rule: Similar, n: int = 2000) -> tuple[float, float]:
    """The share of frames skipped of a scene that flickers, and the rule's mean probability where it was asked."""
    from ebbtide.denoise.exact import Gaussian
    from ebbtide.process.flow import Flow

    like = torch.zeros(1, 4, 4, dtype=torch.float64)
    model = ebb.load(Gaussian(Flow(), like, 1.0), like=like)
    frames, one = flickering(n), ebb.Plan(grid={"name": "linear", "steps": 1}, start={"name": "encoded", "last": 1})
    shown = list(Stream(model, one, similar=rule)(frames))
    chances = []
    for a, b in itertools.pairwise(shown):
        if a.frame - a.source < rule.most:  # it might have been skipped too
            chances.append((rule.chance(frames[b.frame], frames[a.source]), b.source != b.frame))
    told, seen = torch.tensor(chances, dtype=torch.float64).mean(0).tolist()
    return seen, told


def card(bench: Bench) -> Card:
    """The stream against frames alone, what guidance costs and does, and what the filter skips."""
    model, plan, once = ebb.load("digits"), bench.plan("streamdiffusion"), bench.plan("streamdiffusion-once")
    frames = scene()
    shown, stream, calls = streamed(model, plan, frames, batched=bench.fault(True, False))
    alone = ebb.sample(model, plan, cond={"label": [3] * FRAMES, "source": frames}, n=FRAMES, batch=1).x
    gap = (torch.stack([s.x for s in shown]) - alone).abs().max()
    bench.check("gap to frames sampled alone, of the range of pixels", gap / 2, at_most=1e-5, published="0")
    each = calls / stream.ticks
    bench.check("network calls a frame while it streams (alone: 4)", each, at_most=1.0, published="1")

    bare = plan.replace(guide=[])
    plain, _ = changed(model, bare)
    own, cost = changed(model, plan)
    first, more = changed(model, once)
    guided, most = changed(model, bare.replace(guide=[{"name": "cfg", "scale": 2.0}]))
    bench.check("calls of self-negative, of no guidance", cost / STEPS, at_least=1.0, at_most=1.0, published="1")
    bench.check(
        "calls of onetime-negative, of no guidance", more / STEPS, at_least=1.25, at_most=1.25, published="1.25"
    )
    bench.check("calls of CFG, of no guidance", most / STEPS, at_least=2.0, at_most=2.0, published="2")
    bench.check("digits changed as asked by self-negative, over none", own - plain, at_least=0.1)
    bench.check("digits changed as asked by onetime-negative, over none", first - plain, at_least=0.2)

    rule = Similar(0.98, most=10)
    tiny = plan.replace(guide=[], start={"name": "encoded", "last": 1})
    still = streamed(model, tiny, frames[:1].expand(110, -1, -1, -1), similar=rule)[1]
    noise = Noise(keys(range(20)), torch.zeros(20, dtype=torch.int64)).normal(frames[:20])
    loud = streamed(model, tiny, noise, similar=rule)[1]
    bench.check("share skipped of a scene that stands still", still.skipped / 110, at_least=0.8, published="80%")
    bench.check("share skipped of noise", loud.skipped / 20, at_most=0.0, published="0")
    seen, told = skips(Similar(0.9, most=10))
    bench.check("share skipped, less the rule's probability", abs(seen - told), at_most=0.03, published="3 points")
    return bench.card(
        f"Read as asked: {plain:.2f} without guidance, {own:.2f} self-negative at 1.4, {first:.2f} onetime-negative and "
        f"{guided:.2f} CFG at 2. A scene that flickers is skipped at {seen:.3f}, the rule says {told:.3f}."
    )
