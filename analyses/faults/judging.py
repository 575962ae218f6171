"""Recordings → findings of gradscope and of the baselines → what is right and wrong of them."""

from __future__ import annotations

from rich.console import Console

import gradscope
from analyses.faults.baselines import BASELINES
from analyses.faults.case import Case
from analyses.faults.recordings import in_processes, path_of
from analyses.faults.scoring import Judged, Report, judge


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
