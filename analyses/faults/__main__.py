"""Record the corpus, score the rules, print and write the score."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

import gradscope
from analyses.faults.baselines import BASELINES
from analyses.faults.case import Case
from analyses.faults.corpus import chosen
from analyses.faults.recordings import in_processes, path_of, record_missing
from analyses.faults.scoring import Judged, Report, judge
from analyses.faults.tables import score_table, show, write


def reports(run: gradscope.Run) -> list[Report]:
    """gradscope's findings, worst first."""
    return [
        Report(
            rule=f.rule,
            severity=f.severity,
            site=f.site,
            cause=f.cause,
            operation=str(f.evidence.get("operation") or ""),
            message=f.message,
        )
        for f in gradscope.analyze(run)
    ]


def analysed(path: str) -> dict[str, list[Report]]:
    """What gradscope and the baselines report of a recording."""
    run = gradscope.load(path)
    return {"gradscope": reports(run), **{name: rule(run) for name, rule in BASELINES.items()}}


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
    began = time.process_time()
    missing = sum(not path_of(c, any_capture=kept).exists() for c in cases)
    failed: dict[str, str] = {}
    recorded = record_missing(cases, jobs=jobs, any_capture=kept)
    for case, trouble in track(recorded, "recording", total=missing, console=console):
        if trouble:
            failed[case.name] = trouble
    seconds = time.process_time() - began
    cases = [c for c in cases if c.name not in failed]
    judged = score(cases, jobs=jobs, kept=kept, console=console if findings else None)
    table = score_table(judged)
    show(table, judged, console)
    for name, trouble in failed.items():
        console.print(f"[red]not recorded: {name}: {trouble}")
    if out is not None:
        write(out, table, judged, seconds)


def score(
    cases: list[Case], *, jobs: int = 1, kept: bool = False, console: Console | None = None
) -> dict[str, list[Judged]]:
    """Judge the recordings of cases: by "gradscope" and by each baseline."""
    paths = {str(path_of(c, any_capture=kept)): c for c in cases}
    judged: dict[str, dict[str, Judged]] = {}
    for path, found in in_processes(analysed, list(paths), jobs):
        case = paths[path]
        for name, rows in found.items():
            judged.setdefault(name, {})[case.name] = judge(case, rows)
        if console is not None:
            console.print(f"[bold]{case.name}")
            for r in found["gradscope"]:
                console.print(f"  {r.severity:8} {r.rule} at {r.site}: {r.message}", markup=False)
    return {name: [rows[c.name] for c in cases] for name, rows in judged.items()}


if __name__ == "__main__":
    typer.run(main)
