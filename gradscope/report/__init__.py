"""Where findings meet figures: a page, PNG files, findings.json, and tables for a terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradscope.errors import GradscopeError, RunError, path_given
from gradscope.run import Run
from gradscope.store import journal_path

if TYPE_CHECKING:
    from gradscope.report._page import Page

__all__ = ["default_directory", "report", "write_report"]


def report(run: Run | Sequence[Run], out: str | os.PathLike[str] = "report/") -> Path:
    """Write the report of a run, or of several runs compared, and return its page's path.

    `out` receives report.html (one file that opens offline), figures/*.png and findings.json.
    All of it is made beside `out` first, so that a failure leaves what was there before; other
    files in `out` are kept.

    Raises:
        RunError: if a run has no recorded step.
        GradscopeError: if `out` can't be written.
    """
    runs = [run] if isinstance(run, Run) else run
    if not isinstance(runs, Sequence) or not all(isinstance(r, Run) for r in runs):
        raise GradscopeError(
            f"report() takes a Run or a list of runs, not {run!r:.80}: open a file with load()"
        )
    return write_report(runs, path_given("out=", out))[1]


def write_report(runs: Sequence[Run], out: str | os.PathLike[str]) -> tuple[Page, Path]:
    """`report`, which also returns what it says, as data."""
    # Imported here, so that importing gradscope does not wait for matplotlib.
    from gradscope.report._files import write
    from gradscope.report._page import build
    from gradscope.report._render import files

    if not runs:
        raise RunError("no run to report on: pass a run or a list of runs")
    for r in runs:
        _require_steps(r)
    page = build(runs)
    return page, write(files(page), Path(out))


def default_directory(run: str | os.PathLike[str]) -> Path:
    """Where a report on a run file goes unless told otherwise: run.pt → run-report, beside it."""
    path = Path(run)
    return path.with_name(f"{path.stem}-report")


def _require_steps(run: Run) -> None:
    """Raise RunError unless gradients were recorded at some step."""
    if not len(run.steps):
        raise RunError(f"{run.path or run.name} has no recorded steps: {_why_none(run)}")


def _why_none(run: Run) -> str:
    meta = run.meta
    trainable = (meta.get("model") or {}).get("trainable")
    passes = int(meta.get("unfinished", 0))
    if meta.get("status") == "recording" and run.path and not journal_path(run.path).exists():
        journal = journal_path(run.path).name
        return f"it was taken away while it was recorded, from beside {journal}, which has them"
    if trainable == 0:
        return "no parameter of the model is trainable"
    if meta.get("optimizer") and meta.get("steps") == 0:
        return (
            "none of the optimizers given to attach() ever stepped. Does the loop call step(), and "
            "of the same optimizer?"
        )
    if not meta.get("optimizer") and passes > 1:
        return (
            f"{passes} backward passes, and nothing that counts steps. Give attach() the "
            "optimizer, or call scope.step()"
        )
    return (
        "the recording ended before a step whose gradients were due. Train for more steps, or "
        "record more often (every=1)"
    )
