"""S4 and predictor-corrector over fields: laws, symmetry, and that fields move as they would alone."""

from __future__ import annotations

import torch

import ebbtide as ebb
from ebbtide.core.key import Noise, keys
from ebbtide.denoise.exact import Gaussian
from ebbtide.denoise.model import process
from ebbtide.process.symmetric import mirrored
from ebbtide.systems.solve.gdss import Coupled

LIKE = torch.zeros(2, dtype=torch.float64)


def test_s4_ends_on_the_law_of_the_data():
    model = ebb.load(Gaussian(process("vp-linear"), LIKE, 0.3), like=LIKE)
    plan = ebb.Plan(solve={"name": "s4", "snr": 0.1, "scale": 1.0}, grid={"name": "linear", "steps": 100})
    x = ebb.sample(model, plan, n=2000, seed=0).x
    assert abs(float(x.var()) / 0.3 - 1) < 0.08
    assert float(x.mean().abs()) < 0.04


def test_what_is_predicted_of_the_data_is_the_last_step():
    model = ebb.load(Gaussian(process("vp-cosine"), LIKE, 0.3), like=LIKE)
    loop = model.loop(ebb.Plan(solve="s4", grid={"name": "linear", "steps": 3}), {})
    for step in loop.run(loop.begin(LIKE.expand(4, 2), {}, [1, 2, 3, 4])):
        last = step
    assert last.pred is not None
    assert torch.equal(last.state.x, last.pred.mean)


def test_noise_of_matrices_is_drawn_once_a_pair():
    p = process("symmetric", of={"name": "vp-linear"})
    n = 4000
    noise = Noise(keys(range(n)), torch.zeros(n, dtype=torch.int64))
    one = torch.ones(n, dtype=torch.float64)
    z = p.prior(torch.zeros(n, 3, 3, dtype=torch.float64), one, noise, {})
    assert torch.equal(z, z.mT)
    assert not z.diagonal(dim1=1, dim2=2).any()
    upper = z[:, *torch.triu_indices(3, 3, 1)]
    c = float(p.c(one[:1]))  # type: ignore[attr-defined]
    assert torch.allclose(torch.cov(upper.mT), c**2 * torch.eye(3).double(), atol=0.08)


def test_edges_stay_symmetric_whatever_is_predicted():
    class Crooked(Coupled):
        def __call__(self, x, t, cond):  # type: ignore[no-untyped-def]
            pred = super().__call__(x, t, cond)
            return pred._replace(mean={**pred.mean, "edges": pred.mean["edges"].triu(1) + torch.eye(4).double()})

    like = {"edges": torch.zeros(4, 4, dtype=torch.float64), "nodes": torch.zeros(4, 1, dtype=torch.float64)}
    model = ebb.load(Crooked(), like=like)
    for solve in ("s4", "langevin", "euler"):
        out = ebb.sample(model, ebb.Plan(solve=solve, grid={"name": "linear", "steps": 4}), n=3, seed=0).x["edges"]
        assert torch.equal(out, mirrored(out)), solve
