"""Processes between data and an end y that each element carries in `cond["y"]`.

    x_t = a(t) x0 + b(t) y + c(t) eps,   c(0) = b(0) = 0,  a(0) = 1

    start (t given, data unknown)      x_t = (a + b) y + c z:   y stands in for the data
    chain (x0 and y known, s < t)      x_t = (m_t / m_s) x_s + (terms in x0 and y) + noise,   m = `carry`

`carry` says how much of the noise at s is still there at t. With m = a the chain needs no x0 and is the Markov chain of
`Affine`; chains that push along y - x0 keep another m, and with it another posterior of the same marginals.

Source   the posterior of a chain: correlation rho = m_t c_s / (m_s c_t) of the noises, and x_s = a_s x0 + b_s y
         + c_s (rho eps_t + sqrt(1 - rho^2) z); Song, Meng, Ermon 2021 (arXiv 2010.02502), eq. 7, with an end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebbtide.core.key import Noise
from ebbtide.core.time import Weight, combine
from ebbtide.core.tree import Tree
from ebbtide.process.affine import Affine, Weights


class Ended(Affine):
    """An affine process with an end y: `b` is given, and a run starts from y where the data would be."""

    gives = Affine.gives | {"end"}

    def prior(self, like: Tree, t: Tensor, noise: Noise, cond: dict[str, Tree]) -> Tree:
        """(a + b) y + c z, shaped like `like`. Raises EbbError when the condition holds no y."""
        b = self.b(t)
        assert b is not None
        return combine((self.a(t) + b, self.end(cond)), (self.c(t), self.draw(like, noise)))


class Carried(Ended):
    """A process whose chain, given x0 and y, carries its noise by a rule of its own.

    eta = 1 is the posterior of that chain. It equals the posterior of `Affine` at a smaller eta,
    eta' = eta sqrt((1 - rho^2) / (1 - rho_a^2)), rho_a being the correlation when the noise is carried by a.
    """

    def carry(self, t: Tensor) -> Tensor:
        """m(t), positive and not increasing, m(0) = 1; at most as steep as a(t)."""
        raise NotImplementedError

    def weights_of(self, t: Tensor, s: Tensor, eta: Weight) -> Weights:
        ct, c = self.c(t), self.c(s)
        one = torch.ones_like(ct)

        def fresh(m: Tensor, m_s: Tensor) -> Tensor:
            """1 - rho^2 where the noise is carried by m."""
            at_end = (ct == 0) | (m_s == 0)
            return torch.where(at_end, one, 1 - (m * c / torch.where(at_end, one, m_s * ct)) ** 2).clamp(0, 1)

        usual, own = fresh(self.a(t), self.a(s)), fresh(self.carry(t), self.carry(s))
        less = torch.where(usual > 0, (own / usual.clamp_min(1e-300)).sqrt(), one)
        return super().weights_of(t, s, eta * less)
