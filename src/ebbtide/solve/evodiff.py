"""EVODiff: a two-step solver whose history weights are projections of recent predictions on each other, one call a step.

With m the predictions of the data at the last three times, newest first, E = a_s (1 - e^-h) and q = h_prev / h,

    probe   x_s = DDIM(x_t, m0) + E D1 / (2 r)                   D1 = m0 - r1 m1,   r = q clip(sigmoid(T |r1|), low, high)
    final   x_s = DDIM(x_t, m0) + E B / (2 zeta)                 D2 = m_s - r2 m0,  m_s the prediction at the probe
            B = (1 - eta) q D2 - eta D1 / q,   eta = sigmoid(|P(q D2 + D1 / q, q D2 - D1 / q)| / 2) / 2
            zeta = sigmoid(|P(x_probe - DDIM - E B / (2 r), D1) / E| - shift)
    weights r1 = (1 - w) sqrt(c_s c_r) / c_t + w P(m0, m1),   r2 with P(m_s, m0),   w = mix (1 - s^2)
            P(u, v) = <u, v> / <v, v>, held to +-clip

A unit's inner products are taken channel by channel, over the axes after the first of those that it spans, and over all of
them where it spans one. Units never mix, nor do elements.

Shapes   x (B, ...), any units; memory: two slopes, as in `multistep`
Paper    Li et al. 2025, "EVODiff: Entropy-aware Variance Optimized Diffusion Inference" (arXiv 2509.26096)
Off      adaptive = False is `dpmpp-2m`, bit for bit. With mix = 0, low = high = 1 and noise levels (of a variance exploding
         process) whose ratios are equal, r1 = 1 and r = q, and the probe is the step of `dpmpp-2m`.
Differs  a step ends at the probe, and the next one, which asks there, begins by going on to the final x: as in `unipc` only
         the difference is applied. So a run that ends above the data ends at a probe. Landing on the data is a DDIM step,
         without the term that the authors' code adds there. History counts from a / c > e^-10 on, as q has no bound before.
         tau of the publication is the time that a step leads to; zeta has the form meant for at most 20 steps. No order is
         declared: it is 1 where ratios of noise levels tend to 1, as r1 and r2 do then, but on grids that come to the data
         in even times a bias stays, however many the steps (tests/solve/test_evodiff.py holds both).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ebbtide.core.loop import Ask
from ebbtide.core.registry import part
from ebbtide.core.state import Move, Pred, State
from ebbtide.core.time import Weight, combine, nil, ratio, right, spread
from ebbtide.core.tree import Memory
from ebbtide.process.affine import Affine, Weights
from ebbtide.solve.coordinates import slide
from ebbtide.solve.dpmpp_2m import Midpoint
from ebbtide.solve.multistep import past_of

NO_DATA = -10.0  # lam below which a prediction is not history

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Span(NamedTuple):
    """What a step's times say: E (0 where there is no history), w, the ratio of noise levels, and q."""

    along: Tensor
    share: Tensor
    base: Tensor
    q: Tensor


