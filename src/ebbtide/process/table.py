"""The training clock of DDPM: a table of noise levels, and a time for each of its rows.

    abar_k = prod_{j <= k} (1 - beta_j),   t_k = (k + 1) / steps,   a(t_k)^2 = abar_k,   c^2 = 1 - a^2
    linear             beta uniform from beta_start to beta_end               (Ho et al.: 0.0001 to 0.02)
    scaled_linear      its square root uniform                                (Stable Diffusion: 0.00085 to 0.012)
    sigmoid            beta_start + (beta_end - beta_start) / (1 + e^-v), v uniform from -6 to 6          (GeoDiff)
    squaredcos_cap_v2  1 - f((k + 1) / steps) / f(k / steps),  f(u) = cos^2(pi/2 (u + 0.008) / 1.008), at most 0.999

Between two rows log sigma = log(c / a) is linear in t, the rule by which samplers in sigma ask a network of discrete time:
`process.time` is its inverse. Below the first row sigma goes down to the data in a line, so a(0) = 1. `zero_terminal`
shifts and scales sqrt(abar) so that its last row is 0; there a / c is linear in the last cell. `betas` gives the table
itself.

Shapes   t of any shape, float64.
Paper    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), section 4; Nichol, Dhariwal 2021 (2102.09672), section 3.2; Lin et al.
         2024 (2305.08891), algorithm 1, for the zero terminal; Xu et al. 2022 (2203.02923), appendix C, for the sigmoid;
         the interpolation: Karras et al. 2022 (2206.00364), C.3.4
Differs  in float64, where libraries keep float32 tables.
"""

from __future__ import annotations

import functools
import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ebbtide.core.registry import part
from ebbtide.process.affine import Affine

Beta = Annotated[float, Field(gt=0, lt=1)]
Schedule = Literal["linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"]


def betas_of(schedule: Schedule, first: float, last: float, steps: int) -> Tensor:
    """The variances added at each training step, float64 (steps,)."""
    if schedule == "linear":
        return torch.linspace(first, last, steps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=torch.float64) ** 2
    if schedule == "sigmoid":
        return first + (last - first) / (1 + torch.linspace(6, -6, steps, dtype=torch.float64).exp())
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = (math.pi / 2 * (u + 0.008) / 1.008).cos() ** 2
    return (1 - f[1:] / f[:-1]).clamp_max(0.999)


@part("process", "vp-table", paper="2006.11239")
class VPTable(Affine):
    """The training clock of DDPM: a table of noise levels, and a time for each of its rows."""

    gives = Affine.gives | {"gaussian"}
    examples = ({"steps": 20, "beta_end": 0.4, "zero_terminal": True}, {"steps": 3, "betas": [0.02, 0.3, 0.7]})

    beta_schedule: Schedule = "linear"
    beta_start: Beta = 0.0001
    beta_end: Beta = 0.02
    steps: Annotated[int, Field(ge=2)] = 1000
    zero_terminal: bool = False
    betas: list[Beta] | None = None

    @model_validator(mode="after")
    def _table_fits(self) -> VPTable:
        if self.betas is not None and len(self.betas) != self.steps:
            raise ValueError(f"the table holds {len(self.betas)} values; give steps={len(self.betas)} with it")
        return self

    @functools.cached_property
    def abar(self) -> Tensor:
        """The share of signal in the variance at each training step, float64 (steps,)."""
        if self.betas is not None:
            betas = torch.tensor(self.betas, dtype=torch.float64)
        else:
            betas = betas_of(self.beta_schedule, self.beta_start, self.beta_end, self.steps)
        abar = (1 - betas).cumprod(0)
        if self.zero_terminal:
            root = abar.sqrt()
            abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return abar

    @functools.cached_property
    def rows(self) -> Tensor:
        """log sigma of each row, float64 (steps,); infinite in the last one of a zero terminal."""
        return ((1 - self.abar).log() - self.abar.log()) / 2

    def _share(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Two numbers in the ratio c : a, both finite."""
        place = t * self.steps - 1
        # a time that stands for a row is that row, whatever the rounding of (k + 1) / steps * steps
        off = (place - place.round()).detach()
        place = torch.where(off.abs() < 1e-9, place - off, place)
        k = place.detach().floor().clamp(0, self.steps - 2).long()
        share, low, high = place - k, self.rows[k], self.rows[k + 1]
        end = high.isinf() & (place >= 0)
        inside = (low + share * torch.where(high.isinf(), 0.0, high - low)).exp()
        c = torch.where(place < 0, low.exp() * (1 + place), torch.where(end, low.exp(), inside))
        return c, torch.where(end, 1 - share, 1.0)

    def a(self, t: Tensor) -> Tensor:
        c, a = self._share(t)
        return a / (a**2 + c**2).sqrt()

    def c(self, t: Tensor) -> Tensor:
        c, a = self._share(t)
        return c / (a**2 + c**2).sqrt()

    def time(self, lam: Tensor) -> Tensor:
        level = -lam
        k = torch.searchsorted(self.rows, level).sub(1).clamp(0, self.steps - 2)
        low, high = self.rows[k], self.rows[k + 1]
        inside = (level - low) / torch.where(high.isinf(), 1.0, high - low)
        share = torch.where(high.isinf(), 1 - (low - level).exp(), inside).clamp(0, 1)
        first = (level - self.rows[0]).exp()  # below the first row sigma is a line
        return torch.where(level < self.rows[0], first, k + 1 + share) / self.steps
