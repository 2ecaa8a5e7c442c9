"""GDSS: graphs by two coupled diffusions, of nodes and of edges, and S4, a corrected step for one evaluation of both.

Nodes and edges here are jointly Gaussian and exactly known: every pair of nodes is joined as their feature says, so neither
field can be drawn without the other.

    x_i ~ N(0, 1),   a_ij = (x_i + x_j) / 2 + e_ij,   e_ij = e_ji ~ N(0, 0.04),   a_ii = 0

Paper    Jo, Lee, Hwang 2022, "Score-based generative modeling of graphs via the system of stochastic differential equations"
         (arXiv 2202.02514)
Card     the covariance of both fields against the exact one, S4 against predictor-corrector at twice its calls, symmetry at
         every step and equivariance. The control's fields do not see one another
Differs  exact scores stand for the networks, and a Gaussian for graphs; bench/graphs.py has the published networks
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree
from ebbtide.denoise.model import Model, process
from ebbtide.systems import Bench, Card, System

SYSTEM = System(
    id="gdss",
    family="solve",
    title="Score-based Generative Modeling of Graphs via the System of Stochastic Differential Equations",
    year=2022,
    claim="modelling how nodes and edges depend on one another makes better graphs, and S4 halves the evaluations",
    what="Node features and a symmetric adjacency matrix diffuse together, each score reads both, and one evaluation serves a "
    "corrected step.",
    paper="2202.02514",
    parts=("process/symmetric", "solve/s4"),
    presets={"gdss": {"solve": {"name": "s4", "snr": 0.05, "scale": 0.7}, "grid": {"name": "linear", "steps": 60}}},
    differs="exact scores of a joint Gaussian in place of graph networks",
)

NODES, ROUGH, COUNT = 4, 0.04, 2000
ONE = {"name": "vp-linear"}


class Coupled(Denoiser):
    """E[x0 | x_t] of the joint Gaussian above; uncoupled, of each field by itself."""

    process: Any

    def __init__(self, coupled: bool = True) -> None:
        self.process = process("joint", fields={"edges": {"name": "symmetric", "of": ONE}, "nodes": ONE})
        self.coupled = coupled
        self.i, self.j = torch.triu_indices(NODES, NODES, 1)
        eye = torch.eye(NODES, dtype=torch.float64)
        read = torch.cat([eye, (eye[self.i] + eye[self.j]) / 2])
        self.cov = read @ read.mT
        self.cov[NODES:, NODES:] += ROUGH * torch.eye(len(self.i), dtype=torch.float64)
        if not coupled:
            self.cov[:NODES, NODES:] = self.cov[NODES:, :NODES] = 0

    def flat(self, x: Tree) -> Tensor:
        """Nodes, then pairs, (B, D)."""
        return torch.cat([x["nodes"][..., 0], x["edges"][:, self.i, self.j]], 1)

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        p = self.process.parts["nodes"]
        a, c = p.a(t)[:, None, None], p.c(t)[:, None, None]
        seen = a**2 * self.cov + c**2 * torch.eye(len(self.cov), dtype=torch.float64)
        mean = (a[..., 0] * torch.linalg.solve(seen, self.flat(x)[..., None])[..., 0]) @ self.cov
        edges = torch.zeros_like(x["edges"])
        edges[:, self.i, self.j] = edges[:, self.j, self.i] = mean[:, NODES:]
        return Pred(mean={"edges": edges, "nodes": mean[:, :NODES, None]})


def apart(found: Tensor, true: Tensor) -> float:
    """The distance of two covariances, relative to the true one."""
    return float((found - true).norm() / true.norm())


def card(bench: Bench) -> Card:
    """Coupled fields by S4 and by predictor-corrector; the control's scores do not see the other field."""
    like = {
        "edges": torch.zeros(NODES, NODES, dtype=torch.float64),
        "nodes": torch.zeros(NODES, 1, dtype=torch.float64),
    }
    exact = Coupled()
    denoiser = bench.fault(exact, Coupled(coupled=False))
    model: Model = ebb.load(denoiser, like=like)
    steps = SYSTEM.presets["gdss"]["grid"]["steps"]
    grid = {"name": "linear", "steps": steps}
    s4 = ebb.Plan(solve=dict(SYSTEM.presets["gdss"]["solve"]), grid=grid)
    pc = ebb.Plan(solve={"name": "langevin", "snr": 0.05}, grid=grid)

    worst = 0.0
    out, state = ebb.sample(model, s4, n=COUNT, seed=0).x, None
    for step in ebb.run(model, s4, n=4, seed=0):
        state = step.state
        e = state.x["edges"]
        worst = max(worst, float((e - e.mT).abs().max()), float(e.diagonal(dim1=1, dim2=2).abs().max()))
    other = ebb.sample(model, pc, n=COUNT, seed=COUNT).x
    far, far_pc = (apart(torch.cov(exact.flat(v).mT), exact.cov) for v in (out, other))
    bench.check("covariance of S4 samples, relative error", far, at_most=0.05, published="5%")
    bench.check("that over predictor-corrector's at twice the calls, + 0.05", far / (far_pc + 0.05), at_most=1.2)
    bench.check("asymmetry and diagonal of edges at every step", worst, at_most=0.0, published="0")

    order = torch.tensor([2, 0, 3, 1])
    assert state is not None
    t = torch.full((4,), 0.5, dtype=torch.float64)
    turned = {"edges": state.x["edges"][:, order][:, :, order], "nodes": state.x["nodes"][:, order]}
    one, two = denoiser(state.x, t, {}).mean, denoiser(turned, t, {}).mean
    gap = max(
        float((one["nodes"][:, order] - two["nodes"]).abs().max()),
        float((one["edges"][:, order][:, :, order] - two["edges"]).abs().max()),
    )
    bench.check("answers for nodes in another order", gap, at_most=1e-5, published="1e-5")
    return bench.card(
        f"Covariance error {far:.3f} with {steps} calls, {far_pc:.3f} by predictor-corrector with twice as many."
    )
