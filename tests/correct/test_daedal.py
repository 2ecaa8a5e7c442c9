"""DAEDAL: canvases grow while the end is not in sight, one element apart from another."""

from __future__ import annotations

import pytest
import torch

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.process.masked import Masked

EOS, MASK, ROW = 0, 3, 16
PLAN = {"solve": {"name": "threshold", "threshold": 0.9}, "grid": "events", "start": "given"}


class Until(Denoiser):
    """Says token 1 up to the length that an element's first token asks for (2: three more, 1: eight more), eos after it.

    `doubt` is a place of which it knows nothing as long as fewer than `wide` places are shown to it.
    """

    def __init__(self, doubt=None, wide=0):
        self.process, self.doubt, self.wide, self.widths = Masked(3), doubt, wide, []

    def __call__(self, x, t, cond):
        seen = cond["attention_mask"].sum(1)
        self.widths.append(seen.tolist())
        wanted = torch.where(x[:, :1] == 2, 4, 9)
        token = torch.where(torch.arange(ROW) < wanted, 1, EOS)
        p = torch.full((len(x), ROW, 3), 0.01).scatter(2, token[..., None], 0.98).double()
        if self.doubt is not None:
            p[seen < self.wide, self.doubt] = 1 / 3
        return Pred(logits=p.log())


def start():
    x = torch.full((2, ROW), MASK)
    x[0, 0], x[1, 0] = 2, 1
    return x


def ran(denoiser, x, **knobs):
    model = ebb.load(denoiser, like=x[0])
    spec = {"name": "daedal", "eos": EOS, "initial": 4, "expansion": 3, "window": 2, "low": 0.4, **knobs}
    return ebb.sample(model, ebb.Plan(correct=[spec], **PLAN), cond={"start": x}, n=len(x))


def test_each_canvas_grows_until_its_own_end_is_in_sight():
    """One with four tokens to show: 5 places show one end, 8 two. Nine: 5, 8, 11. A tail of one is put after what is open."""
    denoiser = Until()
    out = ran(denoiser, start(), enough=0.9)
    assert denoiser.widths[:3] == [[5, 5], [8, 8], [11]]
    assert out.x.tolist() == [[2, *[1] * 3, *[EOS] * 12], [1] * 9 + [EOS] * 7]
    alone = [ran(Until(), start()[j : j + 1], enough=0.9) for j in range(2)]
    assert torch.equal(out.x, torch.cat([a.x for a in alone]))
    assert out.calls == sum(a.calls for a in alone) == 5


def test_while_the_length_is_sought_nothing_is_decided():
    model = ebb.load(Until(), like=torch.zeros(ROW, dtype=torch.int64))
    spec = {"name": "daedal", "eos": EOS, "initial": 4, "expansion": 3, "window": 2, "enough": 0.9}
    steps = list(ebb.run(model, ebb.Plan(correct=[spec], **PLAN), cond={"start": start()}, n=2))
    first = steps[0].state
    assert first.x[0].tolist() == [2] + [MASK] * 7 + [EOS] * 8
    assert first.t.tolist() == [1.0, 1.0]
    assert [s.info["daedal"] for s in steps] == [2, 2, 1]


def test_an_unsure_place_becomes_several():
    """A prompt that leaves places 3 and 4 open, in a row of eight: 4 is not known below ten places, so it is three there."""
    x = torch.full((1, ROW), EOS)
    x[0, :8] = torch.tensor([1, 1, 1, MASK, MASK, 1, 1, 1])
    denoiser = Until(doubt=4, wide=10)
    seen = (torch.arange(ROW) < 8).long()[None]
    model = ebb.load(denoiser, like=x[0])
    spec = {"name": "daedal", "eos": EOS, "expansion": 3, "window": 2, "low": 0.4}
    plan = ebb.Plan(correct=[spec], **PLAN)
    steps = list(ebb.run(model, plan, cond={"start": x, "attention_mask": seen}, n=1))
    assert steps[0].state.x[0].tolist() == [1, 1, 1, 1, MASK, MASK, MASK, 1, 1, 1, *[EOS] * 6]
    assert float(steps[0].state.t) == 1.0  # three are open where two were, of which half the time was left
    assert steps[-1].state.x[0, :10].tolist() == [1] * 9 + [1]
    assert denoiser.widths == [[8], [10]]


def test_a_canvas_is_no_longer_than_allowed_and_without_growth_as_it_was():
    denoiser = Until()
    out = ran(denoiser, start(), enough=0.9, longest=7)
    assert max(w for widths in denoiser.widths for w in widths) == 7
    assert not bool((out.x == MASK).any())
    seen = torch.ones(2, ROW, dtype=torch.int64)
    model = ebb.load(Until(), like=torch.zeros(ROW, dtype=torch.int64))
    cond = {"start": start(), "attention_mask": seen}
    off = ebb.Plan(correct=[{"name": "daedal", "eos": EOS, "expansion": 0}], **PLAN)
    plain = ebb.Plan(**PLAN)
    assert torch.equal(ebb.sample(model, off, cond=cond, n=2).x, ebb.sample(model, plain, cond=cond, n=2).x)


def test_a_language_model_grows_and_a_batch_of_unequal_prompts_is_what_each_is_alone():
    model = ebb.load("shakespeare")
    plan = ebb.Plan(
        solve={"name": "threshold", "threshold": 0.5}, grid="events", network=["freecache"],
        correct=[{"name": "daedal", "eos": 0, "initial": 8, "window": 4, "longest": 48}],
    )  # fmt: skip
    prompts = ["ROMEO:\nI", "The king is", "JULIET:\nO"]
    batch = ebb.sample(model, plan, cond={"prompt": prompts}, n=3)
    alone = [ebb.sample(model, plan, cond={"prompt": p}, n=1) for p in prompts]
    assert batch.text() == [a.text()[0] for a in alone]
    assert all(t.startswith(p) for t, p in zip(batch.text(), prompts, strict=True))
    assert batch.calls == sum(a.calls for a in alone)


def test_an_end_that_is_no_token_is_refused():
    with pytest.raises(EbbError, match="writes 0 to 2"):
        ran(Until(), start(), eos=7)
