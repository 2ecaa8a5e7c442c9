"""What changes inside a network: known changes of known networks are read back, and nothing is left on the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ebbtide as ebb
from ebbtide.measure.changes import changes
from ebbtide.network.record import Asked, Record


class Attention(nn.Module):
    """A place that the anatomy finds; it gives `factor` times what it takes."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.to_q = self.to_k = self.to_v = nn.Linear(1, 1)
        self.factor = factor

    def forward(self, hidden_states):
        return self.factor * hidden_states


class Block(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.attn = Attention(factor)

    def forward(self, hidden_states):
        return hidden_states + self.attn(hidden_states)


class Network(nn.Module):
    """Its blocks give 2 and 6 times the input plus nothing of the time: what changes is what the input changes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(1.0), Block(2.0)])

    def forward(self, x, clock):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def denoiser():
    return ebb.load(Network(), process="flow", like=torch.zeros(3)).denoiser


def asked(*scales):
    """The same two elements asked at growing sizes, one step each."""
    x = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
    half = torch.full((2,), 0.5, dtype=torch.float64)
    return [Asked(k, s * x, half, {}) for k, s in enumerate(scales)]


def test_the_change_of_a_linear_network_is_that_of_its_input(denoiser):
    """|4x - x| / |4x| = 3/4 and |5x - 4x| / |5x| = 1/5 at every site, whatever the site's own factor."""
    found = changes(Record(denoiser, asked(1.0, 4.0, 5.0)))
    assert {s.path for s in found.sites} >= {"blocks.0", "blocks.1"}
    for site in found.sites:
        assert site.changes == pytest.approx((0.75, 0.2), abs=1e-6)
        assert site.mean == pytest.approx(0.475, abs=1e-6)


def test_of_a_step_that_asks_twice_the_first_counts(denoiser):
    first, second = asked(1.0, 2.0)
    stage = first._replace(x=9 * first.x)
    assert [s.changes for s in changes(Record(denoiser, [first, stage, second])).sites] == [
        s.changes for s in changes(Record(denoiser, [first, second])).sites
    ]


def test_the_same_question_changes_nothing_in_a_shipped_network():
    model = ebb.load("digits-unet")
    one = ebb.record(model, ebb.Plan(grid={"name": "linear", "steps": 2}), n=2).asked[0]
    found = changes(Record(model.denoiser, [one._replace(step=k) for k in range(3)]))
    assert len(found.sites) > 5
    assert {c for s in found.sites for c in s.changes} == {0.0}


def test_times_add_up_and_the_network_is_left_alone():
    model = ebb.load("digits-unet")
    before = {path: dict(m.__dict__) for path, m in model.denoiser.module.named_modules()}
    found = changes(ebb.record(model, ebb.Plan(grid={"name": "linear", "steps": 3}), n=2))
    blocks = [s for s in found.sites if not any(s.path.startswith(f"{o.path}.") for o in found.sites)]
    assert 0 < sum(s.seconds for s in blocks) < found.seconds
    assert before == {path: dict(m.__dict__) for path, m in model.denoiser.module.named_modules()}
