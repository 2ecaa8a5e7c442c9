"""The recipes that `ebb train` knows, and the one call it makes.

for progress in begin("digits", "mnist.npz", "runs/digits"): ...      # wrap it in a bar; stop when you like
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ebbtide.core.errors import EbbError, nearest
from ebbtide.learn.annotating import Annotating, Diffusing
from ebbtide.learn.autoencoding import Autoencoding
from ebbtide.learn.classification import Augmented, Classification
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.learn.immiscible import Immiscible
from ebbtide.learn.masked import MaskedNELBO, untimed
from ebbtide.learn.next_token import NextToken
from ebbtide.learn.reflow import Reflow
from ebbtide.learn.restoring import Restoring
from ebbtide.learn.train import Progress, Recipe, train
from ebbtide.learn.trajectory import Trajectories
from ebbtide.process.gaussian import VPLinear
from ebbtide.process.masked import Masked
from ebbtide.zoo.autoencoder import Autoencoder, padded
from ebbtide.zoo.categories import CategoryCNN, load_sorted
from ebbtide.zoo.classifier import SmallCNN
from ebbtide.zoo.data import Pictures, load_pictures
from ebbtide.zoo.demonstrations import Demonstrations, load_demonstrations
from ebbtide.zoo.drawn import Ways, load_ways
from ebbtide.zoo.emoji import Named, PromptMatching, TextToImage, load_named
from ebbtide.zoo.language import CausalLM, MaskedLM
from ebbtide.zoo.moving import Moving, load_moving
from ebbtide.zoo.networks import DiT, StudentDiT, UNet
from ebbtide.zoo.paired import PAIRS, PairedUNet, SwitchedUNet
from ebbtide.zoo.policy import ActionDiT, PolicyMatching
from ebbtide.zoo.routing import RoutedDiT
from ebbtide.zoo.series import Series, SeriesDiT, SeriesMatching, load_series
from ebbtide.zoo.shapes import Shapes
from ebbtide.zoo.text import ALPHABET, Text, load_text
from ebbtide.zoo.video import FrameMatching, VideoDiT

DIGITS = Recipe(
    name="digits",
    data="mnist",
    network=DiT(),
    objective=FlowMatching(),
    steps=10000,
    lr=2e-3,
)

CLASSIFIER = Recipe(
    name="classifier",
    data="mnist",
    network=SmallCNN(),
    objective=Classification(),
    steps=3500,
    lr=2e-3,
    ema=0.995,
)

# The diffusion of DDPM and its law of times, so that what was built for eps models finds one.
DIGITS_EPS = replace(
    DIGITS, name="digits-eps", objective=FlowMatching(process=VPLinear(), kind="eps", peaked=0.0), steps=5000
)

DIGITS_UNET = replace(DIGITS, name="digits-unet", network=UNet(), steps=5000, batch=64)

# Two other ways to train `digits`, at its budget.
DIGITS_IMMISCIBLE = replace(DIGITS, name="digits-immiscible", objective=Immiscible())
DIGITS_ROUTED = replace(DIGITS, name="digits-routed", network=RoutedDiT())

SHAKESPEARE = Recipe(
    name="shakespeare",
    data="tiny-shakespeare",
    network=MaskedLM(),
    objective=MaskedNELBO(Masked(len(ALPHABET) + 1, mask=len(ALPHABET)), untimed),
    steps=10000,
    batch=32,
    lr=2e-3,
)

SHAKESPEARE_CAUSAL = Recipe(
    name="shakespeare-causal",
    data="tiny-shakespeare",
    network=CausalLM(),
    objective=NextToken(len(ALPHABET)),
    steps=3000,
    batch=32,
    lr=2e-3,
)

EMOJI = Recipe(
    name="emoji",
    data="emoji32",
    network=TextToImage(),
    objective=PromptMatching(),
    steps=6000,
    batch=64,
    lr=1e-3,
)

EMOJI_CLASSIFIER = Recipe(
    name="emoji-classifier",
    data="emoji32",
    network=CategoryCNN(),
    objective=Augmented(shift=3),
    steps=6000,
    batch=64,
    lr=2e-3,
    weight_decay=0.05,
    ema=0.995,
)

# Both attentions in one set of weights: every second clip is learnt causally. Frames repeat one another, so noise hides
# less of a clip than of a picture, and the times are later.
MOVING_DIGITS = Recipe(
    name="moving-digits",
    data="mnist",
    network=VideoDiT(),
    objective=FrameMatching(centre=0.7),
    steps=8000,
    batch=16,
    lr=1.5e-3,
)

DIGITS_AUTOENCODER = Recipe(
    name="digits-autoencoder",
    data="mnist",
    network=Autoencoder(),
    objective=Autoencoding(),
    steps=2500,
    batch=64,
    lr=2e-3,
    ema=0.995,
)

PUSHT = Recipe(
    name="pusht",
    data="pusht",
    network=ActionDiT(),
    objective=PolicyMatching(),
    steps=5500,
    batch=128,
    lr=2e-3,
    ema=0.998,
)

# The betas of the paper's 100 steps, in continuous time; v is told well at both ends.
ETTH1 = Recipe(
    name="etth1",
    data="etth1",
    network=SeriesDiT(),
    objective=SeriesMatching(process=VPLinear(beta_min=0.01, beta_max=10.0), kind="v", peaked=0.0),
    steps=4000,
    batch=64,
    lr=2e-3,
    ema=0.998,
)

DIGITS_RESSHIFT = Recipe(
    name="digits-resshift",
    data="mnist",
    network=PairedUNet(),
    objective=Restoring(),
    steps=3000,
    batch=32,
    lr=2e-3,
    ema=0.995,
)

# Students of `digits`, which learn from the ways that its samples took: see `zoo.drawn`.
DIGITS_REFLOW = Recipe(
    name="digits-reflow",
    data="ways of digits",
    network=StudentDiT(),
    objective=Reflow(drop=0.0, peaked=0.0, at_end=0.25),
    steps=1200,
    batch=32,
    lr=5e-4,
    warmup=50,
    ema=0.99,
)

DIGITS_CTM = replace(
    DIGITS_REFLOW,
    name="digits-ctm",
    network=StudentDiT(far=True),
    objective=Trajectories(drop=0.0, peaked=0.0),
    steps=1800,
)

SHAPES_DEPTH = Recipe(
    name="shapes-depth",
    data="shapes",
    network=SwitchedUNet(),
    objective=Annotating(),
    steps=800,
    batch=16,
    lr=2e-3,
    warmup=100,
    ema=0.99,
)

# What the first is held against: without its detail preserver, and the diffusion of many steps.
SHAPES_DEPTH_PLAIN = replace(SHAPES_DEPTH, name="shapes-depth-plain", objective=Annotating(reconstruct=0.0))

SHAPES_DEPTH_DIFFUSION = replace(SHAPES_DEPTH, name="shapes-depth-diffusion", objective=Diffusing())

_ALL = (
    DIGITS,
    CLASSIFIER,
    DIGITS_EPS,
    DIGITS_UNET,
    DIGITS_IMMISCIBLE,
    DIGITS_ROUTED,
    SHAKESPEARE,
    SHAKESPEARE_CAUSAL,
    EMOJI,
    EMOJI_CLASSIFIER,
    MOVING_DIGITS,
    DIGITS_AUTOENCODER,
    PUSHT,
    ETTH1,
    DIGITS_RESSHIFT,
    DIGITS_REFLOW,
    DIGITS_CTM,
    SHAPES_DEPTH,
    SHAPES_DEPTH_PLAIN,
    SHAPES_DEPTH_DIFFUSION,
)
_RECIPES = {r.name: r for r in _ALL}


def names() -> list[str]:
    """All recipes."""
    return sorted(_RECIPES)


def recipe(name: str) -> Recipe:
    """The recipe of this name. Raises EbbError with the nearest names when there is none."""
    if name not in _RECIPES:
        raise EbbError(f"there is no recipe {name!r}; {nearest(name, _RECIPES)}")
    return _RECIPES[name]


def read(recipe: Recipe, data: str | Path | None = None, size: int | None = None, fetch: bool = True) -> Any:
    """What a recipe learns from: a text file for a language model, an .npz of named pictures where prompts or categories
    are learnt, a table of series, demonstrations for a policy, clips of moving pictures for video, and what `load_pictures`
    reads for all others.

    data    a path or "hub:NAME"; None is the recipe's own pictures on the hub
    size    make all pictures this many pixels square, or the square that they move in
    fetch   whether None may do that

    Raises EbbError for data that is missing or cannot be read, and says what to give instead.
    """
    network: Any = recipe.network
    about = network.about()
    text, named = about["medium"] == "text", "prompt" in about or "categories" in about
    if about["medium"] == "series":
        if data is None or str(data).startswith("hub:"):
            raise EbbError(f"{recipe.name} learns from a table of series: give --data FILE.csv.")
        return load_series(data, network.length, network.context)
    if isinstance(network, StudentDiT):
        if data is None or str(data).startswith("hub:"):
            teacher, steps = network.teacher, "-m ebbtide.zoo.drawn"
            raise EbbError(f"{recipe.name} learns from {teacher}: `python {steps} {teacher} F.npz`, then --data F.npz.")
        return load_ways(data)
    acts = about["medium"] == "actions"
    if text or named or acts:
        if data is None or str(data).startswith("hub:"):
            npz = "demonstrations" if acts else "pictures with names"
            what = "a text file: give --data FILE.txt" if text else f"{npz}: give --data FILE.npz"
            raise EbbError(f"{recipe.name} learns from {what}.")
        if size is not None:
            raise EbbError(f"{recipe.name} takes its data as it is; leave the size out.")
        if acts:
            return load_demonstrations(data, network.horizon)
        if "categories" in about:
            return load_sorted(data)
        return load_text(data, network.length) if text else load_named(data, network.length)
    if about.get("pairs") == "shapes":
        if data is not None:
            raise EbbError(f"{recipe.name} learns from scenes that it makes itself; leave the data out.")
        return Shapes(network.size if size is None else size)
    if data is None and not fetch:
        raise EbbError(f"say what to learn from: --data FOLDER, --data FILE.npz, or --data hub:{recipe.data}.")
    source = f"hub:{recipe.data}" if data is None else data
    if about["medium"] == "video":
        return load_moving(source, network.size if size is None else size, network.frames)
    found = load_pictures(source, size)
    if "pairs" in about:
        return PAIRS[about["pairs"]](found)
    return padded(found) if "latent" in about else found


def fit(recipe: Recipe, data: Pictures | Moving | Text | Series | Ways | Demonstrations) -> Recipe:
    """The recipe with what its network must know of the data: size, channels and classes, or the alphabet.

    Pictures without labels train a model of one class that is never named. Raises EbbError for pictures that are not
    square.
    """
    if isinstance(data, Series | Demonstrations):
        return recipe
    if isinstance(data, Text):
        return _fit_text(recipe, data)
    if isinstance(data, Named):
        few = tuple(data.captions[:: max(1, len(data.captions) // 10)][:10])
        told: Any = recipe.network
        return replace(
            recipe, network=replace(told, words=" ".join(data.known), examples=few, size=data.pixels.shape[-1])
        )
    if isinstance(data, Moving):
        known: Any = fit(recipe, data.pictures)
        clips, seen = replace(known.network, size=data.size, frames=data.frames), (data.frames,)
        return replace(known, network=clips, objective=replace(known.objective, units=seen))
    channels, high, wide = data.pixels.shape[1:]
    if high != wide:
        raise EbbError(f"these pictures are {high} x {wide}; this network wants squares: load them with size=.")
    if isinstance(recipe.network, PairedUNet):
        return replace(recipe, network=replace(recipe.network, size=high, channels=channels))
    classes = max(len(data.names), 1 if data.labels is None else int(data.labels.max()) + 1)
    if isinstance(recipe.network, Autoencoder):
        return replace(recipe, network=replace(recipe.network, size=high, channels=channels))
    network: Any = replace(recipe.network, size=high, channels=channels, classes=classes)  # type: ignore[type-var]
    objective: Any = recipe.objective
    if isinstance(getattr(objective, "null", None), int):
        objective = replace(objective, null=classes)
    return replace(recipe, network=network, objective=objective)


def _fit_text(recipe: Recipe, data: Text) -> Recipe:
    objective: Any = recipe.objective
    mask = len(data.alphabet)
    if isinstance(objective, NextToken):
        objective = replace(objective, start=mask)
    else:
        objective = replace(objective, process=replace(objective.process, vocab=mask + 1, mask=mask))
    network: Any = replace(recipe.network, alphabet=data.alphabet, length=data.length)  # type: ignore[type-var]
    return replace(recipe, network=network, objective=objective)


def begin(
    name: str,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    steps: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train the recipe `name` on `data`, or go on with the run that lies in `out`: see `learn.train.train`.

    data    what `read` reads; None fetches the recipe's own data set from the hub
    out     the folder of the checkpoint, by default runs/NAME; at the end it holds `model`, which `ebb.load` opens

    Raises EbbError, before the first step, for an unknown recipe, unreadable data and a folder with another run.
    """
    known = recipe(name)
    resized = isinstance(known.network, DiT | UNet | SmallCNN) and not isinstance(known.network, CategoryCNN)
    found = read(known, data, known.network.size if resized else None)  # type: ignore[attr-defined]
    folder = Path("runs") / name if out is None else out
    return train(fit(known, found), found, folder, steps=steps, seed=seed, device=device)
