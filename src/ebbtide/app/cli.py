"""The command `ebb`. Nothing heavy is imported before a command needs it, so that help comes at once."""

from __future__ import annotations

import os
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ebbtide.app import (
    catalogue,
    checks,
    comparing,
    editing,
    evaluating,
    explain,
    plans,
    profiling,
    restoring,
    sampling,
    shipped,
    solvers,
    steering,
    training,
    tuning,
    writing,
)
from ebbtide.app.words import describe, note
from ebbtide.core.errors import EbbError

ABOUT = describe(
    "An inference engine for diffusion, flow and masked-diffusion models: any model, any budget, one plan file.",
    (
        "ebb sample digits --label 7 -n 64 --guidance 3 -o sevens.png",
        "a picture, and beside it the plan that repeats it",
    ),
    ("ebb sample --data holiday/ -o new.png", "new pictures from your own, with no network"),
)


class Group(TyperGroup):
    """Errors that a user is meant to read become one line on stderr and exit code 2; all others keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _note  # type: ignore[assignment]
            try:
                return super().invoke(ctx)
            except EbbError as error:
                typer.secho(f"error: {' '.join(str(error).split())}", err=True, fg="red")
                raise typer.Exit(2) from None


def _note(message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Warnings of this package's own, as one line; a user can do nothing about the others."""
    if category is UserWarning:
        note([message])


def _version(asked: bool) -> None:
    if asked:
        from ebbtide import __version__

        typer.echo(f"ebbtide {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Group,
    name="ebb",
    help=ABOUT,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def ebb(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command(help=sampling.SAMPLE)(sampling.sample)
app.command(help=writing.WRITE)(writing.write)
app.command(help=sampling.RESUME)(sampling.resume)
app.command(help=restoring.RESTORE)(restoring.restore)
app.command(help=editing.EDIT)(editing.edit)
app.command(help=steering.STEER)(steering.steer)
app.command("list", help=catalogue.LIST)(catalogue.listing)
app.command(help=explain.EXPLAIN)(explain.explain)
app.command(help=checks.CHECK)(checks.check)
app.add_typer(plans.app, name="plan")
app.command(help=solvers.SOLVERS)(solvers.solvers)
app.command(help=tuning.GRID)(tuning.grid)
app.command(help=shipped.ZOO)(shipped.zoo)
app.command("eval", help=evaluating.EVAL)(evaluating.evaluate)
app.command(help=comparing.COMPARE)(comparing.compare)
app.command(help=profiling.PROFILE)(profiling.profile)
app.command(help=training.TRAIN)(training.train)


def main() -> None:
    """The entry point."""
    # Threads that spin while they wait cost a hundredfold on a machine that has other work; torch reads this when imported.
    # How many threads there are, and so every bit of the samples, stays as it is.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
