"""A run that is being recorded, at a glance; nothing here prints."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradscope.figures import depth_ends
from gradscope.figures._text import number, pretty, printable
from gradscope.findings import Finding, check
from gradscope.report._page import last_values
from gradscope.report.terminal import COLOURS
from gradscope.run import Run
from gradscope.scalars import training_loss

WORST = 3
"""Findings shown."""


def complete(run: Run) -> bool:
    """Whether the recording has been closed."""
    return run.meta.get("status") == "complete"


def glance(run: Run, written: float) -> Group:
    """Last step, loss, gradient at the first layer relative to the last, and the worst findings.

    Args:
        written: when the run was last written to, in seconds since the epoch.
    """
    parts: list[RenderableType] = [_numbers(run, written)]
    if len(run.steps):
        found = check(run).findings
        parts += [Text(""), _worst(found)] if found else [Text("\nno findings so far", style="dim")]
    return Group(*parts)


def _numbers(run: Run, written: float) -> Table:
    last = last_values(run)
    steps = run.steps
    newest = max([*(step for step, _ in last.values()), *steps.tolist()], default=None)
    ago = max(time.time() - written, 0.0)
    age = f"{ago:.0f} s ago" if ago < 120 else f"{ago / 60:.0f} min ago"
    loss = last.get(training_loss(run) or "")
    ends = depth_ends([run])[0] if len(steps) else None
    rows = {
        "run": run.name,
        "model": str((run.meta.get("model") or {}).get("class", "")),
        "status": "complete" if complete(run) else f"recording, last written {age}",
        "last step": "none yet" if newest is None else number(int(newest)),
        "loss": "" if loss is None else f"{number(loss[1])} (step {number(loss[0])})",
    }
    if ends is not None and math.isfinite(ends.ratio):
        rows["gradient, first / last layer"] = (
            f"{number(ends.ratio, 2)} ({ends.first_site} / {ends.last_site})"
        )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(printable(value)))
    return table


def _worst(findings: Sequence[Finding]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings[:WORST]:
        severity = Text(finding.severity, style=COLOURS[finding.severity])
        what = Text(finding.rule, style="bold").append(
            f"  {printable(pretty(finding.message))}", style="not bold"
        )
        table.add_row(severity, what)
    if len(findings) > WORST:
        table.add_row("", Text(f"… and {len(findings) - WORST} more", style="dim"))
    return table
