"""What it costs to sample a data set without a network: 16 pictures, 20 first-order steps, over every picture of a file.

    python bench/data_denoiser.py mnist.npz [--denoiser local|exact|wiener] [--tile 2] [-n 16] [--steps 20] [--threads 2]
                                            [--save sheet.png] [--json]

    wall clock, reading and fitting included     bar 60 s
    processor time                               bar 80 s
    the most memory held                         bar 2048 MB
    nearest picture                              no bar: the median over samples of the root mean square difference per
                                                 pixel to the nearest picture of the file, whose range is 2

The bars are those of the local denoiser on 60,000 pictures of 28 x 28 and two cores.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

import ebbtide as ebb
import figures
from ebbtide.denoise.local import Local
from ebbtide.denoise.model import process
from ebbtide.measure.metrics import nearest_distance
from ebbtide.zoo.data import load_pictures
from ebbtide.zoo.models import data_model


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--denoiser", default="local", choices=("local", "exact", "wiener"))
    parser.add_argument("--tile", type=int, default=None)
    parser.add_argument("-n", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--save", type=Path, default=None)
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    wall, spent = time.perf_counter(), time.process_time()
    if given.tile is None:
        model = data_model(given.data, given.denoiser)
    else:
        pictures = load_pictures(given.data)
        local = Local(process("flow"), pictures.pixels, pictures.labels, tile=given.tile)
        model = ebb.load(local, like=torch.zeros(pictures.pixels.shape[1:]), medium="image")
    fitted = time.perf_counter() - wall
    out = ebb.sample(model, ebb.Plan(solve="euler", grid={"name": "log-snr", "steps": given.steps}), n=given.n)
    wall, spent, held = time.perf_counter() - wall, time.process_time() - spent, figures.peak()
    if given.save is not None:
        out.save(given.save, overwrite=True)
    assert isinstance(out.x, torch.Tensor)
    data = load_pictures(given.data).x
    near = nearest_distance(out.x, data).median() / data[0].numel() ** 0.5
    title = f"{given.n} pictures, {given.steps} steps over {len(data)} pictures of {given.data.name}"
    found = [
        figures.Figure("wall clock", wall, 60, "s", f"{fitted:.1f} s of it to read and fit"),
        figures.Figure("processor time", spent, 80, "s"),
        figures.Figure("most memory held", held, 2048, "MB"),
        figures.Figure("nearest picture", float(near), None, ""),
    ]
    return figures.report(f"{title} ({figures.versions()})", found, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
