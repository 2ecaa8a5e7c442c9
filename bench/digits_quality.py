"""How good the shipped model `digits` is, measured by a classifier it never saw and by its distance to its data.

    python bench/digits_quality.py --data mnist.npz --classifier clf_mnist.safetensors [--model FOLDER] [--scale 1.5]

    asked     share of samples that the classifier reads as the digit asked for             bar: >= 0.98
    distance  median over samples of min_j |x - train_j|, divided by that of test pictures    bar: >= 0.95

The first falls when the network is weak or guidance is low; the second when it copies, or when high guidance
draws only the most ordinary pictures. 500 samples, 50 of each digit, seeds 0..499, 20 Euler steps on a uniform grid.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ebbtide as ebb
from ebbtide.measure.metrics import nearest_distance
from ebbtide.zoo.data import load_pictures


def classifier(path: Path) -> nn.Module:
    """The classifier of the shared assets: pixels in [0, 1], normalised by its own layer of no weights."""
    from safetensors.torch import load_file

    tensors = list(load_file(path).values())
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    weights = {tuple(v.shape): v for v in tensors}
    with torch.no_grad():
        for w in net.parameters():
            w.copy_(weights[tuple(w.shape)])
    return net.eval()


def read(net: nn.Module, x: Tensor) -> Tensor:
    """The digits it reads in pictures x (B, 1, 28, 28) in [-1, 1]."""
    with torch.inference_mode():
        return torch.cat([net(((p + 1) / 2 - 0.1307) / 0.3081).argmax(-1) for p in x.split(500)])


def measure(model: ebb.Model, data: Path, clf: Path, scale: float, steps: int, n: int) -> dict[str, Any]:
    """Both figures, and seconds."""
    labels = torch.arange(n) % 10
    plan = ebb.Plan(grid={"name": "linear", "steps": steps}, guide={"name": "cfg", "scale": scale})
    out = ebb.sample(model, plan, cond=labels, n=n, batch=250)
    x = out.x.clamp(-1, 1)
    train = load_pictures(data).x
    mine, theirs = (
        nearest_distance(x, train).median(),
        nearest_distance(load_pictures(data, split="test").x[:2000], train).median(),
    )
    right = read(classifier(clf), x) == labels
    return {
        "scale": scale,
        "steps": steps,
        "samples": n,
        "asked": round(float(right.double().mean()), 4),
        "distance": round(float(mine / theirs), 4),
        "seconds": round(out.seconds, 1),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--scale", type=float, nargs="+", default=[1.5])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("-n", type=int, default=500)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = ebb.load(given.model or "digits")
    for scale in given.scale:
        print(json.dumps(measure(model, given.data, given.classifier, scale, given.steps, given.n)), flush=True)


if __name__ == "__main__":
    main()
