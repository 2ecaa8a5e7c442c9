"""Forecasts of ETTh1 by one unconditional model: self-guidance against samples of no context and the last day again.

    python bench/forecasts.py MODEL DATA [--windows 64] [--each 16] [--steps 40] [--scale 4] [--seed 0] [--json]

MODEL   a folder as `ebb train etth1 --data ETTh1.csv --out MODEL` leaves it; DATA that file
        Windows lie evenly over the fifth that was held out, each in the scale of its context; 168 hours are known and 24
        foreseen. Errors are one standard deviation of the mean over windows, of ratios by the jackknife.

    CRPS of forecasts guided by quantiles (the preset of `tsdiff`), over that of
      samples, not guided, so they know of no context                                         bar 0.8
      the last day again, the seasonal naive forecast                                         bar 0.8
      forecasts guided by squares                                                             bar 1
    coverage error    how far the shares of truths below the quantiles 0.1, 0.5 and 0.9 are off, of those of squares
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
import figures
from ebbtide.denoise.model import Model
from ebbtide.measure.forecasts import coverage, crps, levels, seasonal_naive
from ebbtide.systems.signal.tsdiff import NOMINAL, SYSTEM
from ebbtide.zoo.series import load_series

DAY = 24


def forecasts(model: Model, plan: ebb.Plan, x: Tensor, context: int, each: int, seed: int) -> Tensor:
    """What is drawn of windows x (W, 1, L) after their context, (W, each, L - context)."""
    seen = x.clone()
    seen[..., context:] = math.nan
    cond = {"observed": seen.repeat_interleave(each, 0), "level": levels(len(x), each)}
    drawn: Any = ebb.sample(model, plan, cond=cond if plan.guide else None, n=len(x) * each, seed=seed).x
    out: Tensor = drawn[:, 0, context:].reshape(len(x), each, -1)
    return out


def jackknife(of: Callable[[Tensor], Tensor], n: int) -> float:
    """One standard deviation of `of(windows)`, a figure of some windows, when each is left out in turn."""
    left = torch.stack([of(torch.arange(n)[torch.arange(n) != k]) for k in range(n)])
    return float(((n - 1) * (left - left.mean()).square().mean()).sqrt())


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("model", type=Path, help="a folder as ebb train leaves it")
    parser.add_argument("data", type=Path, help="ETTh1.csv")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--each", type=int, default=16, help="samples a window")
    parser.add_argument("--steps", type=int, default=SYSTEM.presets["tsdiff"]["grid"]["steps"])
    parser.add_argument("--scale", type=float, default=SYSTEM.presets["tsdiff"]["guide"][0]["scale"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=None, help="a file that keeps each run, and is gone on from")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = ebb.load(given.model)
    context = int(model.info["context"])
    x = load_series(given.data, model.like.shape[-1], context).held(given.windows).x
    truth = x[:, 0, context:]
    free = ebb.Plan.from_dict({**SYSTEM.presets["tsdiff"], "guide": []})
    free = free.replace(grid={"name": "linear", "steps": given.steps})
    naive = seasonal_naive(x[:, 0, :context], truth.shape[-1], DAY)[:, None]
    kept = figures.Kept(given.keep)

    def judged(loss: str | None) -> tuple[list[float], list[float]]:
        """CRPS of every window, and the shares of truths below the quantiles."""
        guide = [] if loss is None else [{"name": "self-guidance", "scale": given.scale, "loss": loss}]
        drawn = forecasts(model, free.replace(guide=guide), x, context, given.each, given.seed)
        return crps(drawn, truth).mean(-1).tolist(), coverage(drawn, truth, NOMINAL).tolist()

    score, shares = {"the last day again": crps(naive, truth).mean(-1)}, {}
    run = f"{model.digest} {given.windows} {given.each} {given.steps} {given.scale} {given.seed}"
    for name, loss in (("samples", None), ("guided", "quantile"), ("squares", "mse")):
        found = kept(f"{run} {name}", lambda v=loss: judged(v))  # type: ignore[misc]
        score[name], shares[name] = (torch.tensor(v, dtype=torch.float64) for v in found)
    lines = []
    for name, bar in (("samples", 0.8), ("the last day again", 0.8), ("squares", 1.0)):
        ours, theirs = score["guided"], score[name]
        error = jackknife(lambda k, o=ours, t=theirs: o[k].mean() / t[k].mean(), len(x))
        told = f"+- {error:.3f}; {ours.mean():.3f} / {theirs.mean():.3f}"
        lines.append(figures.Figure(f"CRPS over that of {name}", float(ours.mean() / theirs.mean()), bar, said=told))
    nominal = torch.tensor(NOMINAL, dtype=torch.float64)
    off = {name: float((v - nominal).abs().mean()) for name, v in shares.items()}
    told = "; ".join(", ".join(f"{v:.2f}" for v in shares[name].tolist()) for name in ("guided", "squares"))
    lines.append(figures.Figure("coverage error over that of squares", off["guided"] / off["squares"], 1, said=told))
    title = f"ETTh1, {given.windows} windows of {given.each} samples, {given.steps} steps, scale {given.scale:g}, "
    return figures.report(f"{title}seed {given.seed} ({figures.versions()})", lines, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
