"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EbbError(ValueError):
    """Bad input, told in one sentence that names the mend; the command line prints it and leaves with exit code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown `word`: the closest known names, or all of them when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known) or 'none'}."
