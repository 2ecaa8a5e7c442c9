"""How docstrings of this package become Markdown: aligned tables of names become lists, formulas stay as they are.

    x       what is being sampled        ->   - `x` what is being sampled
    t       its time                          - `t` its time

A table is lines that begin at the margin with a word (or several, by commas), two or more spaces, and text; what goes on
below is indented. Formulas are indented by four, which is how Markdown writes code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROW = re.compile(r"^(\S+(?:, \S+)*)\s{2,}(\S.*)$")


def markdown(text: str) -> str:
    """The docstring with its tables as lists; all other lines are left alone."""
    out: list[str] = []
    in_table = False
    for line in text.splitlines():
        row = _ROW.match(line)
        if row:
            if not in_table and out and out[-1].strip():
                out.append("")
            out.append(f"- `{row[1]}` {row[2]}")
        elif in_table and line.startswith("  ") and line.strip():
            out.append(f"  {line.strip()}")
        else:
            if in_table and line.strip():
                out.append("")
            out.append(line)
        in_table = bool(row) or (in_table and line.startswith("  ") and bool(line.strip()))
    return "\n".join(out)


class Heads(griffe.Extension):
    """Rewrite every docstring on its way into the site."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
