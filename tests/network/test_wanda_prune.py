"""Wanda-prune: the greatest of each row that prompts light up more than no prompt does, and nothing else, become zero."""

from __future__ import annotations

import pytest
import torch

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.network.anatomy import anatomy
from ebbtide.network.wanda_prune import (
    WandaPrune,
    among,
    inputs,
    layers_of,
    located,
    overlap,
    promptless,
    prompts_of,
    pruned,
)

PLAN = ebb.Plan(grid={"name": "linear", "steps": 4})


@pytest.fixture(scope="module")
def model():
    return ebb.load("digits")


@pytest.fixture(scope="module")
def record(model):
    return ebb.record(model, PLAN, n=4, cond=[3, 8, 3, 8])


def test_a_row_keeps_its_greatest_that_are_lit_more_than_without():
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    lit, plain = torch.tensor([5.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 9.0, 0.5, 9.0])
    # scores of the first row 5 2 3 4, of the second 20 3 2 1; only the first and third input are lit more than without
    assert among(weight, lit, plain, 0.5).tolist() == [[True, False, False, False], [True, False, False, False]]
    assert among(weight, lit, plain, 0.75).tolist() == [[True, False, True, False], [True, False, True, False]]
    assert not among(weight, lit, lit, 1.0).any()


def test_inputs_are_those_that_the_layers_were_given(model, record):
    """Listened to by hooks on the network itself, a prompt at a time."""
    found, module = inputs(record, 2, prompts_of), model.denoiser.module
    name, layer = next(iter(layers_of(module).items()))
    heard = []
    hook = layer.register_forward_pre_hook(lambda m, args: heard.append(args[0]))
    try:
        with torch.no_grad():
            a = next(a for a in record.asked if a.step == 1)
            model.denoiser(a.x, a.t, a.cond)
    finally:
        hook.remove()
    assert {step for _, step in found[name]} == {0, 1}
    for label in (3, 8):
        x = heard[0][a.cond["label"] == label]
        want = x.reshape(-1, x.shape[-1]).square().mean(0).sqrt()
        assert torch.allclose(found[name][(float(label),), 1], want, rtol=1e-4)


def test_what_is_lit_is_lit_by_the_prompt(record):
    """Against itself nothing stands out; the union holds what more frequent finds do; one prompt's finds are among two's."""
    assert (
        located(record, record, 1.0, often=0.99) == {}
    )  # one prompt lit more than the mean of both may be, all may not
    null = promptless(record)
    union, often = located(record, null, 0.05), located(record, null, 0.05, often=0.4)
    assert 0 < sum(map(len, often.values())) < sum(map(len, union.values()))
    assert all(set(v) <= set(union[k]) for k, v in often.items())
    assert located(null, null, 0.05) == {}


def test_these_weights_alone_are_zero_and_the_network_stays(model):
    module = model.denoiser.module
    name = list(layers_of(module))[1]
    before = {k: v.clone() for k, v in module.state_dict().items()}
    made = pruned(module, {name: [0, 7, 500]})
    other = made.state_dict()
    changed = {k for k in before if not torch.equal(before[k], other[k])}
    assert changed == {f"{name}.weight"}
    gap = (before[f"{name}.weight"] - other[f"{name}.weight"]).flatten()
    assert gap.nonzero()[:, 0].tolist() == [0, 7, 500]
    assert torch.equal(gap[[0, 7, 500]], before[f"{name}.weight"].flatten()[[0, 7, 500]])
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_layers_are_the_last_of_each_feed_forward(model):
    net = anatomy(model.denoiser.module)
    assert [k.rpartition(".ff.")[0] for k in layers_of(model.denoiser.module)] == [b.path for b in net.blocks]
    assert all(m.out_features < m.in_features for m in layers_of(model.denoiser.module).values())


def test_calibration_fills_the_plan_with_whole_numbers(model):
    plan = ebb.calibrate(model, PLAN.replace(network=[{"name": "wanda-prune", "steps": 2}]), n=2, cond=[1, 7])
    zeros = plan.network[0]["zeros"]
    assert zeros
    assert all(isinstance(p, int) for v in zeros.values() for p in v)
    assert ebb.Plan.from_dict(plan.to_dict()) == plan


def test_overlap_counts_shared_places():
    assert overlap({"a": [1, 2], "b": [1]}, {"a": [2, 3], "b": [1]}) == pytest.approx(2 / 4)
    assert overlap({"a": [1]}, {"b": [1]}) == 0


@pytest.mark.parametrize(
    ("zeros", "said"),
    [({}, "calibrate"), ({"nowhere": [0]}, "knows no layer"), ({"transformer_blocks.0.ff.net.2": [10**9]}, "none at")],
)
def test_what_cannot_be_pruned_is_told(model, zeros, said):
    with pytest.raises(EbbError, match=said):
        WandaPrune(zeros=zeros)(model.denoiser.module)
