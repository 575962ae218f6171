"""Every rule on one run: what ran, what did not and why, and the findings as stories."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gradscope.errors import GradscopeError
from gradscope.findings._causes import rank
from gradscope.findings._finding import Finding
from gradscope.findings._rule import Outcome, Rule, Skipped, apply
from gradscope.findings._signals import Signals
from gradscope.run import Run


@dataclass(frozen=True)
class Check:
    """What every rule had to say about a run.

    Attributes:
        outcomes: one per rule, by name.
        findings: all of them, worst first; a cause stands before what it brought about.
    """

    outcomes: tuple[Outcome, ...]
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Primitives: {"findings": [...], "rules": [{"rule", "ran", "skipped", "findings"}]}."""
        return {
            "findings": [f.to_dict() for f in self.findings],
            "rules": [
                {"rule": o.rule, "ran": o.ran, "skipped": o.skipped, "findings": len(o.findings)}
                for o in self.outcomes
            ],
        }


def check(run: Run) -> Check:
    """Judge a run by every rule.

    Raises:
        GradscopeError: if it is no `Run`.
    """
    if not isinstance(run, Run):
        raise GradscopeError(
            f"findings are read from a Run, not {type(run).__name__}: open it with gradscope.load()"
        )
    signals = Signals(run)
    results = {rule.name: apply(rule, signals) for rule in rules()}
    found = [f for result in results.values() if not isinstance(result, Skipped) for f in result]
    ranked = tuple(rank(found, {s.name: s.order for s in run.sites_of("module")}))
    outcomes = tuple(
        Outcome(name, skipped=result.reason)
        if isinstance(result, Skipped)
        else Outcome(name, findings=tuple(f for f in ranked if f.rule == name))
        for name, result in results.items()
    )
    return Check(outcomes, ranked)


def analyze(run: Run) -> list[Finding]:
    """The findings of every rule on a run, worst first; none for a run without recorded steps."""
    return list(check(run).findings)


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule: the `RULE` of each public module of this package, by name."""
    names = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [importlib.import_module(f"{__package__}.{n}") for n in names if n[0] != "_"]
    return tuple(sorted((m.RULE for m in modules), key=lambda rule: rule.name))
