"""What digits and emoji look like, small enough to ship: statistics of both, and digits that the shipped model drew.

    python -m ebbtide.zoo.reference mnist.npz
    python -m ebbtide.zoo.reference emoji32.npz emoji

write, from the features of the shipped classifiers (64 of them, see `zoo.classifier` and `zoo.categories`),

    train.mean (64,), train.cov (64, 64), test.mean, test.cov     float64: Frechet distances
    pixel.mean, pixel.std (1, 28, 28) or (3, 32, 32)             float32, of training pictures in [-1, 1]
    train.counts, test.counts (10,) or (9,)                      int64, pictures of each class
    test.nearest                                                 (), median distance of a test picture to the nearest
                                                                 training picture, in [-1, 1]

and beside those of digits `digits-drawn.npz`, 2,500 pictures (0.5 MB) that `digits` drew, 250 a class: data for exact
denoisers, cards and tests in a clone that has no MNIST. No picture of MNIST itself ships. Emoji are split as
`zoo.categories.load_sorted` does: their classifier has not seen those of "test".

Data     LeCun, Cortes, Burges, "The MNIST database of handwritten digits"; Twemoji (CC BY 4.0)
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

from ebbtide.core.errors import EbbError, nearest
from ebbtide.measure.metrics import moments, nearest_distance
from ebbtide.zoo.data import Pictures, load_pictures
from ebbtide.zoo.moving import Moving

FOLDER = Path(__file__).parent / "weights" / "reference"


OF = ("digits", "emoji")


def features(x: Tensor, of: str = "digits") -> Tensor:
    """The features that a shipped classifier sees in x (N, 1, 28, 28), or emoji (N, 3, 32, 32), in [-1, 1]: (N, 64) float64.

    Raises EbbError where no classifier is known.
    """
    from ebbtide.zoo import categories, classifier

    _known(of)
    network = classifier.load() if of == "digits" else categories.load()
    with torch.no_grad():
        return torch.cat([network.features(part).double() for part in x.split(1000)])


def _known(of: str) -> None:
    if of not in OF:
        raise EbbError(f"there are no features of {of!r}; {nearest(of, OF)}")


def statistics(train: Pictures, test: Pictures, of: str = "digits") -> dict[str, Tensor]:
    """The table above. Raises EbbError for pictures without labels."""
    if train.labels is None or test.labels is None:
        raise EbbError("reference statistics count classes: give pictures with labels.")
    out: dict[str, Tensor] = {}
    for name, part in (("train", train), ("test", test)):
        assert part.labels is not None
        f = torch.cat([features(part.rows(i)[0], of) for i in torch.arange(len(part)).split(5000)])
        out[f"{name}.mean"], out[f"{name}.cov"] = moments(f)
        out[f"{name}.counts"] = part.labels.bincount()
    x = train.x
    out["pixel.mean"], out["pixel.std"] = x.mean(0), x.std(0)
    out["test.nearest"] = nearest_distance(test.rows(torch.arange(min(500, len(test))))[0], x).median()
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


def make(source: str | Path, folder: Path = FOLDER, of: str = "digits") -> list[Path]:
    """Write digits.safetensors and digits-drawn.npz, or emoji.safetensors; the same data and model give the same bytes."""
    from safetensors.torch import save_file

    from ebbtide.zoo.categories import load_sorted

    _known(of)
    read = load_pictures if of == "digits" else load_sorted
    train, test = read(source, split="train"), read(source, split="test")
    out = {k: v.contiguous() for k, v in statistics(train, test, of).items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{of}.safetensors"]
    said = "MNIST, LeCun, Cortes, Burges" if of == "digits" else "Twemoji, CC BY 4.0"
    save_file(out, files[0], {"train": train.digest, "test": test.digest, "source": said})
    if of == "digits":
        files.append(folder / "digits-drawn.npz")
        pixels, labels = drawn()
        np.savez_compressed(files[1], images=pixels.numpy(), labels=labels.numpy())
    return files


@functools.cache
def load(of: str = "digits") -> dict[str, Tensor]:
    """The shipped statistics, by the names above; do not write into the tensors, they are shared.

    Raises EbbError where none ship.
    """
    from safetensors.torch import load_file

    _known(of)
    file = FOLDER / f"{of}.safetensors"
    if not file.exists():
        raise EbbError(f"no statistics of {of} ship: make them with `python -m ebbtide.zoo.reference FILE.npz {of}`.")
    return load_file(file)


def pictures(size: int | None = None) -> Pictures:
    """The 2,500 drawn pictures that ship, `size` pixels square where it is given."""
    return load_pictures(FOLDER / "digits-drawn.npz", size)


def clips(size: int = 12, frames: int = 8, count: int = 10, seed: int = 0) -> Moving:
    """20,000 clips of the first drawn pictures, ten of which are one of each digit: video for cards that learn in a minute.

    The pictures are two thirds of the square wide and have no labels; another seed moves them along other paths.
    """
    return Moving(Pictures(pictures(size * 2 // 3).pixels[:count], None), size, frames, 20_000 // count, seed)


if __name__ == "__main__":
    for file in make(sys.argv[1], of=(sys.argv[2:] or OF)[0]):
        print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
