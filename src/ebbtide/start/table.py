"""Tables that a start reads: a few numbers in the plan itself, or a safetensors file that it names with its hash.

    {"mean": [0.4, -0.3]}                              one row a class; a row that is a number is a constant picture
    {"file": "means.safetensors", "sha256": "5f3a..."}   the same leaves as tensors; the hash makes the plan say what ran

Shapes   a leaf is (K, ...): K rows, each like one element of x, or a number
Source   plans are plain data; weights are safetensors (docs/design.md)
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.time import right
from ebbtide.core.tree import Tree


def check(table: Mapping[str, Any], needs: Collection[str], may: Collection[str] = ()) -> None:
    """Raises ValueError, for pydantic to tell, unless the table holds these leaves or names a file and its hash."""
    if set(table) == {"file", "sha256"}:
        return
    wrong, lacking = sorted(set(table) - {*needs, *may}), sorted(set(needs) - set(table))
    if wrong or lacking:
        raise ValueError(
            f"a table holds {', '.join((*needs, *(f'{k} if you like' for k in may)))}, or file and sha256; this one "
            f"{'lacks ' + ', '.join(lacking) if lacking else 'has ' + ', '.join(wrong) + ' too'}"
        )
    for name, rows in table.items():
        try:
            torch.as_tensor(rows, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name} is a list of numbers, or of rows of them") from None


def read(table: Mapping[str, Any], needs: Collection[str]) -> dict[str, Tensor]:
    """The leaves (K, ...) of a table, float64 on the CPU; do not write into them, they are shared.

    Raises EbbError for a file that is missing, is another one than its hash says, or lacks a leaf.
    """
    if "file" in table:
        return _file(str(table["file"]), str(table["sha256"]), tuple(needs))
    return {k: _rows(torch.as_tensor(v, dtype=torch.float64)) for k, v in table.items()}


def write(path: str | os.PathLike[str], **leaves: Tensor) -> dict[str, str]:
    """Write a table (K, ...) as safetensors; what comes back is what a plan says of it: file and sha256."""
    from safetensors.torch import save_file

    path = Path(path)
    part = path.with_name(path.name + ".part")
    save_file({k: v.detach().cpu().contiguous() for k, v in leaves.items()}, part)
    os.replace(part, path)
    return {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def chosen(rows: Tensor, index: Tensor, like: Tree) -> Tensor:
    """The rows `index` (B,) in the form of `like` (B, ...). Raises EbbError where a row is not shaped like an element."""
    if not isinstance(like, Tensor):
        raise EbbError("a table holds rows of one tensor: a joint state has no such start.")
    if rows.ndim > 1 and rows.shape[1:] != like.shape[1:]:
        raise EbbError(f"the rows of the table are {tuple(rows.shape[1:])} where samples are {tuple(like.shape[1:])}.")
    return right(rows[index.cpu()], like).expand(like.shape).to(like)


def by_label(label: Tree | None, count: int, n: int) -> Tensor:
    """The row (n,) of each element's label; -1 for the labels -1 and `count`, and where there are no labels.

    Raises EbbError for a label that has no row.
    """
    if not isinstance(label, Tensor):
        return torch.full((n,), -1)
    label = label.reshape(n).cpu().long()
    label = torch.where(label == count, -1, label)
    wrong = label[(label < -1) | (label > count)]
    if len(wrong):
        raise EbbError(f"the table has rows for the labels 0 to {count - 1}, not for {int(wrong[0])}.")
    return label


@functools.lru_cache(8)
def _file(path: str, digest: str, needs: tuple[str, ...]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = Path(path).read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise EbbError(f"{path} is not the table that the plan means: its sha256 is {found}, not {digest}.")
        leaves = load(data)
    except (OSError, SafetensorError) as error:
        raise EbbError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}.") from None
    lacking = [k for k in needs if k not in leaves]
    if lacking:
        raise EbbError(f"{path} holds no {lacking[0]!r}; it holds {', '.join(sorted(leaves)) or 'nothing'}.")
    return {k: _rows(v.double()) for k, v in leaves.items()}


def _rows(v: Tensor) -> Tensor:
    return v[None] if v.ndim == 0 else v
