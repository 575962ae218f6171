"""Findings while a run is still being recorded."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

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
        # Severities told of by key, worst first: one site can have two findings of a rule.
        self._told: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        self._next = 0.0
        self._recorded = 0

    def due(self) -> bool:
        """Whether to look after the step that was just recorded."""
        self._recorded += 1
        return self._recorded >= EARLIEST and time.perf_counter() >= self._next

    def look(self) -> list[Finding]:
        """What is found by now; `tell` is to follow."""
        began = time.perf_counter()
        found = analyze(self._read())
        now = time.perf_counter()
        self._next = now + (now - began) / BUDGET
        return found

    def tell(self, found: list[Finding]) -> None:
        """Call the user's function with each that is news, worst first."""
        places: Counter[tuple[Any, ...]] = Counter()
        for finding in found:
            key = _key(finding)
            place, severity = places[key], SEVERITIES.index(finding.severity)
            places[key] += 1
            # Told before the call: the function may close the scope, which looks and tells, too.
            told = self._told[key]
            if place == len(told):
                told.append(severity)
            elif severity > told[place]:
                told[place] = severity
            else:
                continue
            self._on_finding(finding)


def _key(finding: Finding) -> tuple[Any, ...]:
    apart = (finding.evidence.get(name) for name in ("state", "edge", "pathway"))
    return (finding.rule, finding.site, *apart)
