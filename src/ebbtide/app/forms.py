"""The forms that samples are written in: a sheet of pictures, a GIF of frames or of steps, arrays, text."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebbtide.app import sheets
from ebbtide.app.files import whole
from ebbtide.app.restored import restored
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.core.tree import leaves
from ebbtide.samples import Samples

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_ACROSS = 24


def picture(image: Image, part: Path, suffix: str, plan: Plan) -> None:
    """One picture, without loss but for .jpg; a PNG holds the plan."""
    from PIL.PngImagePlugin import PngInfo

    options: dict[str, Any] = {}
    if suffix == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("ebbtide", plan.to_yaml())
    elif suffix == ".webp":
        options["lossless"] = True
    else:
        image, options["quality"] = image.convert("L" if image.mode == "L" else "RGB"), 95
    kind = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(suffix, suffix[1:].upper())
    image.save(part, format=kind, **options)


def sheet(samples: Samples, path: Path) -> None:
    """One picture of all samples; where a few conditions are taken in turn, each has a column.

    Samples that were made from pictures come after those, which stand first, in a row of their own where there are several;
    restorations after what was measured, their mean and their standard deviation.
    """
    import torch

    found = restored(samples)
    pixels, columns = samples.pixels, _turn(samples)
    first = _sources(samples, columns)
    if found is not None:
        pixels, columns = found.pixels, max(3, math.isqrt(len(found.pixels)))
    elif first is not None and first.shape[1:] == pixels.shape[1:]:
        pixels, columns = torch.cat([first.to(pixels), pixels]), columns or (len(first) if len(first) > 1 else None)
    image = sheets.contact(pixels, samples.model.medium, columns)
    with whole(path) as part:
        picture(image, part, path.suffix.lower(), samples.plan)


def _turn(samples: Samples) -> int | None:
    """After how many samples their conditions repeat; None where they do not, or too late for a sheet."""
    cond, n = (samples.plan.run or {}).get("cond"), len(samples)
    listed = [v for v in (cond.values() if isinstance(cond, dict) else [cond]) if isinstance(v, list) and len(v) == n]
    rows = list(zip(*listed, strict=True))
    turns = range(1, min(n // 2, _ACROSS) + 1)
    found = next((k for k in turns if rows and rows[k:] == rows[:-k]), 1)
    return found if found > 1 else None


def _sources(samples: Samples, columns: int | None) -> Tensor | None:
    """The pictures that the samples were made from, as pixels: one, or one for each column; None where there were none."""
    import torch

    from ebbtide.denoise import files

    cond = (samples.plan.run or {}).get("cond")
    held: Any = cond.get("source") if isinstance(cond, dict) else None
    if samples.model.medium != "image" or not files.named(held):
        return None
    named = held if isinstance(held, list) else [held]
    named = [named[k % len(named)] for k in range(columns or 1)]
    pixels: Tensor = samples.model.pixels(torch.stack([samples.model.opened(v) for v in named]))
    return pixels


def frames(samples: Samples, path: Path) -> None:
    """Clips in motion; of pictures, the way that they took."""
    if samples.model.medium != "video":
        trajectory(samples, path)
        return
    with whole(path) as part:
        gif(sheets.motion(samples.pixels, _turn(samples)), part)


def trajectory(samples: Samples, path: Path) -> None:
    """A sheet for every step. Raises EbbError where none was kept."""
    if not samples.trace:
        raise EbbError(f"{path} shows the way that samples took, and no trace was kept: sample with trace=True.")
    steps = [samples.model.pixels(x) for x in samples.trace]
    with whole(path) as part:
        gif(sheets.trajectory(steps, samples.model.medium, _turn(samples)), part)


def gif(shown: list[tuple[Image, int]], part: Path) -> None:
    """Pictures, each with the milliseconds that it is shown for, round and round."""
    (first, *rest), times = zip(*shown, strict=True)
    first.save(part, format="GIF", save_all=True, append_images=rest, duration=list(times), loop=0)


def arrays(samples: Samples, path: Path) -> None:
    """x, seeds, labels or prompts, and the plan; the same samples give the same bytes."""
    import numpy as np
    import torch

    from ebbtide.api import TENSORS

    # numpy has no bfloat16; float32 holds its every value
    fields = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in leaves(samples.x, "x").items()}
    named = {k: v.numpy() for k, v in fields.items()}
    named["seeds"] = np.array(samples.seeds)
    cond = (samples.plan.run or {}).get("cond")
    asked = np.array(cond.get("prompt") if isinstance(cond, dict) else cond)
    if asked.dtype.kind in "iU" and cond != TENSORS:
        named["labels" if asked.dtype.kind == "i" else "prompts"] = np.broadcast_to(asked, (len(samples),))
    named["plan"] = np.array(samples.plan.to_yaml())
    # as np.savez does it, but with the dates left out
    with whole(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in named.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, member.getvalue())


def lines(texts: list[str]) -> str:
    """Texts as one, a line between those of several lines."""
    return ("\n---\n" if any("\n" in t for t in texts) else "\n").join(texts)


def text(samples: Samples, path: Path) -> None:
    """One text after another, a line between those of several lines."""
    texts = lines(samples.text())
    with whole(path) as part:
        part.write_text(texts + "\n", encoding="utf-8")


WRITERS = {"sheet": sheet, "frames": frames, "arrays": arrays, "text": text}
