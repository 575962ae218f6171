"""The score: which reports are right, which are missing, which are false alarms.

A rule counts as *reported* of a case if it found something of severity warning or above (or info,
where the label says that info is right). Then, over a set of cases:

- hit: reported, and in the case's `must`; where `must` has a group of several rules, any of them
  is a hit of the group, under the name of its first;
- miss: a group of `must` of which no rule is reported;
- false alarm: reported, and neither in `must` nor in `may`;
- precision = hits / (hits + false alarms), recall = hits / (hits + misses).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
from scipy.stats import binomtest, chi2  # type: ignore[import-untyped]

from analyses.faults.case import Case

CONFIDENCE = 0.95
COUNTS = ("warning", "critical")


@dataclass(frozen=True)
class Report:
    """One finding, as far as it is scored."""

    rule: str
    severity: str
    site: str = ""
    cause: str = ""
    operation: str = ""
    message: str = ""


@dataclass(frozen=True)
class Judged:
    """What became of a case."""

    case: Case
    reported: frozenset[str]
    hits: tuple[str, ...]
    misses: tuple[str, ...]
    false_alarms: tuple[str, ...]
    first: str
    root_right: bool | None
    operation: str
    operation_right: bool | None


def judge(case: Case, reports: Iterable[Report]) -> Judged:
    """Compare a case's findings, worst first, with its label."""
    counted = [r for r in reports if r.severity in COUNTS or r.rule in case.at_info]
    reported = frozenset(r.rule for r in counted)
    hits: list[str] = []
    misses: list[str] = []
    for group in case.must:
        (hits if group & reported else misses).append(_name(group, reported))
    operation = next((r.operation for r in counted if r.operation), "")
    return Judged(
        case=case,
        reported=reported,
        hits=tuple(hits),
        misses=tuple(misses),
        false_alarms=tuple(sorted(reported - case.expected - case.may)),
        first=counted[0].rule if counted else "",
        root_right=bool(counted and counted[0].rule in case.expected) if case.must else None,
        operation=operation,
        operation_right=plain(operation) in map(plain, case.operation) if case.operation else None,
    )


def _name(group: frozenset[str], reported: frozenset[str]) -> str:
    return sorted(group & reported or group)[0]


def plain(operation: str) -> str:
    """ "SoftmaxBackward0" → "softmax"; "aten::_softmax" → "softmax"."""
    name = operation.lower().removeprefix("aten").lstrip(".:").split(".")[0]
    head, _, _ = name.partition("backward")
    return head.replace("_", "")


def interval(k: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a proportion; (nan, nan) of nothing."""
    if not n:
        return float("nan"), float("nan")
    found = binomtest(k, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def rate_interval(count: int, runs: int) -> tuple[float, float]:
    """Exact (Garwood's) interval of a Poisson rate per run; (nan, nan) of no runs."""
    if not runs:
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE) / 2
    low = chi2.ppf(tail, 2 * count) / 2 if count else 0.0
    return float(low) / runs, float(chi2.ppf(1 - tail, 2 * count + 2)) / 2 / runs


def tally(judged: list[Judged]) -> pd.DataFrame:
    """A row a rule and one for all: hits, misses, false alarms, and what follows of them."""
    rules = sorted({r for j in judged for r in (*j.hits, *j.misses, *j.false_alarms)})
    healthy = [j for j in judged if not j.case.fault]

    def row(name: str, wanted: set[str]) -> dict[str, object]:
        def count(of: Callable[[Judged], Iterable[str]], some: list[Judged]) -> int:
            return sum(rule in wanted for j in some for rule in of(j))

        hits = count(lambda j: j.hits, judged)
        misses = count(lambda j: j.misses, judged)
        false = count(lambda j: j.false_alarms, judged)
        on_healthy = count(lambda j: j.false_alarms, healthy)
        low, high = interval(hits, hits + false)
        least, most = interval(hits, hits + misses)
        lowest, highest = rate_interval(on_healthy, len(healthy))
        return {
            "rule": name,
            "hits": hits,
            "misses": misses,
            "false_alarms": false,
            "precision": hits / (hits + false) if hits + false else float("nan"),
            "precision_low": low,
            "precision_high": high,
            "recall": hits / (hits + misses) if hits + misses else float("nan"),
            "recall_low": least,
            "recall_high": most,
            "false_alarms_on_healthy": on_healthy,
            "per_healthy_run": on_healthy / len(healthy) if healthy else float("nan"),
            "per_healthy_low": lowest,
            "per_healthy_high": highest,
        }

    return pd.DataFrame([row("all", set(rules)), *(row(rule, {rule}) for rule in rules)])


def summary(judged: list[Judged]) -> dict[str, tuple[int, int]]:
    """Counts (of, out of) that are not a rule's."""
    faulty = [j for j in judged if j.case.fault]
    healthy = [j for j in judged if not j.case.fault]
    named = [j for j in judged if j.operation_right is not None]
    return {
        "faulty runs in which all that must be reported is": (
            sum(not j.misses for j in faulty), len(faulty)),
        "faulty runs whose first finding is the root cause": (
            sum(bool(j.root_right) for j in faulty), len(faulty)),
        "non-finite runs whose operation is named": (
            sum(bool(j.operation_right) for j in named), len(named)),
        "healthy runs with a false alarm": (
            sum(bool(j.false_alarms) for j in healthy), len(healthy)),
    }  # fmt: skip


def cases_table(judged: Mapping[str, list[Judged]]) -> pd.DataFrame:
    """A row a case and judge ("gradscope" or a baseline)."""
    return pd.DataFrame(
        {
            "case": j.case.name,
            "fault": j.case.fault or "healthy",
            "split": j.case.split,
            "judge": judge_name,
            "reported": " ".join(sorted(j.reported)),
            "missed": " ".join(j.misses),
            "false_alarms": " ".join(j.false_alarms),
            "first": j.first,
            "root_right": j.root_right,
            "operation": j.operation,
            "operation_right": j.operation_right,
        }
        for judge_name, rows in judged.items()
        for j in rows
    )
