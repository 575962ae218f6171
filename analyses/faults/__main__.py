"""Record the corpus, score the rules, print and write the score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

import gradscope
from analyses.faults.corpus import chosen
from analyses.faults.judging import score
from analyses.faults.recordings import path_of, record_missing
from analyses.faults.tables import score_table, show, write


def main(
    only: Annotated[str, typer.Option(help="Pattern of cases' names.")] = "*",
    split: Annotated[str, typer.Option(help="tune or test; both if left out.")] = "",
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
    kept: Annotated[
        bool, typer.Option(help="Use recordings of older versions of the recording code, too.")
    ] = False,
    findings: Annotated[bool, typer.Option(help="Print every finding.")] = False,
) -> None:
    """Score gradscope's rules on the corpus of labelled runs."""
    console = Console()
    cases = chosen(only, split)
    if not cases:
        raise typer.BadParameter(f"no case is called {only!r}")
    missing = sum(not path_of(c, any_capture=kept).exists() for c in cases)
    failed: dict[str, str] = {}
    recorded = record_missing(cases, jobs=jobs, any_capture=kept)
    for case, trouble in track(recorded, "recording", total=missing, console=console):
        if trouble:
            failed[case.name] = trouble
    cases = [c for c in cases if c.name not in failed]
    judged = score(cases, jobs=jobs, kept=kept, console=console if findings else None)
    table = score_table(judged)
    show(table, judged, console)
    for name, trouble in failed.items():
        console.print(f"[red]not recorded: {name}: {trouble}")
    if out is not None:
        runs = [gradscope.load(path_of(c, any_capture=kept)) for c in cases]
        seconds = sum(run.meta["timings"]["seconds"] for run in runs)
        write(out, table, judged, seconds)


if __name__ == "__main__":
    typer.run(main)
