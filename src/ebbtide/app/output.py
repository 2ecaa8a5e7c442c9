"""Writing samples: a contact sheet, a folder, arrays, text or a trajectory, by the suffix of the path.

    sevens.png .jpg .webp   one sheet of all samples          sevens.npz   x, seeds, labels and the plan as arrays
    sevens.gif              a sheet for every step            sevens.txt   one text after another
    sevens/                 one file a sample, seed-0007.png
    clips.gif               a sheet for every frame           clips.png    a strip of frames for every clip

Beside each lies its plan, sevens.plan.yaml (in a folder: plan.yaml); PNG files hold theirs inside as well. Every file appears
whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebbtide.app import forms
from ebbtide.app.files import said, vacant, whole, writable
from ebbtide.app.sheets import motion
from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.plan import Plan
from ebbtide.core.tree import tree_map
from ebbtide.samples import Samples, finite_rows, to_images

if TYPE_CHECKING:
    from ebbtide.denoise.model import Model

KINDS = {
    ".png": "sheet",
    ".jpg": "sheet",
    ".jpeg": "sheet",
    ".webp": "sheet",
    ".gif": "frames",
    ".npz": "arrays",
    ".txt": "text",
}


EACH = {"text": ".txt", "video": ".gif"}
"""The suffix of a sample's own file, where it is no .png."""


def kind_of(path: Path) -> str:
    """What is written to this path: "sheet", "frames", "arrays", "text" or "folder". Raises EbbError for other suffixes."""
    if path.is_dir() or not path.suffix:
        return "folder"
    if path.suffix.lower() not in KINDS:
        raise EbbError(f"{path}: files ending in {path.suffix} cannot be written; {nearest(path.suffix, KINDS)}")
    return KINDS[path.suffix.lower()]


def beside(path: Path, suffix: str) -> Path:
    """The file that belongs to an output: sevens.plan.yaml and sevens.gif, or plan.yaml and frames.gif in a folder."""
    if kind_of(path) == "folder":
        return path / {".plan.yaml": "plan.yaml", ".gif": "frames.gif"}[suffix]
    return path.with_suffix(suffix)


def state_of(path: Path) -> Path:
    """Where an unfinished run is kept: sevens.state.safetensors, beside a folder too."""
    return path.with_name((path.name if kind_of(path) == "folder" else path.stem) + ".state.safetensors")


def names(path: Path, seeds: Sequence[int], medium: str = "image") -> list[Path]:
    """The files of a folder, one for each seed; where seeds repeat, their places tell them apart."""
    wide = max([4, *(len(str(s)) for s in seeds)])
    stems = [f"seed-{s:0{wide}d}" for s in seeds]
    if len(set(stems)) < len(stems):
        stems = [f"{k:04d}-{stem}" for k, stem in enumerate(stems)]
    return [path / f"{stem}{EACH.get(medium, '.png')}" for stem in stems]


def traced(path: Path, medium: str, frames: bool) -> bool:
    """Whether what is written shows the way of samples; `frames` if a GIF of it goes beside them."""
    return frames or (kind_of(path) == "frames" and medium != "video")


def check(
    path: Path,
    seeds: Sequence[int],
    overwrite: bool = False,
    frames: bool = False,
    model: Model | None = None,
    plan: Plan | None = None,
) -> None:
    """See before the work that everything can be written. Makes the folders that are missing.

    Raises EbbError for an unknown suffix, a form that samples of `model` do not have, a place where nothing can be
    written, and, unless `overwrite`, for files that exist (a plan file that says the same is no harm) and for an
    unfinished run.
    """
    kind = kind_of(path)
    folder = kind == "folder"
    if model is not None:
        _fits(kind, model, frames)
    if not overwrite:
        unfinished = state_of(path)
        if unfinished.exists():
            raise EbbError(
                f"{said(unfinished)} holds an unfinished run: go on with `ebb resume {said(unfinished)}`, "
                "or start afresh with --overwrite."
            )
        own = beside(path, ".plan.yaml")
        mediums = ("image", *EACH) if model is None else (model.medium,)
        wanted = [file for medium in mediums for file in names(path, seeds, medium)] if folder else [path]
        wanted += [beside(path, ".gif")] if frames else []
        wanted += [] if plan is None or _says(own, plan) else [own]
        for file in wanted:
            vacant(file)
    writable(path if folder else path.parent)


