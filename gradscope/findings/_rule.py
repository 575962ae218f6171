"""What a rule is, and what becomes of one that meets a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from gradscope.findings._finding import Finding
from gradscope.findings._signals import Signals


@dataclass(frozen=True)
class Skipped:
    """Why a rule had nothing to judge."""

    reason: str


@dataclass(frozen=True)
class Rule:
    """One diagnosis.

    Attributes:
        name: identifier, such as "vanishing-gradient".
        requires: (kind, metric) pairs without which the rule is skipped.
        find: signals → findings; or `Skipped`, where the rows are there but do not suffice.
        without_steps: judges a run without recorded steps, too.
    """

    name: str
    requires: tuple[tuple[str, str], ...]
    find: Callable[[Signals], list[Finding] | Skipped]
    without_steps: bool = False

    @property
    def says(self) -> str:
        """What it looks for, in a line: the first of its module's docstring."""
        doc = sys.modules[self.find.__module__].__doc__ or ""
        return doc.partition("\n")[0].partition(": ")[2]


@dataclass(frozen=True)
class Outcome:
    """What one rule had to say about one run.

    Attributes:
        rule: its identifier.
        skipped: why it did not run; "" if it did.
        findings: worst first.
    """

    rule: str
    skipped: str = ""
    findings: tuple[Finding, ...] = field(default=())

    @property
    def ran(self) -> bool:
        return not self.skipped


def apply(rule: Rule, signals: Signals) -> list[Finding] | Skipped:
    """Run one rule, or say why it does not apply."""
    if not len(signals.steps) and not rule.without_steps:
        return Skipped("no recorded steps")
    missing = [need for need in rule.requires if not signals.has(*need)]
    if missing:
        kind, metric = missing[0]
        there = any(c.kind == kind for c in signals.run.columns)
        return Skipped(f"no {metric.replace('_', ' ')} of any {kind}" if there else f"no {kind}")
    return rule.find(signals)
