"""Pictures: noise of known size, SSIM term by term, and what classifiers read."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.measure.metrics import agreement, bootstrap, inception_score, prompt_agreement, psnr, reads, ssim

C1, C2 = 1e-4, 9e-4
UNIT = (0.0, 1.0)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_known_errors():
    x = uniform(2, 3, 8, 8)
    far = torch.tensor([0.1, 0.01]).reshape(2, 1, 1, 1)
    assert psnr(x, x + far, UNIT).tolist() == pytest.approx([20, 40])
    assert psnr(2 * x - 1, 2 * (x + far) - 1).tolist() == pytest.approx([20, 40])  # pixels in [-1, 1] span 2
    assert psnr(x, x).tolist() == [math.inf, math.inf]


def test_psnr_of_noise_is_that_of_its_variance():
    noise = torch.randn(4, 1, 100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = uniform(4, 1, 100, 100)
    found = bootstrap(torch.mean, psnr(x, x + 0.05 * noise, UNIT))
    assert found.low - 0.1 < -20 * math.log10(0.05) < found.high + 0.1
    assert found.value == pytest.approx(-20 * math.log10(0.05), abs=0.1)


def test_ssim_of_a_picture_with_itself_is_one_and_order_does_not_matter():
    x, y = uniform(3, 1, 20, 24, seed=2), uniform(3, 1, 20, 24, seed=3)
    assert ssim(x, x).tolist() == pytest.approx([1, 1, 1], abs=1e-12)
    assert torch.allclose(ssim(x, y), ssim(y, x), rtol=1e-12)
    assert float(ssim(x, y).max()) < 0.9


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.5), (0.0, 1.0), (0.7, 0.7)])
def test_flat_pictures_differ_in_light_alone(a: float, b: float):
    x, y = torch.full((1, 1, 15, 15), a), torch.full((1, 1, 15, 15), b)
    assert ssim(x, y, UNIT).item() == pytest.approx((2 * a * b + C1) / (a * a + b * b + C1), rel=1e-6)
    assert ssim(2 * x - 1, 2 * y - 1).item() == pytest.approx(ssim(x, y, UNIT).item(), rel=1e-6)


def test_a_ramp_tells_the_window_and_the_structure_term():
    """On x = m + g j, y = m - g j round the centre, light is 1 - ... at the middle window: one window, 11 x 11 pixels.

    Its variance is g^2 times that of the window's places, sum w j^2 with w of standard deviation 1.5 cut at 5.
    """
    j = torch.arange(-5, 6).double()
    w = (-(j**2) / 4.5).exp()
    var = float((w * j**2).sum() / w.sum())
    slope, mean = 0.03, 0.5
    x, y = ((mean + k * slope * j).expand(1, 1, 11, 11) for k in (1, -2))
    s, t, v = slope**2 * var, 4 * slope**2 * var, -2 * slope**2 * var
    assert ssim(x, y, UNIT).item() == pytest.approx((2 * v + C2) / (s + t + C2), rel=1e-9)
    shifted = ssim(x, x + 0.2, UNIT).item()
    assert shifted == pytest.approx((2 * 0.5 * 0.7 + C1) / (0.5**2 + 0.7**2 + C1), rel=1e-9)


def test_planes_and_elements_are_on_their_own():
    x, y = uniform(2, 4, 3, 16, 16, seed=4), uniform(2, 4, 3, 16, 16, seed=5)
    whole = ssim(x, y)
    planes = ssim(x.reshape(24, 1, 16, 16), y.reshape(24, 1, 16, 16))
    assert torch.allclose(whole, planes.reshape(2, 12).mean(1), rtol=1e-12)


def test_bad_pictures_are_refused():
    with pytest.raises(EbbError, match="one shape"):
        psnr(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 9))
    with pytest.raises(EbbError, match="11 pixels wide"):
        ssim(torch.zeros(1, 1, 10, 20), torch.zeros(1, 1, 10, 20))


# -------------------------------------------------------------------- what they show


def test_prompts_are_read_as_their_class():
    said = {"red fox": 0, "grey wolf": 0, "oak": 1, "rose": 2}
    logits = torch.tensor([[3.0, 1, 0], [0, 2, 1], [1, 2, 3], [0, 1, 2]])
    prompts = ["red fox", "grey wolf", "oak", "rose"]
    first, two = (reads(lambda x: x, logits, batch=3, top=k) for k in (1, 2))
    assert prompt_agreement(first, prompts, said) == 0.5
    assert prompt_agreement(two, prompts, said) == 0.75  # the oak is second; the wolf's class is last
    assert agreement(two, torch.tensor([2, 1, 2, 1])) == 0.75
    with pytest.raises(EbbError, match="did you mean"):
        prompt_agreement(first, [*prompts[:3], "roses"], said)
    with pytest.raises(EbbError, match="one label"):
        prompt_agreement(first, prompts[:3], said)


def test_the_inception_score_counts_classes_that_are_read_for_sure():
    sure = 50 * torch.eye(4)
    assert inception_score(sure[[0, 1, 2, 3] * 5]) == pytest.approx(4)
    assert inception_score(sure[[0, 0, 1, 1]]) == pytest.approx(2)
    assert inception_score(sure[[2] * 6]) == pytest.approx(1)
    assert inception_score(torch.zeros(6, 4)) == pytest.approx(1)
    p = 0.8  # two readings that mirror each other: mutual information of a binary channel
    turned = torch.tensor([[p, 1 - p], [1 - p, p]]).log()
    noise = p * math.log(p) + (1 - p) * math.log(1 - p)
    assert inception_score(turned + 3.0) == pytest.approx(2 * math.exp(noise))
