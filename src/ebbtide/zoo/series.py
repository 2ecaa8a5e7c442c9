"""Series, small: windows of one number in time, each in its own scale, and a transformer over short pieces of them.

    w = s[k : k + L] / m,   m = max(mean |s[k : k + C]|, floor of that series)     C the context, L - C the horizon

One network learns windows of all series, without being told which. A file's last fifth is held out: it is never learnt from,
and `held` gives its windows to measure forecasts on.

Shapes   windows (n, 1, L) float32, clock (n,)
Data     a table of series, one a column (.csv, also gzipped); a first row of names and a first column of dates are left out
Paper    Kollovieh et al. 2023, "Predict, refine, synthesize: self-guiding diffusion models for probabilistic time series
         forecasting" (arXiv 2307.11494), sections 2 and 4
Differs  attention over pieces where the paper has structured state spaces, and no lagged values beside the window: with 168
         hours of context every hour is seen a week and a day back. The floor, a tenth of the mean |s| of what is learnt of the
         series, keeps windows around a context of nearly zeros finite.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.denoise.model import Model
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.zoo.networks import draw, save

HELD = 0.2
"""The share at the end of every series that is not learnt from."""


class Windows(NamedTuple):
    """Windows of series in their own scales.

    x       (n, 1, L) float32, divided by scale
    scale   (n,)
    column  (n,) which series
    """

    x: Tensor
    scale: Tensor
    column: Tensor


@dataclass(frozen=True)
class Series:
    """Series of equal length, as windows of `length` of which the first `context` set the scale.

    values  (T, S) float32
    names   of the series
    digest  sha256 of all of these
    """

    values: Tensor
    length: int = 192
    context: int = 168
    names: tuple[str, ...] = ()
    digest: str = field(default="")

    def __post_init__(self) -> None:
        if not 0 < self.context <= self.length:
            raise EbbError(f"windows of {self.length} cannot have {self.context} of context.")
        if self.learnt < self.length or len(self.values) - self.learnt < self.length:
            raise EbbError(
                f"series of {len(self.values)} are too short for windows of {self.length}: give longer ones."
            )
        if not self.digest:
            h = hashlib.sha256(repr((tuple(self.values.shape), self.length, self.context)).encode())
            h.update(self.values.contiguous().numpy().data)
            object.__setattr__(self, "digest", h.hexdigest())

    @property
    def learnt(self) -> int:
        """How many numbers of each series are learnt from."""
        return int(len(self.values) * (1 - HELD))

    @property
    def starts(self) -> int:
        """How many windows of one series are learnt from."""
        return self.learnt - self.length + 1

    def __len__(self) -> int:
        return self.starts * self.values.shape[1]

    def rows(self, index: Tensor) -> tuple[Tensor, None]:
        """The windows `index` (n,) of what is learnt from, (n, 1, L)."""
        return self.windows(index % self.starts, index // self.starts).x, None

    def held(self, n: int) -> Windows:
        """n windows spread evenly over what was held out, the series in turn."""
        first, last = self.learnt, len(self.values) - self.length
        start = torch.linspace(first, last, n).round().long()
        return self.windows(start, torch.arange(n) % self.values.shape[1])

    def windows(self, start: Tensor, column: Tensor) -> Windows:
        """The windows that begin at `start` (n,) in the series `column` (n,)."""
        place = start[:, None] + torch.arange(self.length)
        raw = self.values[place, column[:, None]]
        floor = self.values[: self.learnt].abs().mean(0) / 10
        scale = torch.maximum(raw[:, : self.context].abs().mean(1), floor[column])
        return Windows((raw / scale[:, None])[:, None], scale, column)


def load_series(path: str | Path, length: int = 192, context: int = 168) -> Series:
    """Read a table of series, one a column: comma-separated, gzipped where its name ends in .gz.

    Raises EbbError where there is no such file, or it holds anything but numbers beside names and dates.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
        lines = [line.strip().split(",") for line in text.splitlines() if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise EbbError(f"{path} cannot be read as a table of series: {error}.") from error
    if not lines:
        raise EbbError(f"{path} is empty.")
    dated = not _number(lines[-1][0])
    named = not _number(lines[0][-1])
    try:
        values = np.array([[float(v) for v in line[dated:]] for line in lines[named:]], dtype=np.float32)
    except ValueError as error:
        raise EbbError(f"{path} is no table of numbers: {error}.") from None
    names = tuple(lines[0][dated:]) if named else ()
    return Series(torch.from_numpy(values), length, context, names)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class SeriesTransformer(nn.Module):
    """(x, clock) to the prediction, shaped like x (B, 1, L): attention over pieces of `patch` numbers."""

    def __init__(self, patch: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        from ebbtide.zoo.video import Block

        wide = heads * width
        self.patch, self.wide = patch, wide
        self.proj_in = nn.Linear(patch, wide)
        self.time_proj = Timesteps(wide, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(wide, wide)
        self.transformer_blocks = nn.ModuleList(Block(heads, width) for _ in range(layers))
        self.norm_out = nn.LayerNorm(wide, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(wide, 2 * wide)
        self.proj_out = nn.Linear(wide, patch)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SeriesTransformer:
        """The module that a config.json describes."""
        return cls(**{k: v for k, v in config.items() if not k.startswith("_")})

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        """The prediction at x (B, 1, L)."""
        from diffusers.models.embeddings import get_timestep_embedding as waves

        h = self.proj_in(x.reshape(len(x), 1, -1, self.patch))
        h = h + waves(torch.arange(h.shape[2]), self.wide, max_period=100).to(x)
        told = nn.functional.silu(self.time_embed(self.time_proj(clock).to(x.dtype)))[:, None, None]
        for block in self.transformer_blocks:
            h = block(h, told, None)
        shift, scale = self.modulation(told).chunk(2, -1)
        out: Tensor = self.proj_out(self.norm_out(h) * (1 + scale) + shift)
        return out.reshape(x.shape)


@dataclass(frozen=True)
class SeriesDiT:
    """`SeriesTransformer` as a recipe describes it, with the windows that it learns."""

    length: int = 192
    context: int = 168
    patch: int = 6
    layers: int = 4
    heads: int = 4
    width: int = 16

    def config(self) -> dict[str, Any]:
        """The arguments of `SeriesTransformer`."""
        return {k: v for k, v in asdict(self).items() if k not in ("length", "context")}

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`, its weights drawn from `noise`; every block begins as the identity, the output as zero."""
        if self.length % self.patch:
            raise EbbError(f"windows of {self.length} do not divide into pieces of {self.patch}.")
        with torch.random.fork_rng(devices=[]):
            module: Any = SeriesTransformer(**self.config())
        if noise is not None:
            draw(module, noise)
            with torch.no_grad():
                for block in module.transformer_blocks:
                    block.modulation.weight.zero_()
                for layer in (module.modulation, module.proj_out):
                    layer.weight.zero_()
        built: nn.Module = module.eval()
        return built

    def write(self, module: nn.Module, folder: Path) -> None:
        """config.json and the weights, float16."""
        save(module, folder, "ebbtide.zoo.series.SeriesTransformer", self.config())

    def about(self) -> dict[str, Any]:
        """Windows of one number, without labels."""
        return {"medium": "series", "shape": [1, self.length], "context": self.context, "labels": 1}


@dataclass(frozen=True)
class SeriesMatching(FlowMatching):
    """Flow matching of windows that nothing is told of."""

    def said(self, network: nn.Module, x: Tensor, clock: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = network(x, clock)
        return out

    def about(self) -> dict[str, Any]:
        return {**super().about(), "nulls": {}}


def series_model(module: nn.Module, process: Any, about: Mapping[str, Any], name: str, digest: str = "") -> Model:
    """A network of windows as a model; `info["context"]` says how much of a window sets its scale."""
    from ebbtide.zoo.models import denoiser_of

    denoiser = denoiser_of(module, process, about, lambda module, x, clock, cond: module(x, clock))
    like, info = torch.zeros(about["shape"]), {"context": about["context"]}
    return Model(name, denoiser, like, medium="series", digest=digest, info=info)
