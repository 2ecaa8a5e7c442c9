"""Ctrl-C between two steps: the first signal asks, the second one breaks off at once."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """While it is entered, a signal to end only sets `asked`; a second one raises KeyboardInterrupt where it falls.

    tell   called at the first signal
    code   what the process should exit with, 128 + the signal: 130 after Ctrl-C, 143 after a plain `kill`
    """

    def __init__(self, tell: Callable[[], None] = lambda: None) -> None:
        self.tell = tell
        self.asked = False
        self.code = 130
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            heard = [s for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]  # as `nohup` and `&` leave them
            self._before = {s: signal.signal(s, self._handle) for s in heard}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self.code = True, 128 + number
        self.tell()

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal came: called where everything is whole."""
        if self.asked:
            raise KeyboardInterrupt


def again(*but: str) -> str:
    """The command that was typed, which is the one that goes on; without the words in `but`, which would start afresh."""
    return shlex.join(["ebb", *(word for word in sys.argv[1:] if word not in but)])
