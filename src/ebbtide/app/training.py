"""`ebb train`: run a recipe, and show what it makes as it goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebbtide.app.options import option
from ebbtide.app.words import describe

if TYPE_CHECKING:
    from ebbtide.learn.train import Progress

TRAIN = describe(
    "Train a network by a recipe, or go on training it.",
    ("ebb train digits --data mnist.npz", "the model that ships, into runs/digits"),
    ("ebb train digits --data hub:mnist", "the same, data fetched by the library `datasets`"),
    ("ebb train digits --data holiday/ --size 32 --out mine --steps 5000", "on your own pictures"),
    ("ebb train shakespeare --data plays.txt", "a masked language model of characters"),
    ("ebb sample mine/model -n 16", "what it learnt"),
    more="Checkpoints appear whole or not at all: the same command goes on from the last one, to the same weights.",
)


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe, such as digits or shakespeare.", show_default=False)],
    data: Annotated[
        str | None, option("--data", metavar="PATH|hub:NAME", help="A folder, an .npz, a .txt, or a data set.")
    ] = None,
    size: Annotated[int | None, option("--size", help="Make all pictures this many pixels square.")] = None,
    out: Annotated[Path | None, option("--out", "-o", help="Where the run is kept (runs/RECIPE).")] = None,
    steps: Annotated[int | None, option("--steps", help="Length of the whole run, in place of the recipe's.")] = None,
    seed: Annotated[int | None, option("--seed", help="In place of the recipe's.")] = None,
    device: Annotated[str, option("--device", help="Where the network lives (cpu).")] = "cpu",
    quiet: Annotated[bool, option("--quiet", "-q", help="Show nothing but errors.")] = False,
) -> None:
    from ebbtide.app.files import said, writable
    from ebbtide.app.learning import Show
    from ebbtide.app.request import device_of
    from ebbtide.app.stopping import Stop, again
    from ebbtide.learn.train import train as run
    from ebbtide.zoo import recipes

    chosen = recipes.recipe(recipe).but(steps=steps, seed=seed)
    folder = out or Path("runs") / recipe
    where = device_of(device)
    found: Any = recipes.read(chosen, data, size, fetch=False)
    writable(folder)
    chosen = recipes.fit(chosen, found)
    last: Progress | None = None
    with Show(chosen, len(found), quiet) as show, Stop(show.stopping) as stop:
        going = run(chosen, found, folder, device=where or "cpu")
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
