"""What is shown while a command works: a bar, and above it the picture as it forms. All of it on stderr."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from ebbtide.app.preview import letters, picture
from ebbtide.app.progress import Pace, clock, speed
from ebbtide.core.state import Step
from ebbtide.core.tree import Tree

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_EVERY = 0.1
_LINES = 60.0
_SHARE = 5.0  # of the time that goes by, a sixth at most goes into previews
_STYLES = ("cyan", "green", "yellow", "magenta")


def stderr() -> Console:
    """A console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def bar(*fields: str) -> Progress:
    """A rich bar with a title and these fields of its task after it."""
    from rich.progress import BarColumn, Progress, TextColumn

    columns = [
        TextColumn(f"{{task.fields[{name}]}}", style=style) for name, style in zip(fields, _STYLES, strict=False)
    ]
    return Progress(TextColumn("{task.description}", style="bold"), BarColumn(bar_width=None), *columns, expand=True)


class Live:
    """A live bar on a terminal; elsewhere, with `lines`, a line a minute. Nothing where it is `quiet`.

    fields  what is told after the bar, in this order
    """

    def __init__(self, title: str, *fields: str, quiet: bool = False, lines: bool = False) -> None:
        self.console = stderr()
        self.on = self.console.is_terminal and not quiet
        self.lines = lines and not self.on and not quiet
        self.bar = bar(*fields)
        blank: dict[str, Any] = dict.fromkeys(fields, "")
        self.task = self.bar.add_task(title, total=None, **blank)
        self.live: Any = None
        self.looked = time.monotonic() if self.lines else -math.inf

    def __enter__(self) -> Self:
        if self.on:
            from rich.live import Live as Shown

            self.live = Shown(self.bar, console=self.console, transient=True, refresh_per_second=10)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*error)

    def due(self, last: bool = False) -> bool:
        """Whether something should be shown now: not when that was done a moment ago, unless it is the `last` time."""
        wait = _EVERY if self.live is not None else _LINES if self.lines else None
        now = time.monotonic()
        if wait is None or (now - self.looked < wait and not last):
            return False
        self.looked = now
        return True

    def tell(self, done: float, total: float, *, line: str = "", above: Any = None, **fields: Any) -> None:
        """Show how far it is: on a terminal the bar and its fields, and what is new `above` it; elsewhere the line."""
        if self.live is None:
            self.console.print(line)
            return
        self.bar.update(self.task, total=total, completed=done, **fields)
        if above is not None:
            from rich.console import Group

            self.live.update(Group(above, self.bar))

    def stopping(self) -> None:
        """Say that the end was asked for, which comes after this step."""
        self.bar.update(self.task, description="stopping")


class Screen(Live):
    """The bar of a run of `ebb sample`, with a preview above it: pictures as they are foreseen, or text as it is decided.

    pixels   makes pictures of latents, or text of tokens; what takes long to make is shown less often
    """

    def __init__(
        self,
        title: str,
        pace: Pace,
        preview: bool = False,
        quiet: bool = False,
        medium: str = "image",
        pixels: Callable[[Tree], Any] = lambda x: x,
    ) -> None:
        super().__init__(title, "calls", "rate", "left", quiet=quiet)
        self.pace, self.preview, self.medium, self.pixels = pace, preview, medium, pixels
        self.above: Any = None
        self.before: list[str] = []
        self.next = -math.inf

    def update(self, step: Step) -> None:
        """Show one step, unless the last one was shown a moment ago."""
        if not self.due():
            return
        pace, began = self.pace, time.monotonic()
        if self.preview and began >= self.next:
            foreseen = None if step.pred is None or self.medium == "text" else step.pred.mean
            x = step.state.x if foreseen is None else foreseen
            self.above = self.picture(self.pixels(x))
            ended = time.monotonic()
            self.next = ended + _SHARE * (ended - began)
        calls, left = f"{pace.calls}/{pace.total} calls", f"{clock(pace.left)} left"
        self.tell(pace.done, 1.0, above=self.above, calls=calls, rate=speed(pace.rate), left=left)

    def picture(self, x: Any) -> Any:
        """The samples as they fit on this terminal."""
        if self.medium == "text":
            self.before, shown = x, letters(x, self.before, max(4, self.console.height - 3))
            return shown
        return picture(x, self.console.width, max(4, self.console.height - 3), self.medium)
