"""Root causes before symptoms: which finding explains which.

A symptom names its cause, and a cause is as severe as the worst it brings about. What says no more
than its cause does becomes a note: one story is one alarm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gradscope.findings._explanations import EXPLAINED_BY, explains, follows
from gradscope.findings._finding import SEVERITIES, Finding

_STRUCTURAL = {"information-bottleneck"}


def rank(findings: list[Finding], order: Mapping[str, int] | None = None) -> list[Finding]:
    """Findings with their causes, worst first; at equal severity a cause before its symptoms.

    Args:
        order: place in the forward pass, by module.
    """
    causes = _causes(findings, order or {})
    # A finding, its cause, the cause of that, and so on.
    stories = [_story(i, causes) for i in range(len(findings))]
    severity = [SEVERITIES.index(f.severity) for f in findings]
    for symptom, *before in stories:
        for cause in before:
            severity[cause] = max(severity[cause], severity[symptom])
    for symptom, *before in stories:
        if any(follows(findings[symptom], findings[cause]) for cause in before):
            severity[symptom] = SEVERITIES.index("info")

    def place(i: int) -> tuple[int, int, bool, int, str, str]:
        structural = findings[i].rule in _STRUCTURAL  # not what befell this run
        named = (findings[i].first_step, findings[i].rule, findings[i].site)
        return (-severity[i], len(stories[i]), structural, *named)

    return [
        replace(
            findings[i],
            severity=SEVERITIES[severity[i]],
            cause=findings[causes[i]].rule if i in causes else "",
            cause_site=findings[causes[i]].site if i in causes else "",
        )
        for i in sorted(range(len(findings)), key=place)
    ]


def _causes(findings: list[Finding], order: Mapping[str, int]) -> dict[int, int]:
    """Index of a symptom → index of its cause, without circles."""
    causes: dict[int, int] = {}
    for i, symptom in enumerate(findings):
        for rule in EXPLAINED_BY.get(symptom.rule, ()):
            fitting = [
                j
                for j, c in enumerate(findings)
                if c.rule == rule and i not in _story(j, causes) and explains(c, symptom, order)
            ]
            if fitting:
                causes[i] = min(fitting, key=lambda j: findings[j].first_step)
                break
    return causes


def _story(i: int, causes: Mapping[int, int]) -> list[int]:
    story = [i]
    while story[-1] in causes:
        story.append(causes[story[-1]])
    return story
