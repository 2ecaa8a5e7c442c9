"""Locality: a network's receptive fields are those of the data's own Wiener filter, and that is enough to make pictures.

    W_t   = S a (a^2 S + c^2)^-1                                 S the covariance of the data, row i the weights of pixel i
    M_t   = [|W_t| >= 0.05 max of the row]                      the window of pixel i at that noise
    x0_i  = sum_k softmax_k(-sum_n M_in (x_n - a x0_kn)^2 / 2 c^2) x0_ki

Windows shut as the noise falls, so each pixel takes its value from the pictures that fit around it, and the parts of many
make a new one. With every window open this is the exact posterior mean over the data, which can only repeat it.

Paper    Lukoianov et al. 2025, "Locality in image diffusion models emerges from data statistics" (arXiv 2509.09672)
Card     against the shipped `digits`, asked without a label, on others of them noised, at lam = -2 ... 2. R^2 is the share of
         the network's variation that a denoiser explains. The control opens every window
Differs  the denoisers see 2,000 digits that the network drew, it saw 60,000. So few want narrower windows: at
         the paper's usual 0.02 (its range is 0.005 to 0.05) the local one is behind Wiener at high noise (R^2 0.54
         against 0.72 at lam = -1), with 20,000 digits less so (0.68). Digits stay 28 x 28. Shuffled
         pixels are learnt by one hidden layer, as the paper's MLP, at one noise level: no transformer is trained anew
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.core.parts import Denoiser
from ebbtide.denoise.data import Empirical, Wiener
from ebbtide.denoise.local import Local
from ebbtide.measure.metrics import nearest_distance
from ebbtide.process.flow import Flow
from ebbtide.systems import Bench, Card, System
from ebbtide.zoo import reference

SYSTEM = System(
    id="locality-denoiser",
    family="theory",
    title="Locality in Image Diffusion Models Emerges from Data Statistics",
    year=2025,
    claim="Better match to a trained network than patch-based analytical models; locality follows from pixel correlations",
    what="A denoiser without training: the exact one made local, with windows read off the data's covariance.",
    paper="2509.09672",
    differs="2,000 pictures that the network drew; the shuffled copy is learnt by one hidden layer",
)

LEVELS = (-2.0, -1.0, 0.0, 1.0, 2.0)
THRESHOLD = 0.05
PIXELS = [28 * row + column for row in (8, 12, 16, 20) for column in (9, 13, 17)]
STEPS = {"name": "log-snr", "steps": 20}


def noised(x0: Tensor, lam: float, salt: int = 0) -> tuple[Tensor, Tensor]:
    """x_t of these pictures at one noise level, and their times."""
    flow, t = Flow(), Flow().time(torch.full((len(x0),), lam, dtype=torch.float64))
    return flow.corrupt(x0, t, Noise(keys(range(len(x0))), torch.zeros(len(x0), dtype=torch.int64), salt), {}), t


def explained(by: Denoiser, network: Denoiser, x0: Tensor) -> float:
    """R^2 of a denoiser's answers as a guess of the network's, averaged over noise levels."""
    shares = []
    for lam in LEVELS:
        x, t = noised(x0, lam)
        there, guess = network(x, t, {}).mean, by(x, t, {}).mean
        shares.append(1 - (there - guess).square().sum() / (there - there.mean(0)).square().sum())
    return float(torch.stack(shares).mean())


def fields(answer: Callable[[Tensor], Tensor], x: Tensor, pixels: Sequence[int] = PIXELS) -> Tensor:
    """|d x0_i / d x_t| of some pixels, averaged over rows: (pixels, P)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = answer(x).flatten(1)
        rows = [torch.autograd.grad(out[:, i].sum(), x, retain_graph=True)[0].flatten(1) for i in pixels]
    return torch.stack([row.abs().mean(0) for row in rows])


