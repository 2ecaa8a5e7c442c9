"""Graphs and molecules: our samplers against the predictor-corrector of GDSS, on its own networks, at equal calls.

    python bench/graphs.py ASSETS [community_small] [qm9] [--calls 200] [--n 96] [--seeds 0,1] [--ways s4,langevin] [--json]

ASSETS is the folder that holds models/ and data/; each seed draws as many graphs, all samplers from the same noise.

community_small   20 nodes, variance preserving; discrepancies of degree, clustering and spectrum to the 100 graphs of the
                  data, over those of reverse diffusion and Langevin correction by turns as Jo et al. 2022 (arXiv
                  2202.02514) give them, written here                              bar 1.2
qm9               9 atoms, variance exploding; the same, of bonds, to 1,000 test molecules, and how many break the rules
                  of valency (RDKit) before any correction                         bars 1.2, 20 %

    s4          the preset of `gdss`, one call a step
    langevin    predictor-corrector, two calls a step, its noise scaled as published; `whole` without that
    half        s4 in half as many calls
    ancestral   no correction, one call a step
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import ebbtide as ebb
import figures
from ebbtide.denoise.model import Model, process
from ebbtide.measure.graphs import STATISTICS, discrepancies
from ebbtide.measure.molecules import validity
from ebbtide.process.symmetric import mirrored
from ebbtide.zoo.graphs import GraphDenoiser, GraphNets

KIND = {"community_small": "vp", "qm9": "ve"}
SNR = {"community_small": 0.05, "qm9": 0.2}
SCALE, LOW, HIGH = 0.7, 0.1, 1.0
BARRED = ("s4", "langevin")
DATA = {"community_small": "graphs_community_small.json.gz", "qm9": "qm9_test_graphs.json.gz"}


def read(assets: Path, name: str, most: int = 1000) -> tuple[Tensor, Tensor]:
    """Adjacency (n, N, N) with bond orders, and the number of nodes of each."""
    with gzip.open(assets / "data" / DATA[name], "rt") as f:
        graphs = json.load(f)[:most]
    size = {"community_small": 20, "qm9": 9}[name]
    out = torch.zeros(len(graphs), size, size)
    for k, g in enumerate(graphs):
        for i, j, *order in g["edges"]:
            out[k, i, j] = out[k, j, i] = order[0] if order else 1
    return out, torch.tensor([g["n"] for g in graphs])


def model_of(nets: GraphNets, name: str, size: int, features: int) -> Model:
    """The networks as a model of the joint state."""
    one = (
        {"name": "vp-linear", "beta_min": LOW, "beta_max": HIGH}
        if KIND[name] == "vp"
        else {"name": "edm", "sigma_max": HIGH}
    )
    joint = process("joint", fields={"edges": {"name": "symmetric", "of": one}, "nodes": one})
    denoiser = GraphDenoiser(nets, joint, "eps" if KIND[name] == "vp" else "score")
    return ebb.load(denoiser, like={"edges": torch.zeros(size, size), "nodes": torch.zeros(size, features)})


def times(name: str, steps: int) -> list[float]:
    """The levels of the published sampler: even in time for vp, even in log sigma for ve (where t is sigma), then 0."""
    k = torch.linspace(1, 0, steps, dtype=torch.float64)
    return [*((1e-4 + (1 - 1e-4) * k) if KIND[name] == "vp" else LOW * (HIGH / LOW) ** k).tolist()[:steps], 0.0]


@torch.no_grad()
def reference(
    nets: GraphNets, name: str, x: Tensor, a: Tensor, on: Tensor, steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Predictor-corrector as published: norms over the batch, both fields from one state. Nodes and edges at the end."""
    g = torch.Generator().manual_seed(1000 + seed)
    both = on[:, :, None] * on[:, None] * (1 - torch.eye(a.shape[-1]))

    def draw() -> tuple[Tensor, Tensor]:
        return torch.randn(x.shape, generator=g) * on[..., None], mirrored(torch.randn(a.shape, generator=g)) * both

    def score(x: Tensor, a: Tensor, c: float) -> tuple[Tensor, Tensor]:
        said = nets(x, a, on)
        return said if KIND[name] == "ve" else (-said[0] / c, -said[1] / c)

    def level(t: float) -> tuple[float, float, float]:
        """c, alpha of the correction, and the discrete beta."""
        if KIND[name] == "ve":
            return LOW * (HIGH / LOW) ** t, 1.0, 0.0
        log = -0.25 * (HIGH - LOW) * t**2 - 0.5 * LOW * t
        beta = (LOW + t * (HIGH - LOW)) / steps
        return (1 - torch.tensor(2 * log).exp().item()) ** 0.5, 1 - beta, beta

    x, a = x * on[..., None], a * both
    nodes, mean = x, a
    for k in range(steps):
        t = 1e-4 + (1 - 1e-4) * (1 - k / max(steps - 1, 1))
        c, alpha, beta = level(t)
        for part in ("correct", "predict"):
            moved = []
            for v, s, z in zip((x, a), score(x, a, c), draw(), strict=True):
                if part == "correct":
                    size = [w.flatten(1).norm(dim=1).mean() for w in (z, s)]
                    step = (SNR[name] * size[0] / size[1]) ** 2 * 2 * alpha
                    m = v + step * s
                    moved.append((m, m + (2 * step).sqrt() * z * SCALE))
                elif KIND[name] == "vp":
                    m = (2 - (1 - beta) ** 0.5) * v + beta * s
                    moved.append((m, m + beta**0.5 * z))
                else:
                    low = level(t - 1 / steps)[0] if k + 1 < steps else 0.0
                    m = v + (c**2 - low**2) * s
                    moved.append((m, m + (c**2 - low**2) ** 0.5 * z))
            mean, (x, a) = moved[1][0], (moved[0][1], moved[1][1])
            nodes = moved[0][0]
    return nodes, mean


