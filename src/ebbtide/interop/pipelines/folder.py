"""A folder that `save_pretrained` left, opened: only what lies in it, only safetensors, no code of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ebbtide.core.errors import EbbError
from ebbtide.interop.files import class_of, content

INDEX = "model_index.json"


def open_pipeline(folder: Path, dtype: Any = None, **given: Any) -> Any:
    """The pipeline in a folder, in evaluation mode; nothing is fetched, and no code of the folder runs.

    given   parts to use in place of the folder's

    Raises EbbError for an index that cannot be read, an unknown pipeline, code of the folder's own, and missing weights.
    """
    index = _index(folder)
    _check_parts(folder, {k: v for k, v in index.items() if k not in given})
    kind = class_of(folder, index)
    try:
        return kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, torch_dtype=dtype, **given
        )
    except (OSError, ValueError, ImportError) as error:
        raise EbbError(f"{folder} cannot be opened as a pipeline: {str(error).splitlines()[0]}") from error


def _index(folder: Path) -> dict[str, Any]:
    index = content(folder / INDEX)
    if "_class_name" not in index:
        raise EbbError(f"{folder / INDEX} names no pipeline: it has no '_class_name'.")
    if not isinstance(index["_class_name"], str):
        raise EbbError(
            f"{folder} brings a pipeline of its own code, which is not run; "
            "load it with diffusers if you trust it, and give ebb.load the pipeline."
        )
    return index


def _check_parts(folder: Path, index: dict[str, Any]) -> None:
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry[0] is None:
            continue
        part = folder / name
        if (folder / name / f"{entry[0]}.py").exists():
            raise EbbError(f"{part} brings code of its own, which is not run; give ebb.load the pipeline itself.")
        if not part.is_dir():
            raise EbbError(f"{folder} misses its {name}: {INDEX} names it, and there is no folder {name}.")
        check_weights(part)


def check_weights(part: Path) -> None:
    """Raise EbbError where a network's folder holds no weights in safetensors, or not all of them."""
    config = part / "config.json"
    if not config.exists():  # a tokenizer, a scheduler
        return
    found = {p.name for p in part.glob("*.safetensors")}
    if not found:
        pickles = [p.name for s in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in part.glob(s)]
        why = f"; {pickles[0]} is a pickle, which can run code when it is read: convert it" if pickles else ""
        raise EbbError(f"{part} misses its weights: there is no *.safetensors in it{why}.")
    for listing in part.glob("*.safetensors.index.json"):
        shards = set(content(listing).get("weight_map", {}).values())
        if shards - found:
            raise EbbError(f"{part} misses {min(shards - found)}, one of {len(shards)} files of its weights.")
