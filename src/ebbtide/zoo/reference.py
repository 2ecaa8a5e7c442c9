"""What real digits look like, small enough to ship: statistics of MNIST and a few of its pictures.

    python -m ebbtide.zoo.reference mnist.npz

writes, from the features of the shipped classifier (64 of them, see `zoo.classifier`),

    train.mean (64,), train.cov (64, 64), test.mean, test.cov     float64: Frechet distances
    pixel.mean, pixel.std (1, 28, 28)                            float32, of training pictures in [-1, 1]
    train.counts, test.counts (10,)                              int64, pictures of each class
    held.pixels (500, 1, 28, 28), held.labels (500,)             test pictures, 50 a class: energy distances
    train.floor, test.nearest                                    (), median distance of a test picture to the nearest of
                                                                 the shipped / of all training pictures, in [-1, 1]

and beside it `digits-train.npz`, 2,000 training pictures (200 a class, 0.4 MB) that `load_pictures` reads: data for
exact denoisers, tests and examples in a clone that has no MNIST.

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
from ebbtide.core.key import Noise, keys
from ebbtide.zoo.data import Pictures, load_pictures

FOLDER = Path(__file__).parent / "weights" / "reference"


def features(x: Tensor) -> Tensor:
    """The shipped classifier's features of pictures x (N, 1, 28, 28) in [-1, 1], (N, 64) float64."""
    from ebbtide.zoo import classifier

    with torch.no_grad():
        return torch.cat([classifier.load().features(part).double() for part in x.split(1000)])


def moments(f: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D)."""
    cov = f.T.cov()
    return f.mean(0), (cov + cov.T) / 2


def chosen(labels: Tensor, each: int, seed: int) -> Tensor:
    """`each` rows of every class, drawn by key, in mixed order."""
    u = Noise(keys([seed]), torch.zeros(1, dtype=torch.int64)).uniform((1, len(labels)))[0]
    rank = u.argsort()
    per_class = [rank[labels[rank] == c][:each] for c in range(int(labels.max()) + 1)]
    picked = torch.cat(per_class)
    return picked[u[picked].argsort()]


def nearest(x: Tensor, data: Tensor) -> Tensor:
    """The distance of each x (N, ...) to the nearest row of data (M, ...), (N,) in their units."""
    x, data = x.flatten(1), data.flatten(1)
    best = torch.stack([(p.square().sum(1) - 2 * x @ p.T).amin(1) for p in data.split(10_000)]).amin(0)
    return (best + x.square().sum(1)).clamp_min(0).sqrt()


def statistics(train: Pictures, test: Pictures, held: int = 50) -> dict[str, Tensor]:
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
    pick = chosen(test.labels, held, seed=0)
    out["held.pixels"], out["held.labels"] = test.pixels[pick], test.labels[pick]
    probe = test.rows(pick)[0]
    out["test.nearest"] = nearest(probe, x).median()
    out["train.floor"] = nearest(probe, train.rows(chosen(train.labels, 200, seed=1))[0]).median()
    return out


def make(source: str | Path, folder: Path = FOLDER) -> list[Path]:
    """Write digits.safetensors and digits-train.npz, made from an MNIST file; the same data gives the same bytes."""
    from safetensors.torch import save_file

    train, test = load_pictures(source), load_pictures(source, split="test")
    out = {k: v.contiguous() for k, v in statistics(train, test).items()}
    assert train.labels is not None
    few = chosen(train.labels, 200, seed=1)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "digits.safetensors", folder / "digits-train.npz"]
    save_file(out, files[0], {"train": train.digest, "test": test.digest, "source": "MNIST, LeCun, Cortes, Burges"})
    np.savez_compressed(
        files[1], images=train.pixels[few, 0].numpy(), labels=train.labels[few].numpy().astype(np.uint8)
    )
    return files


@functools.cache
def load() -> dict[str, Tensor]:
    """The shipped statistics, by the names above; do not write into the tensors, they are shared."""
    from safetensors.torch import load_file

    return load_file(FOLDER / "digits.safetensors")


def pictures() -> Pictures:
    """The 2,000 training pictures that ship."""
    return load_pictures(FOLDER / "digits-train.npz")


if __name__ == "__main__":
    for file in make(sys.argv[1]):
        print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
