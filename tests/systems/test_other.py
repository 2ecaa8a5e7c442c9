"""Other systems: what the card of ddpm-recipe-report measures with."""

from __future__ import annotations

import pytest
import torch

import ebbtide as ebb
from ebbtide.measure.ablation import SAME, Change
from ebbtide.measure.metrics import Interval
from ebbtide.systems.other import ddpm_recipe_report as report
from ebbtide.zoo import autoencoder, classifier, reference


def test_the_full_grid_at_eta_one_is_ddpm() -> None:
    assert report.from_posterior(1.0) < 1e-12
    assert report.from_posterior(0.9) > 1e-3


def test_folding_leaves_digits_legible() -> None:
    drawn = reference.pictures()
    x, labels = drawn.rows(torch.arange(200))
    z = report.folded(x)
    assert z.shape == (200, 4, 8, 8)
    assert z[0, 1, 2, 3] == torch.nn.functional.pixel_shuffle(z, 2)[0, 0, 4, 7]
    assert float((classifier.load()(report.unfolded(z)).argmax(1) == labels).float().mean()) > 0.97
    assert float(report.unfolded(3 * z).abs().max()) == 1  # what guidance drives out of range is held to it


def test_presets_differ_by_what_they_are_named_for() -> None:
    plans = {name: ebb.Plan.from_dict(plan).to_dict() for name, plan in report.SYSTEM.presets.items()}
    slots = lambda a, b: {k for k in plans[a] | plans[b] if plans[a].get(k) != plans[b].get(k)}  # noqa: E731
    assert slots("report-ddim", "report-ddim-mild") == slots("report-ddim-mild", "report-ddim-guided") == {"guide"}
    assert slots("report-ddpm", "report-ddim") == {"solve", "grid"}


def test_the_border_that_the_autoencoder_wants_is_taken_off_again() -> None:
    drawn = reference.pictures()
    assert torch.equal(autoencoder.padded(drawn).x[..., 2:-2, 2:-2], drawn.x)


def test_a_change_is_told_with_interval_and_repeats() -> None:
    change = Change(2.0, 1.0, Interval(0.5, 0.25, 1.0), (0.4, 0.6), SAME)
    assert report.told(change) == "0.50 [0.25, 1.00] (0.40, 0.60) no difference"


@pytest.mark.parametrize("schedule", report.SCHEDULES)
def test_every_schedule_ends_in_noise(schedule: str) -> None:
    process = report.VPTable(beta_schedule=report.SCHEDULES[schedule])  # type: ignore[arg-type]
    assert float(process.a(torch.ones(1, dtype=torch.float64))) < 0.03
