"""ResShift: restore a picture in four steps that move from its degraded version along the residual.

    x_t = x0 + eta_t (y - x0) + kappa sqrt(eta_t) eps,   start at y + kappa eps,   four posterior steps with the network's x0

Paper    Yue, Wang, Loy 2024, "Efficient diffusion model for image restoration by residual shifting" (arXiv 2403.07319),
         section 3; the published claim: four steps do as well as the best of others, or better
Card     the chain on numbers, against the paper's formulas; then `digits-resshift` on 128 drawn digits that were blurred,
         made four times smaller, noised and enlarged, against what it is given and against its own first answer, at the far
         end where the state tells nothing that y does not: one step. The control leaves the residual where
         it is: x_t = x0 + kappa sqrt(eta_t) eps
Differs  held against one step of the same network, not against a diffusion or a regression of equal budget. The best regression
         has the highest PSNR of all; that first answer has not, as four steps without fresh noise show.
         Spectrum: the root mean square of log ratios of the mean power of gradients, over all frequencies
"""

from __future__ import annotations

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.core.state import Pred
from ebbtide.measure.metrics import psnr
from ebbtide.process.residual import ResShift
from ebbtide.systems import Bench, Card, System
from ebbtide.zoo import reference
from ebbtide.zoo.paired import degrade

SYSTEM = System(
    id="resshift",
    family="bridge",
    title="Efficient Diffusion Model for Image Restoration by Residual Shifting",
    year=2024,
    claim="Superior or comparable to state of the art in super-resolution, inpainting and blind face restoration with four "
    "sampling steps",
    what="A short Markov chain that moves from a picture to its degraded version by shifting their residual.",
    paper="2403.07319",
    parts=("process/resshift",),
    presets={"resshift": {"solve": "ancestral", "grid": {"name": "linear", "steps": 4}}},
    differs="digits of 28 x 28 in place of photographs; held against one step of the same network, not against a diffusion",
)
N, POINTS = 128, 200_000
FOUR = SYSTEM.presets["resshift"]
ONE = {**FOUR, "grid": {"name": "linear", "steps": 1}}


class Unshifted(ResShift):
    """The planted fault: noise grows as it should, and the residual stays where it is."""

    def shift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def c(self, t: Tensor) -> Tensor:
        return self.kappa * super().shift(t).sqrt()


def schedule(p: ResShift) -> Tensor:
    """eta at the steps 1 ... T by the paper's formula, float64."""
    first, last = p.noise_first / p.kappa, p.last**0.5
    k = torch.arange(p.steps, dtype=torch.float64) / (p.steps - 1)
    return (first * (last / first) ** (k**p.power)) ** 2


def law(p: ResShift) -> tuple[float, float, float]:
    """Walk from q(x_T) to the data by posterior steps with the true x0, and hold every marginal against the closed form.

    The worst errors of the mean, as a share of y - x0, and of the variance, of kappa^2 eta; and how far from x0 it ends.
    """
    noise = Noise(keys(range(POINTS)), torch.zeros(POINTS, dtype=torch.int64), 1)
    x0, y = torch.full((POINTS,), 0.3, dtype=torch.float64), torch.full((POINTS,), -2.7, dtype=torch.float64)
    eta, cond = schedule(p), {"y": y}
    one = torch.ones(POINTS, dtype=torch.float64)
    x, mean, var = p.corrupt(x0, one, noise, cond), [], []
    for k in range(p.steps, 0, -1):
        assert isinstance(x, Tensor)
        mean.append(float((x - x0 - eta[k - 1] * (y - x0)).mean() / (y - x0)[0]))
        var.append(float(x.var() / (p.kappa**2 * eta[k - 1]) - 1))
        x = p.move(x, Pred(mean=x0), one * (k / p.steps), one * ((k - 1) / p.steps), 1.0, noise.fold(k), cond)
    return max(map(abs, mean)), max(map(abs, var)), float((x - x0).abs().max())


def posterior(p: ResShift) -> float:
    """The largest difference between the weights of the steps and the paper's posterior, its variance included."""
    eta, off = schedule(p), []
    for k in range(1, p.steps):
        t, s = (torch.tensor([j / p.steps], dtype=torch.float64) for j in (k + 1, k))
        w = p.weights(t, s, 1.0)
        now, next_ = eta[k], eta[k - 1]
        grown = now - next_
        paper = [next_ / now, grown / now, torch.zeros(()), p.kappa**2 * next_ / now * grown]
        found = [w.x, w.x0, w.y, w.noise**2]
        off += [float(a) - float(b) for a, b in zip(found, paper, strict=True)]
    return max(map(abs, off))


def spectrum(x: Tensor) -> Tensor:
    """The logarithm of the mean power of the gradients of pictures (n, 1, H, W), for every frequency but those without any."""
    grad = torch.stack([x.diff(dim=-1)[..., :-1, :], x.diff(dim=-2)[..., :-1]])
    return torch.fft.rfft2(grad.double()).abs().square().mean((1, 2)).add(1e-3).log()


def apart(x: Tensor, clean: Tensor) -> float:
    """The root mean square distance of their spectra."""
    return float((spectrum(x) - spectrum(clean)).square().mean().sqrt())


def shown(n: int = N) -> tuple[Tensor, Tensor]:
    """Drawn digits and what became of them: (n, 1, 28, 28) each."""
    x = reference.pictures().rows(torch.arange(n))[0]
    return x, degrade(x, Noise(keys(range(n)), torch.ones(n, dtype=torch.int64)))


def card(bench: Bench) -> Card:
    model = ebb.load("digits-resshift")
    process = bench.fault(model.process, Unshifted())
    assert isinstance(process, ResShift)
    mean, var, end = law(process)
    bench.check("mean of x_t off the closed form, of y - x0", mean, at_most=0.01, published="0")
    bench.check("variance of x_t off the closed form, relative", var, at_most=0.01, published="0")
    bench.check("steps with the true picture end away from it by", end, at_most=1e-12, published="0")
    bench.check("weights of a step off the paper's", posterior(process), at_most=1e-12, published="0")
    clean, y = shown()
    if bench.control:
        return bench.card("The network was trained on the shifted chain; of the control the chain alone is measured.")
    plans = (FOUR, ONE, {**FOUR, "solve": "euler"})
    four, one, calm = (ebb.sample(model, ebb.Plan.from_dict(plan), cond={"y": y}, n=N).x for plan in plans)
    gain = float((psnr(four, clean) - psnr(y, clean)).mean())
    more = float((psnr(four, clean) - psnr(one, clean)).mean())
    sharp = apart(four, clean) / apart(one, clean)
    bench.check("PSNR over the degraded picture, dB", gain, at_least=5.0)
    bench.check("PSNR over its own first answer, dB", more, at_least=-0.5, published="no worse")
    bench.check("distance of spectra over that of its first answer", sharp, at_most=0.5, published="better")
    level = [float(psnr(x, clean).mean()) for x in (y, one, four, calm)]
    return bench.card(
        f"PSNR: degraded {level[0]:.2f}, first answer {level[1]:.2f}, four steps {level[2]:.2f} dB, and without fresh noise "
        f"{level[3]:.2f}. Spectra: {apart(y, clean):.3f}, {apart(one, clean):.3f}, {apart(four, clean):.3f}."
    )
