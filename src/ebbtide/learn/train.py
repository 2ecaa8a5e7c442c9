"""The training loop: a fold over steps whose every draw is named by (seed, step), so a killed run loses nothing.

    batch_k   the k-th slice of a keyed permutation of the data, one permutation an epoch
    w_k+1     AdamW(w_k, clip(grad loss_k)),  lr_k = lr min(1, (k + 1) / warmup) (1 + cos(pi k / steps)) / 2
    avg_k+1   d avg_k + (1 - d) w_k+1,  d = min(ema, (1 + k) / (10 + k))

The same command goes on from the checkpoint in its folder and arrives at the same weights, bit for bit (on the same
number of threads). The network stays in `eval()`: what must be random is drawn here, from keys.

Source   AdamW: Loshchilov, Hutter 2019 (arXiv 1711.05101); warmed-up averages: Karras et al. 2024 (2312.02696), sec. 3
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, fold, keys
from ebbtide.learn import checkpoint

_INIT, _ORDER, _DRAW = 1, 2, 3


class Objective(Protocol):
    """What is minimised."""

    def loss(self, network: nn.Module, x0: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """A scalar, the mean over the batch; every random number comes from `noise`, which has one key a row."""

    def about(self) -> dict[str, Any]:
        """What a border must know to use the network: process, kind of prediction, clock, nulls."""


class Network(Protocol):
    """What is trained: a frozen description that can be built and written."""

    def build(self, noise: Noise | None = None) -> nn.Module:
        """The module in `eval()`, its weights drawn from `noise` (one key); None where they will be loaded."""

    def write(self, module: nn.Module, folder: Path) -> None:
        """Write config.json and float16 weights, in the layout that its library reads."""

    def about(self) -> dict[str, Any]:
        """What its data looks like: shape, labels, medium."""


class Data(Protocol):
    """What is learnt from: `ebbtide.zoo.data.Pictures`, or anything with its three members."""

    @property
    def digest(self) -> str:
        """The name of the data in checkpoints: equal for equal pictures and labels."""

    def __len__(self) -> int: ...

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (n, C, H, W) float32 in [-1, 1] and labels (n,) int64 or None."""


@dataclass(frozen=True)
class Recipe:
    """Everything but the data that decides the weights; plain values, so that two recipes can be compared.

    data      the data set it was written for: "hub:" and this name fetch it
    steps     of the whole run, `batch` pictures each
    lr        the peak, after `warmup` steps; it falls to nothing along a cosine
    ema       of the average, at most
    clip      the largest norm of a gradient
    """

    name: str
    data: str
    network: Network
    objective: Objective
    steps: int
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 200
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise EbbError(f"a run of {self.steps} steps trains nothing; give at least 1.")

    def but(self, steps: int | None = None, seed: int | None = None) -> Recipe:
        """The recipe with what is given in its place."""
        return replace(self, steps=self.steps if steps is None else steps, seed=self.seed if seed is None else seed)


class Progress(NamedTuple):
    """What the loop yields after each step.

    loss    the running mean of the last hundred or so steps
    rate    pictures a second, and `left`, the seconds to go at this rate
    saved   the checkpoint written just now, if any
    average the averaged network, in `eval()`; it goes on changing with the run, so use it before the next step
    """

    step: int
    total: int
    loss: float
    rate: float
    left: float
    saved: Path | None
    average: nn.Module


def plain(value: Any) -> Any:
    """A recipe as JSON values: dataclasses become dicts that name their class under "is", functions their names."""
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        return {"is": type(value).__name__, **inner}
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return list(value) if isinstance(value, tuple) else value


def order(seed: int, n: int, epoch: int) -> Tensor:
    """The keyed permutation of `n` pictures in one epoch, int64 (n,)."""
    key = fold(keys([seed]), _ORDER)
    return Noise(key, torch.tensor([epoch])).uniform((1, n))[0].argsort()


