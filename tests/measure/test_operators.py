"""Operators: adjoints, what they keep, and every way in which one does not go with what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.measure import operators

LINEAR: tuple[Any, ...] = (
    "mask",
    {"name": "downsample", "factor": 4},
    {"name": "downsample", "factor": 2, "kernel": "bicubic"},
    {"name": "blur", "width": 1.2},
    {"name": "blur", "kind": "motion", "width": 5, "angle": 30},
    {"name": "blur", "width": 8.0},
    "grayscale",
)


def pictures(n: int = 2, channels: int = 3, side: int = 16) -> Tensor:
    return torch.randn(n, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def hole(x: Tensor) -> Tensor:
    mask = torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.bool)
    mask[..., 4:9, 5:12] = True
    return mask


def cond_of(spec: Any, x: Tensor) -> dict[str, Any]:
    cond: dict[str, Any] = {"mask": hole(x)}
    return {**cond, "measured": operators.find(spec, cond)(x)}


@pytest.mark.parametrize("spec", LINEAR, ids=str)
def test_linear_operators_have_their_adjoint(spec: Any) -> None:
    x = pictures()
    op = operators.trial(spec, x, cond_of(spec, x))
    r = torch.randn(op.measured.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.allclose((op(x) * r).sum(), (x * op.pull(torch.zeros_like(x), r)).sum(), rtol=1e-12)
    assert torch.allclose(op(2 * x - x.flip(0)), 2 * op(x) - op(x.flip(0)), atol=1e-12)


def test_averages_keep_what_is_even_and_a_motion_leaves_lines_along_it() -> None:
    even = torch.full((1, 1, 16, 16), 0.3, dtype=torch.float64)
    for spec in LINEAR[1:6]:
        op = operators.find(spec, {})
        assert torch.allclose(op(even), torch.full_like(op(even), 0.3), atol=1e-9)
    stripes = torch.arange(16, dtype=torch.float64)[:, None].expand(1, 1, 16, 16)
    along, across = (operators.find({"name": "blur", "kind": "motion", "width": 5, "angle": a}, {}) for a in (0, 90))
    row = torch.randn(16, 1, dtype=torch.float64).expand(1, 1, 16, 16)
    assert torch.allclose(along(row), row)
    assert not torch.allclose(across(row), row, atol=0.1)
    assert torch.allclose(across(stripes)[..., 5:11, :], stripes[..., 5:11, :])


@pytest.mark.parametrize("spec", ["mask", {"name": "downsample", "factor": 4}, "grayscale"], ids=str)
def test_the_first_guess_is_the_pseudo_inverse_of_averages(spec: Any) -> None:
    """A A^T is a number for these, so the guess fits what was measured, and is the least that does: A^T of something."""
    x = pictures()
    op = operators.find(spec, cond_of(spec, x))
    guess = op.rough(x)
    assert torch.allclose(op(guess), op.measured, atol=1e-12)
    assert torch.allclose(op.rough(guess), guess)
    back = op.pull(x, op(guess))
    ratio = (back * guess).sum() / (guess * guess).sum()
    assert torch.allclose(back, ratio * guess, atol=1e-12)


def test_what_lies_behind_a_mask_does_not_count() -> None:
    x = pictures()
    cond = cond_of("mask", x)
    junk = {**cond, "measured": torch.where(hole(x), 7.0, cond["measured"])}
    for a, b in zip(operators.find("mask", cond).misfit(x), operators.find("mask", junk).misfit(x), strict=True):
        assert torch.equal(a, b)


def test_the_gradient_of_a_misfit_is_its_slope() -> None:
    x = pictures(1, 1, 6).requires_grad_()
    for spec in ("clip", {"name": "blur", "width": 1.0}):
        cond = {"measured": torch.zeros(1, 1, 6, 6, dtype=torch.float64)}
        op = operators.find(spec, cond)
        (slope,) = torch.autograd.grad((op(x) ** 2).sum() / 2, x)
        value, found = op.misfit(x.detach())
        assert torch.allclose(found, slope)
        assert torch.allclose(value, (op(x) ** 2).sum() / 2)


OWN = """
import torch
def warp(x, gain=2.0):
    return gain * x.flip(-1)
def outside(x, gain=2.0):
    return torch.from_numpy(gain * x.detach().numpy())
outside.adjoint = lambda y, gain: gain * y
def wrong(x):
    return 2.0 * x.roll(1, -1)
wrong.adjoint = lambda y: 2.0 * y.roll(1, -1)
def silent(x):
    return x.detach() * 2
def broken(x):
    raise RuntimeError("no lens")
def half(x):
    return x[..., ::2]
half.adjoint = lambda y: y
"""


@pytest.fixture
def lens(tmp_path: Path) -> str:
    (tmp_path / "lens.py").write_text(OWN)
    return str(tmp_path / "lens.py")


def test_an_operator_of_ones_own(lens: str) -> None:
    x = pictures()
    for name in ("warp", "outside"):
        spec = {"name": f"{lens}:{name}", "gain": 3.0, "noise": 0.5}
        op = operators.trial(spec, x, {"measured": x})
        assert op.noise == 0.5
        assert torch.allclose((op(x) * x.sin()).sum(), (x * op.pull(x, x.sin())).sum())


def test_what_does_not_go_is_told_in_one_sentence(lens: str) -> None:
    x = pictures()
    small = {"measured": torch.zeros(2, 3, 5, 5)}
    same = {"measured": x}
    full, none = torch.ones(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    cases: list[tuple[Any, Any, Any, str]] = [
        ("mask", x, {}, "needs a mask|what was measured"),
        ("mask", x, {"mask": hole(x)}, "what was measured"),
        ("mask", x, {**same, "mask": none}, "no hole"),
        ("mask", x, {**same, "mask": full}, "hides everything"),
        ("mask", x, {**same, "mask": torch.zeros(2, 1, 5, 5)}, "give it their shape"),
        ({"name": "downsample", "factor": 4}, x, small, "they must agree"),
        ({"name": "downsample", "factor": 3}, x, small, "does not divide"),
        ({"name": "blur", "width": 99.0}, x, same, "width"),
        ("grayscale", x[:, :1], same, "3 channels"),
        ("blur", torch.zeros(2, 6), {"measured": torch.zeros(2, 6)}, "pictures"),
        ("mask", torch.zeros(2, 6, dtype=torch.int64), {"measured": torch.zeros(2, 6)}, "not on tokens"),
        ("lense", x, same, "no operator 'lense'"),
        ({"name": "mask", "noise": -1}, x, same, "standard deviation"),
        ({"name": "blur", "wide": 1}, x, same, "no parameter 'wide'"),
        (f"{lens}:nothing", x, same, "no function"),
        ("gone.py:f", x, same, "no file"),
        (f"{lens}:wrong", x, same, "adjoint"),
        (f"{lens}:half", x, {"measured": x[..., ::2]}, "adjoint"),
        (f"{lens}:silent", x, same, "no gradients"),
        (f"{lens}:broken", x, same, "no lens"),
    ]
    for spec, like, cond, word in cases:
        with pytest.raises(EbbError, match=word) as told:
            operators.trial(spec, like, cond)
        assert str(told.value).count("\n") == 0
