"""Networks of graphs: two that read nodes and edges together, one says the noise of the nodes, the other that of the edges.

    H_k+1 = tanh(gcn(A, H_k)),          eps_X = mlp([H_0 ... H_K])                                      nodes
    A_k+1 = sym(mlp([attend(A_k, H_k), A_k])),  eps_A = mlp([A_0 ... A_K]),   A_0 = [A, A^2]            edges
    gcn(A, H) = D^-1/2 (A + I) D^-1/2 H W + b,   attend(A, H) = mean over heads of tanh(Q K^T / sqrt d), by channel of A

Both answer alike for nodes in another order. `GraphDenoiser` makes them E[x0 | x_t] of a joint state {"edges", "nodes"}.

Shapes   nodes (B, N, F), edges (B, N, N), on (B, N) which nodes there are (all, where it is not given)
Paper    Jo, Lee, Hwang 2022, "Score-based generative modeling of graphs via the system of stochastic differential equations"
         (arXiv 2202.02514), section 3.2 and appendix
Differs  the networks are not told the time, as published. What stands at nodes that are not there is not looked at
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, linear

from ebbtide.core.parts import Denoiser
from ebbtide.core.state import Pred
from ebbtide.core.tree import Tree


class GraphNets(nn.Module):
    """Both networks over the weights of a published pair, whose names say how deep and wide they are.

    weights   "x.layers.k.weight" ... and "adj.layers.k.attn.n.gnn_q.weight" ..., as published
    heads     of attention
    """

    def __init__(self, weights: Mapping[str, Tensor], heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.names = [k for k in weights if k.split(".")[0] in ("x", "adj") and weights[k].is_floating_point()]
        for k in self.names:
            self.register_parameter(k.replace(".", "/"), nn.Parameter(weights[k].float(), requires_grad=False))
        self.depth = self._count("x.layers.{}.weight")
        self.layers = self._count("adj.layers.{}.mlp.linears.0.weight")

    def _count(self, name: str) -> int:
        k = 0
        while name.format(k) in self.names:
            k += 1
        return k

    def _of(self, at: str) -> tuple[Tensor, Tensor]:
        return self.get_parameter(f"{at}.weight".replace(".", "/")), self.get_parameter(f"{at}.bias".replace(".", "/"))

    def _mlp(self, h: Tensor, at: str) -> Tensor:
        last = self._count(at + ".linears.{}.weight") - 1
        for k in range(last + 1):
            h = linear(h, *self._of(f"{at}.linears.{k}"))
            h = elu(h) if k < last else h
        return h

    def _gcn(self, a: Tensor, h: Tensor, at: str) -> Tensor:
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        a = a * (1 - eye) + eye
        root = a.sum(-1, keepdim=True).clamp_min(1) ** -0.5
        weight, bias = self._of(at)
        return (root * a * root.mT) @ (h @ weight) + bias

    def forward(self, nodes: Tensor, edges: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
        """What both say at nodes (B, N, F), edges (B, N, N) of the nodes `on` (B, N), zeros for all others."""
        here = on[..., None].to(nodes)
        both = here * here.mT
        h, a = nodes * here, edges * both
        seen, g = [h], h
        for k in range(self.depth):
            g = self._gcn(a, g, f"x.layers.{k}").tanh()
            seen.append(g)
        many = [torch.stack([a, a @ a], -1)]
        for at in [f"adj.layers.{k}" for k in range(self.layers)]:
            told = [
                [self._gcn(c, h, f"{at}.attn.{n}.gnn_{m}") for n, c in enumerate(many[-1].unbind(-1))] for m in "qkv"
            ]
            asks, tells = (torch.stack(u, 1) for u in told[:2])
            width = asks.shape[-1]
            shape = (self.heads, width // self.heads)
            asks, tells = (v.unflatten(-1, shape).transpose(2, 3) for v in (asks, tells))
            seen_by = (asks @ tells.mT / width**0.5).tanh().mean(2).movedim(1, -1)
            seen_by = (seen_by + seen_by.transpose(1, 2)) / 2
            c = self._mlp(torch.cat([seen_by, many[-1]], -1), f"{at}.mlp") * both[..., None]
            many.append(c + c.transpose(1, 2))
            h = (self._mlp(torch.cat(told[2], -1), f"{at}.multi_channel") * here).tanh()
        off = 1 - torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        said = self._mlp(torch.cat(many, -1), "adj.final")[..., 0]
        return self._mlp(torch.cat(seen, -1), "x.final") * here, said * both * off


class GraphDenoiser(Denoiser):
    """Two networks of graphs as the denoiser of a joint state {"edges": (B, N, N), "nodes": (B, N, F)}.

    module     (nodes, edges, on) to what is said of both
    process    joint, over fields "edges" and "nodes"
    predicts   "eps" or "score", of both
    coupled    whether each network sees the other's field as it is; else as a graph of no edges, and nodes of zeros
    """

    process: Any

    def __init__(self, module: nn.Module, process: Any, predicts: str = "eps", coupled: bool = True) -> None:
        self.module, self.process, self.predicts, self.coupled = module, process, predicts, coupled

    def over(self, module: Any) -> GraphDenoiser:
        return GraphDenoiser(module, self.process, self.predicts, self.coupled)

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        nodes, edges = x["nodes"], x["edges"]
        on = cond.get("on", torch.ones(nodes.shape[:2], device=nodes.device))
        at = (nodes.float(), edges.float(), on)
        if self.coupled:
            said = dict(zip(("nodes", "edges"), self.module(*at), strict=True))
        else:
            said = {
                "nodes": self.module(at[0], torch.zeros_like(at[1]), on)[0],
                "edges": self.module(torch.zeros_like(at[0]), at[1], on)[1],
            }
        here = on[..., None].to(nodes)
        there = {"nodes": here, "edges": here * here.mT * (1 - torch.eye(edges.shape[-1]).to(edges))}
        parts = self.process.parts
        return Pred(
            mean={
                name: there[name] * parts[name].to_x0(self.predicts, said[name].to(x[name]), x[name], t, cond)
                for name in ("edges", "nodes")
            }
        )
