"""Flow matching: regress what the network says at a noised picture on what it should have said.

    x_t = a(t) x0 + c(t) eps,   loss = mean (f(x_t, t, y) - f*)^2,   f* = p x_t + q x0   (`process.from_x0`)
    t_j = T(frac(u + j / B)),   T(u) = sigmoid(centre + spread probit(u)) for a share `peaked` of the rows, else u
    y <- null with probability `drop`

With the flow process and kind "flow" the target is eps - x0: conditional flow matching. Any other kind of prediction
of an affine process is the same line with another target; dropped labels teach the unconditional model that
guidance needs. One uniform number places all times of a batch on a comb, so every batch covers the whole of time.

Paper    Lipman et al. 2023, "Flow matching for generative modeling" (arXiv 2210.02747), eq. 23; logit-normal times:
         Esser et al. 2024 (2403.03206), section 3.1; the comb: Kingma et al. 2021 (2107.00630), appendix I.1;
         dropped labels: Ho & Salimans 2022 (2207.12598), algorithm 1
Differs  a share of the times is uniform, so both ends, which the logit-normal law starves, are learnt too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core.key import Noise
from ebbtide.core.time import right
from ebbtide.process.affine import Affine
from ebbtide.process.flow import Flow


@dataclass(frozen=True)
class FlowMatching:
    """The loss of a class-conditional diffusers network, in units of the squared prediction.

    process     how pictures become noise
    kind        what the network predicts: "flow", "v", "eps", "x0", "score"
    clock       the network is told the timestep clock * t
    null        the label that means "none"; the rows of the label table below it are the classes
    drop        how often a label is replaced by it
    peaked, centre, spread   the law of times, above
    """

    process: Affine = field(default_factory=Flow)
    kind: str = "flow"
    clock: float = 1000.0
    null: int = 10
    drop: float = 0.1
    peaked: float = 0.75
    centre: float = 0.0
    spread: float = 1.0

    def times(self, noise: Noise) -> Tensor:
        """Times of a batch, (B,) float64 in (0, 1)."""
        n = len(noise.key)
        place = torch.arange(n, dtype=torch.float64) / n
        u = (noise.uniform((n,), 1)[0] + place).frac().clamp(1e-9, 1 - 1e-9)
        return self.law(u, noise.uniform((n,), 2))

    def law(self, u: Tensor, which: Tensor) -> Tensor:
        """Two uniform numbers as a time: where `which` falls below the share, a peaked one."""
        return torch.where(which < self.peaked, torch.sigmoid(self.centre + self.spread * torch.special.ndtri(u)), u)

    def paired(self, x0: Tensor, noise: Noise) -> Noise:
        """Where each picture of a batch draws its noise: from its own key."""
        return noise

    def loss(self, network: nn.Module, x0: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """The mean squared error over a batch x0 (B, C, H, W) in [-1, 1], labels (B,) int64; `noise` has B keys."""
        t = self.times(noise)
        x = self.process.corrupt(x0, t, self.paired(x0, noise), {})
        target = self.process.from_x0(self.kind, x0, x, t, {})
        dropped = (noise.uniform((len(x0),), 3) < self.drop).to(x0.device)
        known = torch.full_like(dropped, self.null, dtype=torch.int64) if labels is None else labels
        labels = torch.where(right(dropped, known), self.null, known)
        return (self.said(network, x, (t * self.clock).to(x), labels) - target).square().mean()

    def said(self, network: nn.Module, x: Tensor, clock: Tensor, labels: Tensor) -> Tensor:
        """The network's prediction under labels (B,)."""
        out: Tensor = network(x, clock, class_labels=labels).sample
        return out

    def about(self) -> dict[str, Any]:
        """The arguments of `denoise.network.Network`, in plain words."""
        return {
            "process": {"name": self.process.entry.name, **asdict(self.process)},  # type: ignore[call-overload]
            "predicts": self.kind,
            "clock": "scaled",
            "steps_of_clock": self.clock,
            "nulls": {"label": self.null},
        }


@dataclass(frozen=True)
class UnitMatching(FlowMatching):
    """Flow matching of elements whose units (frames, say) have times of their own: x0 (B, *units, ...), clock (B, *units).

    In a share `apart` of the rows all times are drawn by themselves, in the others one is shared by all units.

    units   of an element, its leading dimensions
    Paper   Liu et al. 2024, "Redefining temporal modeling in video diffusion" (arXiv 2410.03160), section 3
    Off     apart=0
    """

    units: tuple[int, ...] = (16,)
    apart: float = 0.2

    def times(self, noise: Noise) -> Tensor:
        """Times of a batch, (B, *units) float64 in (0, 1)."""
        shape = (len(noise.key), *self.units)
        one = super().times(noise)
        own = self.law(noise.uniform(shape, 4), noise.uniform(shape, 5))
        apart = noise.uniform(one.shape, 6) < self.apart
        return torch.where(right(apart, own), own, right(one, own))
