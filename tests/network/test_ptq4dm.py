"""PTQ4DM: whole numbers are rounded ones, ranges are the best there are, and states are heard at times of their law."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.network.ptq4dm import PTQ4DM, IntegerLinear, bits, chosen, layers_of, limits, scales

PLAN = ebb.Plan(grid={"name": "linear", "steps": 6})


@pytest.fixture(scope="module")
def model():
    return ebb.load("digits-unet")


@pytest.fixture(scope="module")
def plan(model):
    return ebb.calibrate(model, PLAN.replace(network=["ptq4dm"]), n=4, cond=[0, 3, 6, 9])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [4, 6, 8])
@pytest.mark.parametrize(
    "layer", [nn.Linear(9, 5), nn.Linear(9, 5, bias=False), nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 4, 3, stride=2)]
)
def test_whole_numbers_give_what_rounded_ones_do(layer, width):
    """The layer itself, on its weights and its input each rounded to the numbers that its ranges allow."""
    x = drawn(7, 9) if isinstance(layer, nn.Linear) else drawn(2, 3, 8, 8)
    s, z = limits(x.flatten(), width)
    made = IntegerLinear(layer, width, width, s, z, "mse")
    allowed = s * (torch.arange(2**width) - z)
    near = allowed[(x[..., None] - allowed).abs().argmin(-1)]
    rows = scales(layer.weight.detach().flatten(1), width)
    steps = rows * torch.arange(-(2 ** (width - 1)), 2 ** (width - 1))
    flat = layer.weight.detach().flatten(1)
    weight = steps.gather(1, (flat[..., None] - steps[:, None]).abs().argmin(-1)).reshape(layer.weight.shape)
    assert torch.allclose(made.weight, weight, atol=1e-6)
    other = torch.func.functional_call(layer, {"weight": weight}, near)
    assert float((made(x) - other).abs().max()) < 1e-4


@pytest.mark.parametrize("width", [3, 6])
def test_no_other_share_of_the_span_loses_less(width):
    """Against every share of a fine list, and so never more than the whole span, which outliers make coarse."""
    x = torch.cat([drawn(4000), torch.tensor([12.0, -9.0])])

    def lost(s, z):
        return float((x - s * ((x / s + z).round().clamp(0, 2**width - 1) - z)).square().sum())

    span = float(x.max() - x.min())
    best = lost(*limits(x, width))
    each = [
        lost(span * k / 200 / (2**width - 1), round(-float(x.min()) * (2**width - 1) / span)) for k in range(50, 201)
    ]
    assert best <= min(each) * 1.05  # the list has three times as many
    assert best < 0.9 * lost(*limits(x, width, "span"))


def test_each_element_is_heard_once_near_a_time_of_its_law(model):
    record = ebb.record(model, ebb.Plan(grid={"name": "linear", "steps": 20}), n=300, cond=5)

    def times(mean, spread):
        return torch.cat([a.t for a in chosen(record, mean, spread)])

    skewed = times(0.4, 0.4)
    assert len(skewed) == 300
    assert abs(float(skewed.median()) - 0.4) < 0.08  # of a normal law cut at its ends
    assert abs(float(times(0.4, None).mean()) - 0.5) < 0.06
    assert set(times(1.0, 0.0).tolist()) == {1.0}
    wanted = {round(float(a.t[0]), 6) for a in record.asked}
    assert {round(v, 6) for v in skewed.tolist()} <= wanted


def test_a_state_is_heard_with_its_own_condition(model):
    labels = list(range(10))
    record = ebb.record(model, PLAN, n=10, cond=labels)
    rows = {
        tuple(x.flatten()[:4].tolist()): int(y) for a in record.asked for x, y in zip(a.x, a.cond["label"], strict=True)
    }
    for asked in chosen(record, 0.4, 0.4):
        for x, y in zip(asked.x, asked.cond["label"], strict=True):
            assert rows[tuple(x.flatten()[:4].tolist())] == int(y)


def test_a_calibrated_plan_is_plain_data_and_moves_samples_a_little(model, plan, tmp_path):
    plan.save(tmp_path / "eight.yaml")
    again = ebb.Plan.load(tmp_path / "eight.yaml")
    eight, whole = (ebb.sample(model, p, n=4, cond=[0, 3, 6, 9]).x for p in (again, PLAN))
    gap = float((eight - whole).square().mean().sqrt())
    assert 0 < gap < 0.1


def test_bits_are_those_of_every_parameter(model, plan):
    """All layers that have ranges at 8 bits a weight, 32 a scale and 64 a range; everything else at 32."""
    module = model.denoiser.module
    made, _ = plan.parts("network")[0].bind(module)
    layers = dict(layers_of(module))
    assert set(plan.network[0]["ranges"]) == set(layers)
    weights = sum(m.weight.numel() for m in layers.values())
    outputs = sum(m.weight.shape[0] for m in layers.values())
    assert bits(module) == 32 * sum(p.numel() for p in module.parameters())
    assert bits(made) == bits(module) - 24 * weights + 32 * outputs + 64 * len(layers)
    assert not any("time_embedding" in name or "class_embedding" in name for name in layers)


def test_the_network_that_is_given_keeps_its_weights(model, plan):
    before = {k: v.clone() for k, v in model.denoiser.module.state_dict().items()}
    ebb.sample(model, plan, n=2, cond=3)
    assert all(torch.equal(v, before[k]) for k, v in model.denoiser.module.state_dict().items())


@pytest.mark.parametrize(
    ("ranges", "word"),
    [({}, "ebb.calibrate"), ({"up_blocks.0.resnets.0.conv9": (0.1, 3.0)}, "knows no layer")],
)
def test_what_cannot_be_quantised_is_said(model, ranges, word):
    with pytest.raises(EbbError, match=word):
        PTQ4DM(ranges=ranges).bind(model.denoiser.module)
