"""Graphs, nodes and edges at once: python examples/gdss_community_small.py gdss_community_small.safetensors
Two nets read both and say eps; one row: 190 edges, 20 x 10 features. Weights: harryjo97/GDSS, MIT in AdrienC21/CCSD."""

import sys

import torch
from safetensors.torch import load_file
from torch.nn.functional import elu, linear

import ebbtide as ebb

w, (i, j), eye = load_file(sys.argv[1]), torch.triu_indices(20, 20, 1), torch.eye(20)
of = lambda at: (w[f"{at}.weight"], w[f"{at}.bias"])  # noqa: E731
mlp = lambda h, at, n=1: linear(elu(mlp(h, at, n - 1)) if n else h, *of(f"{at}.linears.{n}"))  # noqa: E731
flow = lambda a: (r := (a := a * (1 - eye) + eye).sum(-1, keepdim=True).clamp_min(1) ** -0.5) * a * r.mT  # noqa: E731
gcn = lambda a, h, at: flow(a) @ (h @ of(at)[0]) + of(at)[1]  # noqa: E731


def nets(x: torch.Tensor, clock: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
    adj, on = torch.zeros(len(x), 20, 20), on[..., None]
    adj[:, i, j] = adj[:, j, i] = x[:, :190] * (on * on.mT)[:, i, j]
    h, many = x[:, 190:].unflatten(1, (20, 10)) * on, [torch.stack([adj, adj @ adj], -1)]
    seen = [h, a := gcn(adj, h, "x.layers.0").tanh(), a := gcn(adj, a, "x.layers.1").tanh()]
    seen.append(gcn(adj, a, "x.layers.2").tanh())
    for at in [f"adj.layers.{k}" for k in range(5)]:
        told = [[gcn(a, h, f"{at}.attn.{n}.gnn_{m}") for n, a in enumerate(many[-1].unbind(-1))] for m in "qkv"]
        q, k = (torch.stack(u, 1).unflatten(-1, (4, 8)).transpose(2, 3) for u in told[:2])
        a = (q @ k.mT / 32**0.5).tanh().mean(2).movedim(1, -1)
        a = mlp(torch.cat([(a + a.transpose(1, 2)) / 2, many[-1]], -1), f"{at}.mlp") * (on * on.mT)[..., None]
        many.append(a + a.transpose(1, 2))
        h = (mlp(torch.cat(told[2], -1), f"{at}.multi_channel") * on).tanh()
    nodes, edges = mlp(torch.cat(seen, -1), "x.final", 2) * on, mlp(torch.cat(many, -1), "adj.final", 2)[..., 0]
    return torch.cat([(edges * on * on.mT)[:, i, j], nodes.flatten(1)], 1)


vp = {"name": "vp-linear", "beta_min": 0.1, "beta_max": 1.0}
model = ebb.load(nets, process=vp, predicts="eps", like=torch.zeros(390))
plan = ebb.Plan(solve="ancestral", grid={"name": "linear", "steps": 100})
graphs = ebb.sample(model, plan, cond={"on": torch.ones(1, 20)}, n=20)  # of 20 nodes each
print("edges:", (graphs.x[:, :190] > 0.5).sum(1).tolist())
