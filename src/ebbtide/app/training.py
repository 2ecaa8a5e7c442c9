"""`ebb train`: run a recipe, and show what it makes as it goes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app.words import describe
from ebbtide.core.errors import EbbError

if TYPE_CHECKING:
    from ebbtide.learn.train import Progress, Recipe

TRAIN = describe(
    "Train a network by a recipe, or go on training it.",
    ("ebb train digits --data mnist.npz", "the model that ships, into runs/digits"),
    ("ebb train digits --data hub:mnist", "the same, data fetched by the library `datasets`"),
    ("ebb train digits --data holiday/ --size 32 --out mine --steps 5000", "on your own pictures"),
    ("ebb sample mine/model -n 16", "what it learnt"),
    more="Checkpoints appear whole or not at all: the same command goes on from the last one, to the same weights.",
)

_SAMPLES_EVERY = 20.0
_SHOWN = 10


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe: digits or classifier.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="PATH|hub:NAME", help="A folder, an .npz, or a data set.", show_default=False),
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Make all pictures this many pixels square.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where the run is kept (runs/RECIPE).", show_default=False)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Length of the whole run, in place of the recipe's.", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="In place of the recipe's.", show_default=False)] = None,
    device: Annotated[str, typer.Option("--device", help="Where the network lives.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")] = False,
) -> None:
    from ebbtide.app.files import said, writable
    from ebbtide.app.request import device_of
    from ebbtide.app.stopping import Stop
    from ebbtide.learn.train import train as run
    from ebbtide.zoo import recipes
    from ebbtide.zoo.data import load_pictures

    chosen = recipes.recipe(recipe)
    if data is None:
        raise EbbError(f"say what to learn from: --data FOLDER, --data FILE.npz, or --data hub:{chosen.data}.")
    folder = out or Path("runs") / recipe
    where = device_of(device)
    writable(folder)
    pictures: Any = load_pictures(data, size)
    chosen = recipes.fit(chosen, pictures)
    last: Progress | None = None
    with Show(chosen, len(pictures), quiet) as show, Stop(show.stopping) as stop:
        going = run(chosen, pictures, folder, steps=steps, seed=seed, device=where or "cpu")
        for last in going:
            show.update(last)
            if stop.asked and last.step < last.total:
                going.close()  # type: ignore[attr-defined]  # it writes its checkpoint then
                break
    if stop.asked and last is not None and last.step < last.total:
        typer.secho(f"stopped at step {last.step} of {last.total}. Go on with: {again()}", err=True)
        raise typer.Exit(stop.code)
    if not quiet:
        made = said(folder / "model")
        loss = "" if last is None else f", loss {last.loss:.4f}"
        sampled = f"; try: ebb sample {made}" if show.samples else ""
        typer.secho(f"{recipe} is trained{loss}: {made}{sampled}", err=True)


def again() -> str:
    """The command that was typed, which is the one that goes on."""
    import shlex
    import sys

    return shlex.join(["ebb", *sys.argv[1:]])


class Show:
    """The bar of a training run, and above it some samples of the averaged network, made now and then."""

    def __init__(self, recipe: Recipe, pictures: int, quiet: bool) -> None:
        from ebbtide.app.progress import bar
        from ebbtide.app.screen import stderr

        self.recipe, self.quiet = recipe, quiet
        self.about: dict[str, Any] = {**recipe.network.about(), **recipe.objective.about()}
        self.samples = "process" in self.about
        self.console = stderr()
        self.on = self.console.is_terminal and not quiet
        self.bar = bar("step", "loss", "rate", "left")
        self.task = self.bar.add_task(recipe.name, total=None, step="", loss="", rate="", left="")
        self.live: Any = None
        self.looked, self.told, self.drawn = 0.0, time.monotonic(), time.monotonic()
        if not quiet:
            self.console.print(f"{recipe.name}: {pictures} pictures, {recipe.batch} at a time")

    def __enter__(self) -> Show:
        if self.on:
            from rich.live import Live

            self.live = Live(self.bar, console=self.console, transient=True, refresh_per_second=4)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*error)

    def update(self, p: Progress) -> None:
        """Show one step, unless the last one was shown a moment ago; without a terminal, a line a minute."""
        from ebbtide.app.progress import clock

        now = time.monotonic()
        if self.live is None:
            if not self.quiet and (now - self.told > 60 or p.step == p.total):
                self.told = now
                self.console.print(f"step {p.step}/{p.total}, loss {p.loss:.4f}, {clock(p.left)} left")
            return
        if now - self.looked < 0.2 and p.step < p.total:
            return
        self.looked = now
        self.bar.update(
            self.task,
            total=p.total,
            completed=p.step,
            step=f"{p.step}/{p.total}",
            loss=f"loss {p.loss:.4f}",
            rate=f"{p.rate:.0f} pictures/s",
            left=f"{clock(p.left)} left",
        )
        if self.samples and (now - self.drawn > _SAMPLES_EVERY or p.step == 1):
            from rich.console import Group

            self.live.update(Group(self.draw(p), self.bar))
            self.drawn = time.monotonic()

    def stopping(self) -> None:
        """Say that the end was asked for, which comes after this step."""
        self.bar.update(self.task, description="stopping")

    def draw(self, p: Progress) -> Any:
        """Ten samples of the averaged network, one a class."""
        from ebbtide import api
        from ebbtide.app.preview import picture
        from ebbtide.zoo.models import model_of

        model = model_of(p.average, self.about, self.recipe.name)
        cond = None if model.labels is None else [k % model.labels for k in range(_SHOWN)]
        samples = api.sample(model, cond=cond, n=_SHOWN)
        return picture(samples.x, self.console.width, max(4, min(16, self.console.height - 3)), model.medium)
