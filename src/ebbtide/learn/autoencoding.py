"""Autoencoding: a picture through few numbers and back, the numbers kept near the standard normal law.

    loss = mean (D(z) - x)^2 + kl mean KL(N(m, s^2) | N(0, 1)),   (m, s) = E(x),   z = m + s eps
    KL(N(m, s^2) | N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2

A decoder that undoes any scale leaves the divergence alone to choose it: at kl > 0 the best encoder has mean(m^2 + s^2) = 1
in every channel, so what a diffusion model is to learn needs no scaling factor.

Shapes   x (B, C, H, W), m, s, z (B, c, h, w)
Paper    Kingma & Welling 2013, "Auto-encoding variational Bayes" (arXiv 1312.6114), eq. 7; the small weight: Rombach et al.
         2022 (2112.10752), section 3.1
Off      kl=0 is an autoencoder without noise: z = m.
Differs  squared error alone, no perceptual and no adversarial loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ebbtide.core.key import Noise


@dataclass(frozen=True)
class Autoencoding:
    """The loss of diffusers' `AutoencoderKL`.

    kl   the weight of the divergence, in squared error of a pixel per nat of a latent
    """

    kl: float = 5e-4

    def loss(self, network: nn.Module, x0: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The mean over a batch x0 (B, C, H, W) in [-1, 1]; `noise` has B keys, labels are not looked at."""
        module: Any = network
        law = module.encode(x0).latent_dist
        if not self.kl:
            back: Tensor = module.decode(law.mean).sample
            return (back - x0).square().mean()
        back = module.decode(law.mean + law.std * noise.normal(law.mean)).sample
        return (back - x0).square().mean() + self.kl * divergence(law.mean, law.logvar).mean()

    def about(self) -> dict[str, Any]:
        """Pictures of pictures: no clock."""
        return {"predicts": "reconstruction"}


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) | N(0, 1)) of every number, in nats."""
    return (mean.square() + logvar.exp() - 1 - logvar) / 2