def judged(name: str, nodes: Tensor, edges: Tensor, on: Tensor, data: Tensor) -> dict[str, Any]:
    """Discrepancies to the data, and of molecules how many keep the rules."""
    top = 1 if name == "community_small" else 3
    orders = mirrored(edges).round().clamp(0, top)
    out: dict[str, Any] = discrepancies((orders > 0).float(), (data > 0).float())
    if name == "qm9":
        kinds = torch.tensor([6, 7, 8, 9])
        known = (nodes > 0.5).float()
        none = 1 - known.sum(-1, keepdim=True)
        atoms = torch.cat([known, none], -1).argmax(-1)
        atoms = torch.where((atoms < 4) & (on > 0), kinds[atoms.clamp(max=3)], 0)
        out |= validity(atoms, orders)._asdict()
    return out


def plan(way: str, name: str, calls: int) -> ebb.Plan:
    """How `way` spends these calls."""
    s4 = {"name": "s4", "snr": SNR[name], "scale": SCALE}
    langevin = {"name": "langevin", "snr": SNR[name]}
    ways: dict[str, tuple[Any, int]] = {
        "s4": (s4, calls),
        "langevin": ({**langevin, "scale": SCALE}, calls // 2),
        "whole": (langevin, calls // 2),
        "half": (s4, calls // 2),
        "ancestral": ("ancestral", calls),
    }
    if way not in ways:
        raise SystemExit(f"there is no way {way!r}: {', '.join(ways)}.")
    solve, steps = ways[way]
    return ebb.Plan(start="given", solve=solve, grid={"name": "explicit", "times": times(name, steps)})


def measured(
    assets: Path, name: str, calls: int, n: int, seeds: list[int], ways: list[str], kept: figures.Kept
) -> Iterator[figures.Figure]:
    """All ways on one data set."""
    nets = GraphNets(load_file(assets / "models" / f"gdss_{name}.safetensors"))
    data, counts = read(assets, name)
    size, features = data.shape[-1], 10 if name == "community_small" else 4
    model = model_of(nets, name, size, features)

    def run(way: str, seed: int) -> dict[str, Any]:
        g = torch.Generator().manual_seed(seed)
        on = (torch.arange(size) < counts[torch.randint(len(counts), (n,), generator=g)][:, None]).float()
        x, a = torch.randn(n, size, features, generator=g), mirrored(torch.randn(n, size, size, generator=g))
        if way == "published":
            return judged(name, *reference(nets, name, x, a, on, calls // 2, seed), on, data)
        cond = {"on": on, "start": {"edges": a, "nodes": x}}
        out: Any = ebb.sample(model, plan(way, name, calls), cond=cond, n=n, seed=seed).x
        return judged(name, out["nodes"], out["edges"], on, data)

    found: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for way in ("published", *ways):
            key = f"{name} {way} {calls} calls, {n} graphs, seed {seed}"
            found.setdefault(way, []).append(kept(key, lambda w=way, s=seed: run(w, s)))  # type: ignore[misc]
    for way in ways:
        for what in STATISTICS:
            ours, theirs = ([row[what] for row in found[w]] for w in (way, "published"))
            told = ", ".join(f"{o:.4f} / {t:.4f}" for o, t in zip(ours, theirs, strict=True))
            bar = 1.2 if way in BARRED else None
            yield figures.Figure(f"{name}, {way}, {what}", sum(ours) / sum(theirs), bar, said=told)
    if name == "qm9":
        for way, rows in found.items():
            broken = 1 - sum(row["plain"] for row in rows) / len(rows)
            error = math.sqrt(broken * (1 - broken) / (n * len(rows)))
            fixed, unique = (sum(row[k] for row in rows) / len(rows) for k in ("corrected", "unique"))
            told = (
                f"+- {100 * error:.1f}; {100 * fixed:.0f} % sound when corrected, {100 * unique:.0f} % of them unique"
            )
            yield figures.Figure(f"{name}, {way}, unsound", 100 * broken, 20 if way in BARRED else None, "%", told)


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("assets", type=Path, help="the folder that holds models/ and data/")
    parser.add_argument("sets", nargs="*", default=list(KIND), help="community_small, qm9")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--n", type=int, default=96, help="graphs a seed")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--ways", default="s4,langevin,whole,half")
    parser.add_argument("--keep", type=Path, default=None, help="a file that keeps each run, and is gone on from")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept = figures.Kept(given.keep)
    seeds, ways = [int(v) for v in given.seeds.split(",")], given.ways.split(",")
    found = [f for name in given.sets for f in measured(given.assets, name, given.calls, given.n, seeds, ways, kept)]
    title = f"Graphs, {given.calls} calls, {given.n} graphs and seeds {given.seeds} ({figures.versions()})"
    return figures.report(title, found, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
