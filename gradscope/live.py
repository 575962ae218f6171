"""Findings while a run is still being recorded."""

from __future__ import annotations

import time
from collections.abc import Callable

from gradscope.findings import SEVERITIES, Finding, analyze
from gradscope.run import Run

BUDGET = 0.01  # share of the run's time that may go into looking at it
EARLIEST = 5  # recorded steps before the first look: nothing can be persistent before

OnFinding = Callable[[Finding], object]


class Watch:
    """Looks at a run now and then, and tells of every finding that is new or has become worse.

    Args:
        read: the run as recorded so far.
        on_finding: called with the finding. What it raises ends the training step that is
            under way, like an exception of the user's own.
    """

    def __init__(self, read: Callable[[], Run], on_finding: OnFinding) -> None:
        self._read, self._on_finding = read, on_finding
        self._told: dict[tuple[str, str], int] = {}
        self._next = 0.0
        self._recorded = 0

    def due(self) -> bool:
        """Whether to look after the step that was just recorded."""
        self._recorded += 1
        return self._recorded >= EARLIEST and time.perf_counter() >= self._next

    def look(self) -> list[Finding]:
        """What is new; `tell` is to follow."""
        began = time.perf_counter()
        found = analyze(self._read())
        now = time.perf_counter()
        self._next = now + (now - began) / BUDGET
        return [f for f in found if SEVERITIES.index(f.severity) > self._told.get(_key(f), -1)]

    def tell(self, findings: list[Finding]) -> None:
        """Call the user's function with each."""
        for finding in findings:
            self._told[_key(finding)] = SEVERITIES.index(finding.severity)
            self._on_finding(finding)


def _key(finding: Finding) -> tuple[str, str]:
    return (finding.rule, finding.site)
