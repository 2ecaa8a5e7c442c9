"""What the files of other libraries say: a JSON mapping, and the class that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ebbtide.core.errors import EbbError, nearest


def content(path: Path) -> dict[str, Any]:
    """The mapping in a file of JSON. Raises EbbError for a file that cannot be read or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EbbError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EbbError(f"{path} cannot be read: {str(error).splitlines()[0]}.") from None
    if not isinstance(found, dict):
        raise EbbError(f"{path} holds no mapping of fields.")
    return found


def glance(path: Path) -> dict[str, Any]:
    """`content`, and nothing where there is none: for telling what a path leads to."""
    try:
        return content(path)
    except EbbError:
        return {}


def class_of(path: Path, config: dict[str, Any]) -> Any:
    """The class of diffusers that the config in `path` names. Raises EbbError where it names none, or an unknown one."""
    import diffusers

    kind = config.get("_class_name")
    if not isinstance(kind, str):
        raise EbbError(f"{path} names no class of diffusers: it has no '_class_name'.")
    if not hasattr(diffusers, kind):
        raise EbbError(f"{path}: diffusers {diffusers.__version__} has no {kind}; {nearest(kind, dir(diffusers))}")
    return getattr(diffusers, kind)
