"""Thresholds and credits: who is shown when, what it costs, and batches of unequal prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.process.masked import Masked

V, MASK = 3, 3


class Sure(Denoiser):
    """Says token 1 with probability p at each place, as a table by how many are hidden there says; counts its rows."""

    def __init__(self, table):
        self.process, self.table, self.rows = Masked(V), table, []

    def __call__(self, x, t, cond):
        hidden = (x == MASK).sum(1)
        self.rows.append(len(x))
        p = torch.stack([torch.tensor(self.table[int(k)], dtype=torch.float64) for k in hidden])
        rest = (1 - p) / 2
        return Pred(logits=torch.stack([rest, p, rest], -1).log())


def ran(denoiser, x, **solve):
    model = ebb.load(denoiser, like=x[0])
    return ebb.sample(
        model, ebb.Plan(start="given", solve=solve, grid="events"), cond={"start": x}, n=len(x), trace=True
    )


HALF = {key: [0.95, 0.5, 0.92, 0.6] for key in range(1, 5)}


def test_all_that_pass_are_shown_together_and_else_the_surest_one():
    out = ran(Sure(HALF), torch.full((1, 4), MASK), name="threshold", threshold=0.9)
    shown = [(x[0] != MASK).tolist() for x in out.trace]
    assert shown == [[True, False, True, False], [True, False, True, True], [True] * 4]
    assert out.calls == 3


def test_blocks_are_decided_from_left_to_right():
    out = ran(Sure(HALF), torch.full((1, 4), MASK), name="threshold", threshold=0.9, block=2)
    shown = [(x[0] != MASK).tolist() for x in out.trace]
    assert shown == [[True, False, False, False], [True, True, False, False], [True, True, True, False], [True] * 4]


def test_elements_end_by_themselves_and_cost_what_they_cost_alone():
    x = torch.tensor([[MASK] * 4, [0, MASK, 0, 0], [MASK, 0, MASK, 0], [0, MASK, 0, MASK]])
    denoiser = Sure(HALF)
    out = ran(denoiser, x, name="threshold")
    assert denoiser.rows == [4, 2, 1]
    assert out.calls == 7 == sum(ran(Sure(HALF), x[j : j + 1], name="threshold").calls for j in range(4))
    assert torch.equal(out.x, torch.where(x == MASK, 1, x))


def test_a_threshold_above_one_is_one_token_a_call():
    table = dict.fromkeys(range(1, 5), [1 - 1e-12] * 4)
    assert ran(Sure(table), torch.full((1, 4), MASK), name="threshold", threshold=1.5).calls == 4
    assert ran(Sure(table), torch.full((1, 4), MASK), name="threshold", threshold=0.9).calls == 1


def test_credits_bring_a_timid_token_over_the_threshold():
    """Place 0 says 0.8 again and again: alpha = 1, beta = 1/2, gamma = 1 lift it past 0.9 at the second step, by hand."""
    table = {key: [0.8, 0.85, 0.95] for key in range(1, 4)}
    x = torch.full((1, 3), MASK)
    knobs = {"threshold": 0.9, "beta": 0.5, "gamma": 1.0}
    plain = ran(Sure(table), x, name="threshold", threshold=0.9)
    out = ran(Sure(table), x, name="credit-decoding", alpha=1.0, **knobs)
    assert plain.calls == 3
    # one step: odds (1 + p) p / (1 - p) of p = 0.8 are 7.2, and of 0.85 10.5: chance 0.878 and 0.913
    # two steps: credits 0.8 * 0.5 + 0.8 = 1.2, odds 2.2 * 4 = 8.8, chance 0.898
    assert [(t[0] != MASK).tolist() for t in out.trace] == [[False, True, True], [True, True, True]]
    assert ran(Sure(table), x, name="credit-decoding", alpha=0.0, **knobs).calls == 3


def test_credits_of_a_block_begin_with_it():
    table = {key: [0.95, 0.95, 0.6, 0.6] for key in range(1, 5)}
    model = ebb.load(Sure(table), like=torch.zeros(4, dtype=torch.int64))
    plan = ebb.Plan(solve={"name": "credit-decoding", "block": 2}, grid="events")
    steps = [step.state.memory["solve"]["credits"] for step in ebb.run(model, plan)]
    assert not bool(steps[0].any())  # shown at once, and the next block has none yet
    assert steps[1][0].any(1).tolist() in ([False, False, True, False], [False, False, False, True])


def test_drawn_tokens_are_those_of_the_seed():
    model = ebb.load("shakespeare")
    plan = ebb.Plan(solve={"name": "threshold", "temperature": 0.8}, grid="events")
    prompt = {"prompt": "ROMEO: ____ love ____."}
    both = ebb.sample(model, plan, cond=prompt, n=2)
    other = ebb.sample(model, plan, cond=prompt, n=1, seed=1)
    assert torch.equal(both.x[1], other.x[0])
    assert not torch.equal(both.x[0], both.x[1])


@pytest.mark.parametrize("name", ["threshold", "credit-decoding"])
def test_unequal_prompts_of_a_batch_are_what_they_are_alone(name):
    model = ebb.load("shakespeare")
    prompts = ["ROMEO: ____ love ____.", "The ______ of Rome", "I am ________________ here, my ___", "a_"]
    plan = ebb.Plan(solve={"name": name, "threshold": 0.7}, grid="events")
    batch = ebb.sample(model, plan, cond={"prompt": prompts}, n=4)
    alone = [ebb.sample(model, plan, cond={"prompt": p}, n=1) for p in prompts]
    assert [a.text()[0] for a in alone] == batch.text()
    assert sum(a.calls for a in alone) == batch.calls


def test_grids_that_end_before_the_tokens_do_are_refused():
    with pytest.raises(EbbError, match="events"):
        ebb.Plan(solve="threshold", grid="linear")


def test_time_says_how_much_is_hidden():
    model = ebb.load(Sure(HALF), like=torch.zeros(4, dtype=torch.int64))
    plan = ebb.Plan(solve="threshold", grid="events")
    times = [float(step.state.t[0]) for step in ebb.run(model, plan)]
    assert times == pytest.approx([0.5, 0.25, 0.0])
    cosine = replace(model, denoiser=Sure(HALF))
    cosine.denoiser.process = Masked(V, schedule="cosine")
    late = next(iter(ebb.run(cosine, plan))).state.t
    assert float(cosine.denoiser.process.alpha(late)[0]) == pytest.approx(0.5)