@part("solve", "evodiff", paper="2509.26096", needs={"affine"}, off={"adaptive": False}, baseline="dpmpp-2m")
class EVODiff(Midpoint):
    """EVODiff: a two-step solver whose history weights are projections of recent predictions on each other.

    mix          how much projections count in r1 and r2 near the data
    temperature  of the sigmoid in r
    shift        of the sigmoid in zeta
    clip         the bound of projections
    low, high    the bounds of r / q
    """

    adaptive: bool = True
    mix: Share = 0.5
    temperature: Annotated[float, Field(ge=0)] = 0.25
    shift: float = 0.5
    clip: Positive = 2.0
    low: Positive = 0.25
    high: Positive = 1.5

    @model_validator(mode="after")
    def _ordered(self) -> EVODiff:
        if self.low > self.high:
            raise ValueError("low must not be above high: they bound r / q")
        return self

    @property
    def order(self) -> int | None:
        return None if self.adaptive else 2

    @property
    def terms(self) -> int:
        return 2

    @property
    def corrector(self) -> bool:  # type: ignore[override]
        return self.adaptive

    # ---------------------------------------------------------------- weights

    def span(self, process: Affine, t: Tensor, s: Tensor, r: Tensor) -> Span:
        """The step from t to s, with the step before it from r; r = 0 where there was none."""
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        lam = [process.lam(v) for v in (r, t, s)]
        there = (r > t) & (t > s) & (process.c(s) > 0) & (process.c(t) > 0) & (lam[0] > NO_DATA)
        along = torch.where(there, slide(process, "data", t, s).along, zero)
        base = (process.c(s) * process.c(r)).sqrt() / torch.where(there, process.c(t), one)
        q = (lam[1] - lam[0]) / torch.where(there, lam[2] - lam[1], one)
        return Span(along, self.mix * (1 - s**2), torch.where(there, base, one), torch.where(there, q, one))

    def weigh_both(self, process: Affine, t: Tensor, s: Tensor, r: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        """The weights of the DDIM step from t to s, its span, and the span of the step that led here, from r."""
        go = slide(process, "data", t, s)
        return go.x, go.x0, go.y, go.noise, *self.span(process, t, s, r), *self.span(process, r, t, u)

    def project(self, inner: Tensor, size: Tensor) -> Tensor:
        """P(u, v) from <u, v> and <v, v>; 0 where v is 0."""
        found = ratio(inner, size.clamp_min(0.0))
        assert isinstance(found, Tensor)
        return found.clamp(-self.clip, self.clip)

    def reach(self, span: Span, inner: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """r1 from <m0, m1> and <m1, m1>, and 1 / (2 r)."""
        r1 = (1 - span.share) * span.base + span.share * self.project(inner, size)
        return r1, 0.5 / (sigmoid(self.temperature * r1.abs()).clamp(self.low, self.high) * span.q)

    def change(
        self, span: Span, now: Tensor, past: Sequence[Tensor], sizes: Sequence[Tensor], t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From the probe to the final x: the weights of the predictions at it, before it, and before that.

        sizes  <now, last>, <last, last>, <last, first> and <first, first>, where `past` is last and first
        """
        last, first = past
        q = span.q
        r1, half = self.reach(span, sizes[2], sizes[3])
        r2, _ = self.reach(span, sizes[0], sizes[1])
        d1, d2 = combine((1.0, last), (-r1, first)), combine((1.0, now), (-r2, last))
        one, both, two = self.inner(((d1, d1), (d1, d2), (d2, d2)), t)
        one_q, two_q = one / q**2, two * q**2
        eta = 0.5 * sigmoid((0.5 * self.project(two_q - one_q, two_q - 2 * both + one_q)).abs())
        of_d1, of_d2 = -eta / q, (1 - eta) * q
        gap = half * (one - of_d1 * one - of_d2 * both)  # <x_probe - DDIM - E B / (2 r), D1> / E
        star = ratio(self.project(span.along * gap, one), span.along)
        zeta = sigmoid(torch.as_tensor(star).abs() - self.shift)
        k1, k2 = span.along * (0.5 * of_d1 / zeta - half), span.along * (0.5 * of_d2 / zeta)
        return k2, k1 - k2 * r2, -k1 * r1

    def inner(self, pairs: Sequence[tuple[Tensor, Tensor]], t: Tensor) -> Tensor:
        """<u, v> of each pair, float64 (pairs, ...), 1 along the axes summed over."""
        # stacked, as torch splits a sum that leaves one number, and so rounds it differently alone and in a batch
        found = torch.stack([u * v for u, v in pairs])
        x = pairs[0][0]
        spanned = [d for d in range(x.ndim) if d >= t.ndim or t.shape[d] != x.shape[d]]
        for d in spanned[1:] if len(spanned) > 1 else spanned:
            found = found.sum(d + 1, keepdim=True, dtype=torch.float64)
        return found.double()

    # ---------------------------------------------------------------- the step

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Affine) -> tuple[Move, Pred]:
        if not self.adaptive:
            return super().step(state, memory, s, ask, process)
        pred = ask(state.x, state.t)
        past = past_of(memory)
        times = [p["t"] for p in past] + [torch.zeros_like(s)] * (2 - len(past))
        x, x0, y, noise, *rest = process.once(self, lambda *v: self.weigh_both(process, *v), state.t, s, *times)
        lift = lambda w: right(spread(w, state.t), state.x).to(state.x.device)  # noqa: E731
        terms: list[tuple[Weight, Tensor]] = [(x0, pred.mean)]
        if past and not (nil(rest[0]) and nil(rest[4])):
            m, last, *first = (pred.mean, *(p["f"] for p in past))
            pairs = [(m, last), (last, last), *([(last, first[0]), (first[0], first[0])] if first else [])]
            sizes = self.inner(pairs, state.t)
            ahead, behind = (Span(*(lift(w) for w in rest[k : k + 4])) for k in (0, 4))
            r1, half = self.reach(ahead, *sizes[:2])
            now, before = lift(x0) + ahead.along * half, -ahead.along * half * r1
            if first and not nil(rest[4]):
                change = self.change(behind, m, (last, first[0]), list(sizes), state.t)
                of_now, of_last, of_first = (lift(x) * k for k in change)
                now, before = now + of_now, before + of_last
                terms.append((of_first, first[0]))
            terms = [(now, pred.mean), (before, last), *terms[1:]]
        moved = process.apply(Weights(x, x0, y, noise, 0.0, 0.0), state.x, terms, state.cond, ask.noise)
        return Move(moved, self.keep(state, pred, past, process)), pred


def sigmoid(v: Tensor) -> Tensor:
    """The logistic function, by functions whose last bit does not depend on the place in a tensor."""
    return 1 / (1 + (-v).exp())
