"""The command line: the only room that prints or exits."""

from __future__ import annotations

import io
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from gradscope.errors import GradscopeError
from gradscope.store import load

app = typer.Typer(
    name="gradscope",
    help="Where a neural network's gradient goes, through which path, and what weakens it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Severity(StrEnum):
    """What --fail-on takes."""

    info = "info"
    warning = "warning"
    critical = "critical"


@app.command()
def analyze(
    runs: Annotated[
        list[Path], typer.Argument(help="Recorded runs (run.pt). Several are compared.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the report. Default: <first run>-report beside the run."),
    ] = None,
    fail_on: Annotated[
        Severity | None,
        typer.Option(help="Exit with 1 if there are findings at or above this severity."),
    ] = None,
) -> None:
    """Say what is wrong with a run's gradients, and write a report of it."""
    from gradscope.report import default_directory, write_report
    from gradscope.report.terminal import summary

    loaded = [load(path) for path in runs]
    page, path = write_report(loaded, out or default_directory(runs[0]))
    _show(summary(page))
    typer.echo(f"report: {path}")
    if fail_on is not None and page.reaches(fail_on.value):
        raise typer.Exit(1)


@app.command()
def info(
    run: Annotated[Path, typer.Argument(help="A recorded run (run.pt).")],
    sites: Annotated[bool, typer.Option("--sites", help="List every site.")] = False,
) -> None:
    """Show what a run file holds."""
    from gradscope.report.terminal import contents

    _show(contents(load(run), all_sites=sites))


def _show(content: RenderableType) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding is no reason
    # A pipe has no width: what is narrower than this would break most lines of a table.
    width = None if sys.stdout.isatty() else 110
    Console(file=sys.stdout, width=width, highlight=False).print(content)


def main() -> None:
    """Entry point: 0 fine, 1 findings at or above --fail-on, 2 bad usage or unreadable run."""
    try:
        app()
    except GradscopeError as error:
        sys.stderr.write(f"gradscope: {error}\n")
        sys.exit(2)
