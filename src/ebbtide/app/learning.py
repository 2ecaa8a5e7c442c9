"""What is shown while a network learns: a bar, and above it samples of the averaged network, made now and then."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from ebbtide.app.preview import picture
from ebbtide.app.progress import clock
from ebbtide.app.screen import Live

if TYPE_CHECKING:
    from ebbtide.learn.train import Progress, Recipe

_SAMPLES_EVERY = 20.0
_SHOWN = 10


class Show(Live):
    """The bar of a training run, with samples where the network makes any."""

    def __init__(self, recipe: Recipe, pictures: int, quiet: bool) -> None:
        super().__init__(recipe.name, "step", "loss", "rate", "left", quiet=quiet, lines=True)
        self.recipe = recipe
        self.about: dict[str, Any] = {**recipe.network.about(), **recipe.objective.about()}
        self.samples = "process" in self.about and "beside" not in self.about
        self.drawn = -math.inf
        medium = self.about["medium"]
        self.thing = {"text": "windows", "series": "windows", "actions": "moments"}.get(medium, "pictures")
        if not quiet:
            self.console.print(f"{recipe.name}: {pictures} {self.thing}, {recipe.batch} at a time")

    def update(self, p: Progress) -> None:
        """Show one step, unless the last one was shown a moment ago."""
        if not self.due(last=p.step == p.total):
            return
        above = None
        if self.live is not None and self.samples and time.monotonic() - self.drawn > _SAMPLES_EVERY:
            above = self.draw(p)
            self.drawn = time.monotonic()
        step, loss, left = f"{p.step}/{p.total}", f"loss {p.loss:.4f}", f"{clock(p.left)} left"
        line = f"step {step}, {loss}, {left}"
        rate = f"{p.rate:.0f} {self.thing}/s"
        self.tell(p.step, p.total, line=line, above=above, step=step, loss=loss, rate=rate, left=left)

    def draw(self, p: Progress) -> Any:
        """Ten samples of the averaged network, one a class; of a text, its beginning."""
        from ebbtide import api
        from ebbtide.zoo.models import model_of

        model = model_of(p.average, self.about, self.recipe.name)
        if model.medium == "text":
            from rich.text import Text

            return Text(api.sample(model).text()[0], style="dim")
        cond: Any = None if model.labels is None else [k % model.labels for k in range(_SHOWN)]
        cond = model.info.get("prompts", cond)
        samples = api.sample(model, cond=cond, n=_SHOWN if cond is None else len(cond))
        rows = max(4, min(16, self.console.height - 3))
        return picture(samples.x, self.console.width, rows, model.medium)
