"""Text systems: faults beside the card's own are found by the check that is about them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ebbtide.core import registry
from ebbtide.denoise.exact import Table
from ebbtide.process.masked import Masked
from ebbtide.process.uniform import Uniform
from ebbtide.systems import Bench, find
from ebbtide.systems.text import dllm_identities as identities


def true_rows(p: Masked | Uniform, s: Tensor, t: Tensor) -> Tensor:
    return p.transition(s, t)


class Slow(Masked):
    """A masked process whose bound counts a tenth too little."""

    def nelbo_weight(self, t: Tensor) -> Tensor:
        return 0.9 * super().nelbo_weight(t)


class Eager(Masked):
    """A masked process that reveals more than its schedule says."""

    def revealed(self, t: Tensor, s: Tensor) -> Tensor:
        return super().revealed(t, s) ** 0.9


class Sticky(Uniform):
    """A uniform process whose posterior forgets how likely a token is to be as it was."""

    def posterior(self, x: Tensor, logits: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return super().posterior(x, logits, t, t * 0.5 + s * 0.5)


def model_says(p: Masked) -> Tensor:
    every = torch.cartesian_prod(*[torch.arange(identities.V + 1)] * identities.L)
    said = Table(p, identities.LAWS[0])(every, torch.full((len(every),), 0.5).double(), {}).logits
    assert isinstance(said, Tensor)
    return said.reshape(*[identities.V + 1] * identities.L, identities.L, identities.V)


def test_posteriors_of_other_faults_are_found() -> None:
    v = identities.V
    for good, faulty in ((Masked(v), Eager(v)), (Uniform(v), Sticky(v))):
        assert identities.bayes(true_rows, good) < 1e-12
        assert identities.bayes(true_rows, faulty) > 1e-3


def test_a_wrong_weight_of_the_bound_is_found() -> None:
    good, slow = Masked(identities.V), Slow(identities.V)
    logits = model_says(good)
    truth = Table(good, identities.LAWS[0])
    x0 = truth.sample(100_000)
    goal = identities.any_order(truth, good, logits)
    assert goal == pytest.approx(float(-(identities.LAWS[0] * identities.LAWS[0].log()).sum()), abs=1e-9)
    mean, error = identities.bound(good, x0, logits)
    assert abs(mean - goal) < 3 * error
    mean, error = identities.bound(slow, x0, logits)
    assert abs(mean - goal) > 3 * error
    assert identities.ratios(true_rows, good, identities.LAWS[0], logits) < 1e-10
    assert identities.ratios(true_rows, slow, identities.LAWS[0], logits) > 0.05


def test_the_bound_of_a_wrong_model_depends_on_no_schedule_but_is_above_the_entropy() -> None:
    p = Masked(identities.V)
    blunt = model_says(p) / 2
    truth = Table(p, identities.LAWS[0])
    losses = identities.any_order(truth, p, blunt), identities.any_order(truth, p, model_says(p))
    assert losses[0] > losses[1] + 0.05


def test_greedy_decoding_is_not_the_likeliest_sequence() -> None:
    """The loop that block decoding must equal is a rule of its own: were it the mode, equality would say less."""
    laws = identities.LAWS
    modes = [[int(v) for v in torch.unravel_index(law.argmax(), law.shape)] for law in laws]
    assert [identities.greedy(law) for law in laws] != modes


def test_the_control_fails_for_its_own_reason() -> None:
    system = find("dllm-identities")
    good, faulty = (identities.card(Bench(system, control)) for control in (False, True))
    assert good.passed
    lost = {c.name.split()[0] for c in faulty.checks if not c.passed}
    assert lost == {"1", "4", "5"}  # what is made of transition matrices, and nothing else
    rules = [e.name for e in registry.entries("solve") if "masked" in e.needs and "events" not in e.needs]
    assert all(name in good.note for name in rules)
