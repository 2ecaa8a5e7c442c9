"""Files that appear whole or not at all, and the questions asked of a path before the work begins."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ebbtide.core.errors import EbbError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to; what lies there at the end becomes `path` in one move, and nothing does after an exception.

    Raises EbbError where the system refuses: no room, no permission.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise EbbError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)


def writable(folder: Path) -> None:
    """Make a folder and see that files can be written there. Raises EbbError where they cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EbbError(f"nothing can be written in {folder}: {error.strerror or error}.") from error


def vacant(path: Path, overwrite: bool = False) -> None:
    """See that no file is in the way. Raises EbbError where one is, unless `overwrite`."""
    if path.exists() and not overwrite:
        raise EbbError(f"{said(path)} exists and is kept: give another output, or --overwrite.")


def free(stem: str, suffix: str, folder: Path = Path()) -> Path:
    """The first of stem-0, stem-1... that no file has yet, whatever the suffix of that file."""
    taken = {p.name.split(".")[0] for p in folder.glob(f"{stem}-*")}
    return next(folder / f"{stem}-{k}{suffix}" for k in itertools.count() if f"{stem}-{k}" not in taken)


def said(path: Path) -> str:
    """A path as people read it: relative to where they are, if it lies below."""
    here = Path.cwd()
    absolute = path if path.is_absolute() else here / path
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(path)
