"""Autoencoding: what the loss is at its best, and pictures that come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ebbtide as ebb
from ebbtide import zoo
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.learn.autoencoding import Autoencoding, divergence
from ebbtide.learn.train import train
from ebbtide.measure.pictures import psnr
from ebbtide.zoo import autoencoder, recipes
from ebbtide.zoo.autoencoder import Autoencoder, padded
from ebbtide.zoo.data import Pictures, load_pictures

SMALL = Autoencoder(size=8, widths=(8, 8, 8))


def rows(n: int, step: int = 0) -> Noise:
    return Noise(keys(range(n)), torch.full((n,), step))


def test_divergence_is_that_of_normals() -> None:
    p = torch.distributions.Normal(torch.tensor([-1.0, 0.0, 0.0, 2.0]), torch.tensor([0.5, 1.0, 2.0, 0.1]))
    expected = torch.distributions.kl_divergence(p, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(divergence(p.mean, 2 * p.stddev.log()), expected)
    assert divergence(torch.zeros(1), torch.zeros(1)) == 0


class Line(nn.Module):
    """E(x) = (g x, sd), D(z) = z / g: comes back exactly but for the noise, at any gain."""

    def __init__(self, gain: float, sd: float) -> None:
        super().__init__()
        self.gain, self.sd = gain, sd

    def encode(self, x: Tensor) -> Any:
        sd = torch.full_like(x, self.sd)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=self.gain * x, std=sd, logvar=2 * sd.log()))

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=z / self.gain)


def test_a_line_costs_its_noise_and_its_nats() -> None:
    x = torch.randn(200, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    loss = Autoencoding(kl=0.1).loss(Line(2.0, 0.3), x, None, rows(200))
    nats = (4 * float(x.square().mean()) + 0.09 - 1 - 2 * np.log(0.3)) / 2
    assert float(loss) == pytest.approx((0.3 / 2) ** 2 + 0.1 * nats, rel=0.01)
    assert float(Autoencoding(kl=0.0).loss(Line(2.0, 0.3), x, None, rows(200))) < 1e-12


def test_the_best_scale_is_one() -> None:
    """Of all gains with the noise in proportion, which lose the same in pixels, the one of second moment 1 is cheapest."""
    x = torch.randn(200, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    gains = torch.linspace(0.5, 6, 111).tolist()
    found = [float(Autoencoding(kl=0.1).loss(Line(g, 0.3 * g), x, None, rows(200))) for g in gains]
    best = gains[int(np.argmin(found))]
    assert best**2 * (0.25 + 0.09) == pytest.approx(1, abs=0.1)


def test_sides_become_multiples_of_eight() -> None:
    pixels = torch.arange(28 * 28).remainder(255).to(torch.uint8).reshape(1, 1, 28, 28)
    wide = padded(Pictures(pixels, None)).pixels
    assert wide.shape == (1, 1, 32, 32)
    assert torch.equal(wide[..., 2:-2, 2:-2], pixels)
    assert torch.equal(wide[..., :2, 2:-2], pixels[..., :1, :].expand(1, 1, 2, 28))
    done = Pictures(wide, None)
    assert padded(done) is done
    assert padded(Pictures(torch.zeros(1, 3, 9, 16, dtype=torch.uint8), None)).pixels.shape == (1, 3, 16, 16)


def test_pictures_come_back(tmp_path: Path) -> None:
    """Bars of all shades, in and out through a quarter of the numbers; the folder opens in diffusers too."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    shades = np.linspace(0, 255, 64).astype(np.uint8)
    bars = np.broadcast_to(shades[:, None, None], (64, 6, 6)).copy()
    bars[:, 3:] = 0
    np.savez(tmp_path / "d.npz", images=bars)
    known = replace(recipes.recipe("digits-autoencoder"), network=SMALL, batch=32, lr=1e-2, warmup=5, ema=0.9)
    found = recipes.read(known, tmp_path / "d.npz")
    list(train(recipes.fit(known, found), found, tmp_path / "out", steps=150))
    module = autoencoder.load(tmp_path / "out" / "model")
    z = autoencoder.encode(module, found.x)
    assert z.shape == (64, 4, 2, 2)
    back = autoencoder.decode(module, z)
    plain = psnr(found.x.mean(0).expand_as(found.x), found.x).mean()
    assert psnr(back, found.x).mean() > plain + 10
    assert torch.allclose(autoencoder.decode(module, z[5:6], 1)[0], back[5], atol=1e-5)
    theirs = AutoencoderKL.from_pretrained(tmp_path / "out" / "model").float()
    with torch.no_grad():
        assert torch.equal(theirs.decode(z).sample, back)
    with pytest.raises(EbbError, match="cannot be sampled"):
        ebb.load(tmp_path / "out" / "model")
    with pytest.raises(EbbError, match="no model"):
        autoencoder.load(tmp_path)


@pytest.mark.skipif(autoencoder.NAME not in zoo.names(), reason="its weights do not ship yet")
def test_the_shipped_one_returns_digits_it_has_not_seen(shared: Path) -> None:
    test = padded(load_pictures(shared / "assets" / "data" / "mnist.npz", split="test"))
    x, _ = test.rows(torch.arange(500))
    module = autoencoder.load()
    z = autoencoder.encode(module, x)
    assert psnr(autoencoder.decode(module, z), x).mean() > 27
    assert 0.7 < float(z.std()) < 1.2
