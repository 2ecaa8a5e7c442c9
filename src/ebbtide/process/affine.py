"""Affine processes: x_t = a(t) x0 + b(t) y + c(t) eps.

Gaussian diffusion and flow (b = 0), residual, bridge and mean-reverting processes (y an end that each element carries in
`cond["y"]`) are choices of three scalar functions of time. Everything else is derived here, once.

    lam = log(a / c)                                       half the log-SNR
    rho = a_t c_s / (a_s c_t)                              correlation of the noise at t and at s < t
    x_s = a_s x0 + b_s y + c_s (sqrt(1 - eta^2 (1 - rho^2)) eps_t + eta sqrt(1 - rho^2) z)

eta = 0 is DDIM, eta = 1 the posterior of the Markov chain (ancestral sampling); between, and beyond, all share q(x_s | x0).

Source   Song, Meng, Ermon 2021, "Denoising diffusion implicit models" (arXiv 2010.02502), eq. 12 and 16, for any (a, c).
Differs  where c_t = 0 and t > s (the far end of a bridge) eps_t is not defined, so all noise there is drawn afresh.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.key import Noise
from ebbtide.core.parts import Process
from ebbtide.core.state import Pred
from ebbtide.core.time import Weight, combine, invert, nil, shared
from ebbtide.core.tree import Tree

_MEMO = 8192
KINDS = ("x0", "eps", "v", "flow", "score")


class Weights(NamedTuple):
    """x_s = x * x_t + x0 * x0 + y * y + noise * z: floats when all units share (t, s), tensors shaped like t otherwise.

    All are finite, at the ends of time too. `x` is exactly 0 where s is data (c_s = 0); `lam_t`, `lam_s` are half the
    log-SNR, finite where a or c vanishes.
    """

    x: Weight
    x0: Weight
    y: Weight
    noise: Weight
    lam_t: Weight
    lam_s: Weight


class Affine(Process):
    """A process given by a(t), b(t), c(t): float64 tensors to float64 tensors of the same shape."""

    gives = frozenset({"affine", "continuous"})

    def a(self, t: Tensor) -> Tensor:
        """The weight of the data, 1 at t = 0."""
        raise NotImplementedError

    def c(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise, 0 at t = 0."""
        raise NotImplementedError

    def b(self, t: Tensor) -> Tensor | None:
        """The weight of the end y, or None for a process without one."""
        return None

    def draw(self, like: Tensor, noise: Noise) -> Tensor:
        """What eps is: standard normal numbers, unless the data ties some of them together."""
        return noise.normal(like)

    # ---------------------------------------------------------------- derived

    @functools.cached_property
    def _memo(self) -> dict[Any, Any]:
        return {}

    def once(self, name: Hashable, make: Callable[..., Any], *times: Tensor) -> Any:
        """`make(*times)`, a tuple of tensors shaped like the times: floats, worked out once, where each time is shared.

        The floats come from the tensor form, so both agree to the bit.
        """
        floats = tuple(shared(t) for t in times)
        if None in floats:
            return make(*times)
        key = (name, floats)
        found = self._memo.get(key)
        if found is None:
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            made = make(*(torch.tensor([v], dtype=torch.float64) for v in floats))
            numbers = [v.item() for v in made]
            found = self._memo[key] = made._make(numbers) if hasattr(made, "_make") else tuple(numbers)
        return found

    def lam(self, t: Tensor) -> Tensor:
        """log(a / c), half the log-SNR: decreasing in t, finite (within +-138) where a or c vanishes."""
        return self.a(t).clamp_min(1e-60).log() - self.c(t).clamp_min(1e-30).log()

    def time(self, lam: Tensor) -> Tensor:
        """The time at which log(a / c) is `lam`, or the nearest end of time where there is none."""
        return invert(self.lam, lam)

    def weights(self, t: Tensor, s: Tensor, eta: float = 0.0) -> Weights:
        """The weights of the move from t to s (s > t: the forward transition, which ignores x0), in float64."""
        found: Weights = self.once(("weights", eta), lambda t, s: self.weights_of(t, s, eta), t, s)
        return found

    def weights_of(self, t: Tensor, s: Tensor, eta: Weight) -> Weights:
        """`weights` in their tensor form; eta may differ from unit to unit."""
        at, ct, a, c = self.a(t), self.c(t), self.a(s), self.c(s)
        zero, one = torch.zeros_like(at), torch.ones_like(at)
        down, end = s < t, ct == 0
        safe_ct, safe_a, safe_at = torch.where(end, one, ct), torch.where(a == 0, one, a), torch.where(at == 0, one, at)
        fresh = (1 - ((at * c) / (safe_a * safe_ct)) ** 2).clamp(0, 1)  # 1 - rho^2
        k_x = torch.where(end, zero, c * (1 - eta**2 * fresh).clamp_min(0).sqrt() / safe_ct)
        k_z = c * torch.where(end, one, (eta**2 * fresh).sqrt())
        k_0 = a - k_x * at
        up = torch.where(at == 0, zero, a / safe_at)
        k_x = torch.where(down, k_x, up)
        k_0 = torch.where(down, k_0, zero)
        k_z = torch.where(down, k_z, (c**2 - (up * ct) ** 2).clamp_min(0).sqrt())
        still = s == t
        k_x, k_z = torch.where(still, one, k_x), torch.where(still, zero, k_z)
        bt, b = self.b(t), self.b(s)
        k_y = zero if b is None or bt is None else torch.where(still, zero, b - k_x * bt)
        return Weights(k_x, k_0, k_y, k_z, self.lam(t), self.lam(s))

    def apply(
        self, w: Weights, x: Tensor, estimates: Sequence[tuple[Weight, Tensor]], cond: dict[str, Tree], noise: Noise
    ) -> Tensor:
        """w.x x + sum_k e_k f_k + w.y y + w.noise z: the move, `estimates` (e_k, f_k) standing where w.x0 x0 does.

        Noise is drawn where its weight is not 0: with eta > 0, and on leaving the far end of a bridge.
        """
        terms = [(w.x, x), *estimates]
        if self.ended:
            terms.append((w.y, self.end(cond)))
        if not nil(w.noise):
            terms.append((w.noise, self.draw(x, noise)))
        moved: Tensor = combine(*terms)
        return moved

    @functools.cached_property
    def ended(self) -> bool:
        """Whether this process has an end y."""
        return self.b(torch.zeros(1, dtype=torch.float64)) is not None

    def end(self, cond: dict[str, Tree]) -> Tensor:
        """The ends y of the elements. Raises EbbError when the condition holds none."""
        y = cond.get("y") if isinstance(cond, dict) else None
        if not isinstance(y, Tensor):
            raise EbbError("this process needs the far end of every element: give cond={'y': tensor shaped like x}.")
        return y

    def move(
        self, x: Tree, pred: Pred | None, t: Tensor, s: Tensor, eta: float, noise: Noise, cond: dict[str, Tree]
    ) -> Tree:
        """x_s given x_t and a prediction; see the contract."""
        w = self.weights(t, s, eta)
        return self.apply(w, x, [] if pred is None else [(w.x0, pred.mean)], cond, noise)

    def corrupt(self, x0: Tree, t: Tensor, noise: Noise, cond: dict[str, Tree]) -> Tree:
        """x_t ~ q(x_t | x0, y)."""
        assert isinstance(x0, Tensor)
        return combine((self.a(t), x0), *self._rest(x0, t, noise, cond))

    def prior(self, like: Tree, t: Tensor, noise: Noise, cond: dict[str, Tree]) -> Tree:
        """x_t with the data left out: the law at t = 1, where its weight is nil or drowned in noise."""
        return combine(*self._rest(like, t, noise, cond))

    def _rest(self, like: Tensor, t: Tensor, noise: Noise, cond: dict[str, Tree]) -> list[tuple[Weight, Tensor]]:
        b = self.b(t)
        return [*([] if b is None else [(b, self.end(cond))]), (self.c(t), self.draw(like, noise))]

    # ---------------------------------------------------------------- what networks predict

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """da/dt, dc/dt and db/dt (None without an end), by automatic differentiation in float64."""
        with torch.enable_grad():
            t = t.detach().double().requires_grad_()
            out: list[Tensor | None] = []
            for f in (self.a, self.c, self.b):
                y = f(t)
                if y is None:
                    out.append(None)
                elif not y.requires_grad:
                    out.append(torch.zeros_like(t))
                else:
                    (g,) = torch.autograd.grad(y.sum(), t, allow_unused=True)
                    out.append(torch.zeros_like(t) if g is None else g.detach())
        assert out[0] is not None
        assert out[1] is not None
        return out[0], out[1], out[2]

    def kinds(self, kind: str, t: Tensor) -> tuple[Weight, Weight, Weight]:
        """(p, q, r) with f = p x_t + q x0 + r y, for a network that predicts f.

            eps    (x - a x0 - b y) / c                       v      a eps - c x0
            score  -eps / c                                   flow   dx/dt = a' x0 + b' y + c' eps
            x0     x0

        Raises EbbError for an unknown kind.
        """
        if kind not in KINDS:
            raise EbbError(f"a network predicts no {kind!r}; {nearest(kind, KINDS)}")
        found: tuple[Weight, Weight, Weight] = self.once(kind, lambda t: self.kinds_of(kind, t), t)
        return found

    def kinds_of(self, kind: str, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`kinds` in their tensor form."""
        a, c = self.a(t), self.c(t).clamp_min(1e-12)
        b = self.b(t)
        b = torch.zeros_like(a) if b is None else b
        zero, one = torch.zeros_like(a), torch.ones_like(a)
        if kind == "x0":
            return zero, one, zero
        if kind == "eps":
            return one / c, -a / c, -b / c
        if kind == "score":
            return -one / c**2, a / c**2, b / c**2
        if kind == "v":
            return a / c, -a * a / c - c, -a * b / c
        da, dc, db = self.rates(t)
        return dc / c, da - dc * a / c, (zero if db is None else db) - dc * b / c

    def to_x0(self, kind: str, f: Tensor, x: Tensor, t: Tensor, cond: dict[str, Tree]) -> Tensor:
        """The data estimate that a prediction `f` of this kind stands for, x0 = (f - p x - r y) / q."""
        if kind == "x0":
            return f
        p, q, r = self.kinds(kind, t)
        return combine((1 / q, f), (-p / q, x), *([(-r / q, self.end(cond))] if self.ended else []))

    def from_x0(self, kind: str, x0: Tensor, x: Tensor, t: Tensor, cond: dict[str, Tree]) -> Tensor:
        """The prediction of this kind that a data estimate stands for: the inverse of `to_x0`."""
        if kind == "x0":
            return x0
        p, q, r = self.kinds(kind, t)
        return combine((q, x0), (p, x), *([(r, self.end(cond))] if self.ended else []))