class _Order:
    """Rows of each step; remembers the permutations of the two epochs that a batch can touch."""

    def __init__(self, seed: int, n: int, batch: int) -> None:
        self.seed, self.n, self.batch, self.known = seed, n, batch, dict[int, Tensor]()

    def __call__(self, step: int) -> Tensor:
        place = torch.arange(step * self.batch, (step + 1) * self.batch)
        first, last = int(place[0]) // self.n, int(place[-1]) // self.n
        self.known = {
            e: self.known[e] if e in self.known else order(self.seed, self.n, e) for e in range(first, last + 1)
        }
        return torch.cat([self.known[e][place[place // self.n == e] % self.n] for e in self.known])


def rate_of(recipe: Recipe, step: int) -> float:
    """The learning rate of a step."""
    rise = min(1.0, (step + 1) / max(1, recipe.warmup))
    return recipe.lr * rise * (1 + math.cos(math.pi * step / recipe.steps)) / 2


def train(
    recipe: Recipe,
    data: Data,
    out: str | Path,
    *,
    steps: int | None = None,
    seed: int | None = None,
    every: float = 60.0,
    device: str | torch.device = "cpu",
) -> Iterator[Progress]:
    """Train, or go on training, and yield after every step; at the end the averaged network lies in `out`/model.

    steps, seed   in place of the recipe's; `steps` is the length of the whole run, which the learning rate follows
    every         seconds between checkpoints; one is also written at the end, and when the iterator is closed
    device        where the network lives; what is drawn is the same everywhere, sums may round differently

    Raises EbbError when the folder holds a checkpoint of another recipe, seed or data set (it names the difference),
    and when the loss stops being a number.
    """
    recipe = recipe.but(steps=steps, seed=seed)
    file = Path(out) / checkpoint.NAME
    about = {"recipe": plain(recipe), "data": data.digest}
    root = keys([recipe.seed])
    network = recipe.network.build(Noise(fold(root, _INIT), torch.zeros(1, dtype=torch.int64))).to(device)
    average = copy.deepcopy(network).requires_grad_(False)
    weights = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        weights, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, foreach=True
    )
    done = 0
    mean = float("nan")
    if file.exists():
        done, mean = checkpoint.load(file, about, network, average, optimiser)
        if done == recipe.steps and not (file.parent / "model" / "recipe.json").exists():
            export(file.parent, recipe, file.parent / "model")  # killed between the two
    rows = _Order(recipe.seed, len(data), recipe.batch)
    row_keys = fold(fold(root, _DRAW), torch.arange(recipe.batch))
    averaged: list[Tensor] = [
        p for p, w in zip(average.parameters(), network.parameters(), strict=True) if w.requires_grad
    ]
    began, first, saved_at = time.monotonic(), done, time.monotonic()

    def save() -> Path:
        checkpoint.save(file, about, network, average, optimiser, done, mean)
        return file

    try:
        while done < recipe.steps:
            x, labels = data.rows(rows(done))
            x, labels = x.to(device), None if labels is None else labels.to(device)
            for group in optimiser.param_groups:
                group["lr"] = rate_of(recipe, done)
            with torch.enable_grad():
                noise = Noise(row_keys, torch.full((recipe.batch,), done, dtype=torch.int64))
                loss = recipe.objective.loss(network, x, labels, noise)
                optimiser.zero_grad()
                loss.backward()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise EbbError(f"the loss of step {done} is {value}: lower the learning rate (now {recipe.lr:g}).")
            nn.utils.clip_grad_norm_(weights, recipe.clip)
            optimiser.step()
            keep = min(recipe.ema, (1 + done) / (10 + done))
            torch._foreach_lerp_(averaged, [w.detach() for w in weights], 1 - keep)
            mean = value if math.isnan(mean) else mean + (value - mean) * max(0.01, 1 / (done + 1))
            done += 1
            now = time.monotonic()
            saved = None
            if now - saved_at >= every or done == recipe.steps:
                saved, saved_at = save(), now
            if done == recipe.steps:
                export(file.parent, recipe, file.parent / "model")
            pace = (done - first) / max(now - began, 1e-9)
            yield Progress(done, recipe.steps, mean, pace * recipe.batch, (recipe.steps - done) / pace, saved, average)
    except GeneratorExit:
        # Raised at the yield, where weights, averages and moments are of one step.
        if done < recipe.steps:
            save()
        raise


def fitted(recipe: Recipe, data: Data) -> nn.Module:
    """The averaged network of a whole run that keeps nothing on disk, for what is learnt in a minute or two."""
    with tempfile.TemporaryDirectory() as out:
        for progress in train(recipe, data, out, every=math.inf):
            average = progress.average
    return average


def export(out: str | Path, recipe: Recipe, folder: str | Path, extra: dict[str, Any] | None = None) -> Path:
    """Write the averaged network of the checkpoint in `out` into `folder`: float16 weights, config.json, recipe.json.

    recipe.json says how the weights were made and how they are to be asked; `extra` adds to it (figures, a command).
    Works while the run goes on. Raises EbbError when there is no checkpoint, or one of another network.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    average = recipe.network.build()
    said = checkpoint.load_average(Path(out) / checkpoint.NAME, plain(recipe.network), average)
    recipe.network.write(average, folder)
    text = {"name": recipe.name, **recipe.network.about(), **recipe.objective.about(), **(extra or {}), **said}
    part = folder / "recipe.json.part"
    part.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
    part.replace(folder / "recipe.json")
    return folder