def _says(file: Path, plan: Plan) -> bool:
    """Whether the file is this plan already."""
    try:
        return file.read_text(encoding="utf-8") == plan.to_yaml()
    except (OSError, UnicodeDecodeError):
        return False


def _fits(kind: str, model: Model, frames: bool) -> None:
    """Raise EbbError where samples of the model do not have this form."""
    text = model.medium == "text"
    if kind == "text" and not text:
        raise EbbError(f"{model.name} makes no text; save its samples as .npz.")
    if kind == "frames" and frames and model.medium == "video":
        raise EbbError(
            "a .gif of clips shows them in motion; for --frames, the way they took, give a .png or a folder."
        )
    latent = model.medium in ("image", "video") and model.decode is not None  # nothing is decoded just to look
    if not latent and (kind in ("sheet", "frames") or frames or (kind == "folder" and not text)):
        to_images(model.batch(1), model.medium)


def write(samples: Samples, path: Path, overwrite: bool = False, frames: bool = False) -> list[Path]:
    """Write samples and their plan; gives the files written.

    frames   also write the trajectory, a GIF beside the rest; needs samples with a trace

    Raises EbbError as `check` does, and where the samples have no such form.
    """
    check(path, samples.seeds, overwrite, frames, samples.model, samples.plan)
    kind = kind_of(path)
    if kind == "folder":
        files = write_each(samples, path, range(len(samples)))
    else:
        forms.WRITERS[kind](samples, path)
        files = [path]
    return files + write_beside(samples, path, frames)


def write_beside(samples: Samples, path: Path, frames: bool = False) -> list[Path]:
    """The plan, and the trajectory where it is wanted."""
    files = []
    if frames and kind_of(path) != "frames":
        files.append(beside(path, ".gif"))
        forms.trajectory(samples, files[-1])
    plan = beside(path, ".plan.yaml")
    with whole(plan) as part:
        part.write_text(samples.plan.to_yaml(), encoding="utf-8")
    return [*files, plan]


def write_each(samples: Samples, folder: Path, places: Iterable[int]) -> list[Path]:
    """One file for each of these places, left out where it is not finite; a PNG holds the plan of its own sample."""
    medium = samples.model.medium
    files = names(folder, samples.seeds, medium)
    good = finite_rows(samples.x).tolist()
    written = []
    for k in places:
        if not good[k]:
            continue
        with whole(files[k]) as part:
            own = tree_map(lambda v, k=k: v[k : k + 1], samples.x)  # not all: a batch is written as it comes
            if medium == "text":
                part.write_text(samples.text()[k] + "\n", encoding="utf-8")
            elif medium == "video":
                forms.gif(motion(samples.model.pixels(own)), part)
            else:
                forms.picture(to_images(samples.model.pixels(own))[0], part, ".png", alone(samples.plan, k))
        written.append(files[k])
    return written


def alone(plan: Plan, place: int) -> Plan:
    """The plan of one sample of a run; of one of a group, that of the group, as none of it is made alone."""
    run = dict(plan.run or {})
    n, seed, cond, size = run.get("n", 1), run.get("seed", 0), run.get("cond"), run.get("group", 1)
    first = place - place % size

    def own(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: own(v) for k, v in value.items()}
        held = isinstance(value, list) and len(value) == n
        return value if not held else value[place] if size == 1 else value[first : first + size]

    run |= {"n": size, "seed": seed + first if isinstance(seed, int) else own(seed)}
    run.pop("batch", None)
    return plan.replace(run=run if cond is None else {**run, "cond": own(cond)})


__all__ = [
    "KINDS",
    "alone",
    "beside",
    "check",
    "kind_of",
    "names",
    "state_of",
    "traced",
    "write",
    "write_beside",
    "write_each",
]
