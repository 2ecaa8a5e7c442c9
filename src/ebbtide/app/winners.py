"""The best sample of each request of a run that was steered, with its score, beside the samples.

sevens.png   all samples      sevens.best.png   the best of each request, its score below      sevens.best.txt   of text
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ebbtide.app.files import whole
from ebbtide.core.tree import tree_map
from ebbtide.samples import Samples, sheet, to_images

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_CELL, _STRIP = 64, 14


class Winner(NamedTuple):
    """One sample: its place among all, its seed, and its score, None where it could not be judged."""

    place: int
    seed: int
    score: float | None

    @property
    def said(self) -> str:
        """The score as people read it."""
        return "no score" if self.score is None else f"{self.score:.4g}"


def of(samples: Samples) -> list[Winner]:
    """The best of each request, by the reward of the plan's steer; nothing where it has none that was on."""
    from ebbtide.measure import rewards

    plan, run = samples.plan, samples.plan.run or {}
    steers = plan.parts("steer")
    reward = getattr(steers[0], "reward", None) if steers else None
    if reward is None or not steers[0].on:
        return []
    cond = samples.model.condition(_held(samples), len(samples))
    said = rewards.scores(rewards.find(reward), rewards.Seen(samples.pixels, cond, samples.model.text))
    return best(samples, said.value, run.get("group", 1))


def _held(samples: Samples) -> object:
    from ebbtide.api import TENSORS

    cond = (samples.plan.run or {}).get("cond")
    return None if cond == TENSORS else cond


def best(samples: Samples, score: Tensor, group: int = 1) -> list[Winner]:
    """The best of each `group` in a row, by these scores (n,)."""
    from ebbtide.steer.judge import best as order

    out = []
    for first in range(0, len(samples), group):
        place = first + int(order(score[first : first + group])[0])
        value = float(score[place])
        out.append(Winner(place, samples.seeds[place], None if value != value else value))
    return out


def path_of(path: Path, medium: str) -> Path:
    """Where they are written: sevens.best.png, or best.png in a folder."""
    from ebbtide.app.output import kind_of

    suffix = ".best.png" if medium == "image" else ".best.txt"
    return path / suffix[1:] if kind_of(path) == "folder" else path.with_suffix(suffix)


def write(samples: Samples, winners: list[Winner], path: Path) -> Path:
    """Write them: pictures on a sheet with their scores, others as a line each; gives the file."""
    from ebbtide.app import forms

    medium = samples.model.medium
    file = path_of(path, medium)
    places = [w.place for w in winners]
    own = tree_map(lambda v: v[places], samples.x)
    if medium == "image":
        images = to_images(samples.model.pixels(own))
        cells = [_captioned(image, w.said) for image, w in zip(images, winners, strict=True)]
        with whole(file) as part:
            forms.picture(sheet(cells), part, ".png", samples.plan)
        return file
    texts = samples.model.text(own) if medium == "text" else [""] * len(winners)
    lines = [f"# score {w.said}, seed {w.seed}, sample {w.place}" for w in winners]
    with whole(file) as part:
        both = zip(lines, texts, strict=True)
        part.write_text("".join(f"{line}\n{text}\n" if text else f"{line}\n" for line, text in both), encoding="utf-8")
    return file


def _captioned(image: Image, text: str) -> Image:
    """A picture with words below it."""
    from PIL import Image, ImageDraw

    scale = max(1, _CELL // min(image.size))
    big = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    cell = Image.new("RGB", (big.width, big.height + _STRIP), (24, 24, 24))
    cell.paste(big, (0, 0))
    ImageDraw.Draw(cell).text((3, big.height + 1), text, fill=(230, 230, 230))
    return cell
