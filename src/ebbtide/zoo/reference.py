"""What digits look like, small enough to ship: statistics of MNIST, and pictures that the shipped model drew.

    python -m ebbtide.zoo.reference mnist.npz

writes, from the features of the shipped classifier (64 of them, see `zoo.classifier`),

    train.mean (64,), train.cov (64, 64), test.mean, test.cov     float64: Frechet distances
    pixel.mean, pixel.std (1, 28, 28)                            float32, of training pictures in [-1, 1]
    train.counts, test.counts (10,)                              int64, pictures of each class
    test.nearest                                                 (), median distance of a test picture to the nearest
                                                                 training picture, in [-1, 1]

and beside it `digits-drawn.npz`, 2,500 pictures (0.5 MB) that `digits` drew, 250 a class: data for exact denoisers, cards
and tests in a clone that has no MNIST. No picture of MNIST itself ships.

Data     LeCun, Cortes, Burges, "The MNIST database of handwritten digits"
Source   Heusel et al. 2017, "GANs trained by a two time-scale update rule" (arXiv 1706.08500), section 4, for the
         distance between Gaussians fitted to features
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.measure.metrics import moments, nearest_distance
from ebbtide.zoo.data import Pictures, load_pictures

FOLDER = Path(__file__).parent / "weights" / "reference"


def features(x: Tensor) -> Tensor:
    """The shipped classifier's features of pictures x (N, 1, 28, 28) in [-1, 1], (N, 64) float64."""
    from ebbtide.zoo import classifier

    with torch.no_grad():
        return torch.cat([classifier.load().features(part).double() for part in x.split(1000)])


def statistics(train: Pictures, test: Pictures) -> dict[str, Tensor]:
    """The table above. Raises EbbError for pictures without labels."""
    if train.labels is None or test.labels is None:
        raise EbbError("reference statistics count classes: give pictures with labels.")
    out: dict[str, Tensor] = {}
    for name, part in (("train", train), ("test", test)):
        assert part.labels is not None
        f = torch.cat([features(part.rows(i)[0]) for i in torch.arange(len(part)).split(5000)])
        out[f"{name}.mean"], out[f"{name}.cov"] = moments(f)
        out[f"{name}.counts"] = part.labels.bincount()
    x = train.x
    out["pixel.mean"], out["pixel.std"] = x.mean(0), x.std(0)
    out["test.nearest"] = nearest_distance(test.rows(torch.arange(500))[0], x).median()
    return out


def drawn(n: int = 2500) -> tuple[Tensor, Tensor]:
    """Pictures (n, 28, 28) uint8 that the shipped `digits` draws, and their labels: 20 Euler steps, guidance 1.5."""
    from ebbtide import api
    from ebbtide.core.plan import Plan
    from ebbtide.samples import to_pixels

    labels = [k % 10 for k in range(n)]
    plan = Plan(guide={"name": "cfg", "scale": 1.5})
    out = api.sample("digits", plan, cond=labels, n=n, batch=250)
    return to_pixels(out.x)[..., 0], torch.tensor(labels, dtype=torch.uint8)


def make(source: str | Path, folder: Path = FOLDER) -> list[Path]:
    """Write digits.safetensors and digits-drawn.npz; the same data and model give the same bytes."""
    from safetensors.torch import save_file

    train, test = load_pictures(source), load_pictures(source, split="test")
    out = {k: v.contiguous() for k, v in statistics(train, test).items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "digits.safetensors", folder / "digits-drawn.npz"]
    save_file(out, files[0], {"train": train.digest, "test": test.digest, "source": "MNIST, LeCun, Cortes, Burges"})
    pixels, labels = drawn()
    np.savez_compressed(files[1], images=pixels.numpy(), labels=labels.numpy())
    return files


@functools.cache
def load() -> dict[str, Tensor]:
    """The shipped statistics, by the names above; do not write into the tensors, they are shared."""
    from safetensors.torch import load_file

    return load_file(FOLDER / "digits.safetensors")


def pictures() -> Pictures:
    """The 2,500 drawn pictures that ship."""
    return load_pictures(FOLDER / "digits-drawn.npz")


if __name__ == "__main__":
    for file in make(sys.argv[1]):
        print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