def windows(wiener: Wiener, lam: float) -> Tensor:
    """|W_t|, (P, P)."""
    t, whole = Flow().time(torch.tensor([lam], dtype=torch.float64)), torch.ones_like(wiener.spread[0])
    return wiener.gain(Flow().a(t) * whole, Flow().c(t) * whole).abs()


def alike(a: Tensor, b: Tensor) -> float:
    """The mean correlation between the rows of two sets of fields."""
    pairs = [torch.stack(pair).double() for pair in zip(a, b, strict=True)]
    return float(torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]).mean())


def learnt(x0: Tensor, lam: float, steps: int = 600, width: int = 256) -> Callable[[Tensor], Tensor]:
    """One hidden layer, trained to denoise these rows (N, P) at one noise level."""
    draw, side = Noise(keys([0]), torch.zeros(1, dtype=torch.int64), 7), x0.shape[1]
    w = [draw.fold(n).normal(torch.zeros(1, n, m))[0] / m**0.5 for n, m in ((width, side), (side, width))]
    answer = lambda x: nn.functional.gelu(x @ w[0].T) @ w[1].T  # noqa: E731
    optimiser = torch.optim.Adam([v.requires_grad_() for v in w], 1e-3)
    for step in range(steps):
        rows = x0[(draw.fold(step).uniform((1, 128))[0] * len(x0)).long()]
        with torch.enable_grad():
            loss = (answer(noised(rows, lam, step)[0]) - rows).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return answer


def copied(denoiser: Denoiser, data: Tensor, floor: float) -> float:
    """The median distance of 16 samples to the nearest picture, in units of that of real digits."""
    model = ebb.load(denoiser, like=torch.zeros_like(data[0]))
    return float(nearest_distance(ebb.sample(model, ebb.Plan(grid=STEPS), n=16).x, data).median()) / floor


def card(bench: Bench) -> Card:
    """The local denoiser against the network, the Wiener filter and the exact one."""
    drawn = reference.pictures().x
    data, test = drawn[:2000], drawn[-32:]
    network, process = ebb.load("digits").denoiser, Flow()
    local = Local(process, data, mask_threshold=bench.fault(THRESHOLD, 0.0))
    exact, wiener = Empirical(process, data), Wiener.fit(process, data)

    x, t = noised(test[:8], -1.0)
    open_ = Local(process, data, mask_threshold=0.0)(x, t, {}).mean
    bench.check("all windows open against the exact mean", (open_ - exact(x, t, {}).mean).abs().max(), at_most=1e-5)

    r2 = {name: explained(by, network, test) for name, by in (("local", local), ("wiener", wiener), ("exact", exact))}
    bench.check("R^2 to the network, local", r2["local"], at_least=r2["wiener"] + 0.02, published="best of the three")
    bench.check("R^2 to the network, Wiener", r2["wiener"], at_least=r2["exact"] + 0.2)

    x, t = noised(test, 0.0)
    seen = fields(lambda x: network(x, t, {}).mean, x)
    bench.check("the network's fields against W", alike(seen, windows(wiener, 0.0)[PIXELS]), at_least=0.6)
    shuffle = Noise(keys([1]), torch.zeros(1, dtype=torch.int64)).uniform((1, data[0].numel()))[0].argsort()
    mixed = data.flatten(1)[:, shuffle]
    w = windows(wiener, 0.0)
    seen = fields(learnt(mixed, 0.0), noised(mixed[:128], 0.0, 1)[0], [int((shuffle == i).nonzero()) for i in PIXELS])
    bench.check(
        "fields learnt from shuffled pixels against W shuffled", alike(seen, w[PIXELS][:, shuffle]), at_least=0.6
    )
    bench.check("the same against W as it was", alike(seen, w[PIXELS]), at_most=0.2)

    floor = float(nearest_distance(drawn[2000:], data).median())
    bench.check("distance of samples to the data, real digits 1", copied(local, data, floor), at_least=0.5)
    bench.check("the same of the exact denoiser's", copied(exact, data, floor), at_most=0.05)
    return bench.card()
