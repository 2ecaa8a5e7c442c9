"""What a run of `ebb sample` shows while it goes: the bar, and the picture as it forms. All of it on stderr."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ebbtide.app.preview import picture
from ebbtide.app.progress import Pace, bar, clock, speed
from ebbtide.core.state import Step, Tree

if TYPE_CHECKING:
    from rich.console import Console

_EVERY = 0.1


def stderr() -> Console:
    """A console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


class Screen:
    """A live bar with a preview above it, where there is a terminal to show them; nothing anywhere else."""

    def __init__(
        self, title: str, pace: Pace, preview: bool = False, quiet: bool = False, medium: str = "image"
    ) -> None:
        self.console = stderr()
        self.pace, self.preview, self.medium = pace, preview, medium
        self.on = self.console.is_terminal and not quiet
        self.bar = bar("calls", "rate", "left")
        self.task = self.bar.add_task(title, total=None, calls="", rate="", left="")
        self.live: Any = None
        self.looked = 0.0

    def __enter__(self) -> Screen:
        if self.on:
            from rich.live import Live

            self.live = Live(self.bar, console=self.console, transient=True, refresh_per_second=10)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*error)

    def update(self, step: Step) -> None:
        """Show one step, unless the last one was shown a moment ago."""
        now = time.monotonic()
        if self.live is None or now - self.looked < _EVERY:
            return
        self.looked = now
        pace = self.pace
        self.bar.update(
            self.task,
            total=1.0,
            completed=pace.done,
            calls=f"{pace.calls}/{pace.total} calls",
            rate=speed(pace.rate),
            left=f"{clock(pace.left)} left",
        )
        if self.preview:
            from rich.console import Group

            seen = step.pred.mean if step.pred is not None and step.pred.mean is not None else step.state.x
            self.live.update(Group(self.picture(seen), self.bar))

    def picture(self, x: Tree) -> Any:
        """The samples as they fit on this terminal."""
        return picture(x, self.console.width, max(4, self.console.height - 3), self.medium)

    def stopping(self) -> None:
        """Say that the end was asked for, which comes after this step."""
        self.bar.update(self.task, description="stopping")
