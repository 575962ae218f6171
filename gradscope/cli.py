"""The command line: the only room that prints or exits."""

from __future__ import annotations

import sys

import typer

from gradscope.errors import GradscopeError

app = typer.Typer(
    name="gradscope",
    help="Where a neural network's gradient goes, through which path, and what weakens it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Entry point: 0 fine, 1 findings at or above --fail-on, 2 bad usage or unreadable run."""
    try:
        app()
    except GradscopeError as error:
        sys.stderr.write(f"gradscope: {error}\n")
        sys.exit(2)
