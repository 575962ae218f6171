"""Rules that read a run and say what is wrong with its gradients, and what to do about it.

A rule is one module here: its docstring is the definition and its source, its constants the
thresholds and their reasons, its `RULE` what is run. Nothing else lists the rules.
"""

from gradscope.findings._check import Check, analyze, check, rules
from gradscope.findings._finding import SEVERITIES, Finding, Severity, View
from gradscope.findings._rule import Outcome, Rule

__all__ = [
    "SEVERITIES",
    "Check",
    "Finding",
    "Outcome",
    "Rule",
    "Severity",
    "View",
    "analyze",
    "check",
    "rules",
]
